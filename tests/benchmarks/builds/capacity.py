"""Estimate the resources for a million hours of video from the measured costs of a built dataset.

    python tests/benchmarks/builds/capacity.py DATASET [--hours 1e6]

Core-hours are the busy seconds of workers in dataset.json, at one core each. Build the dataset on an idle machine, from
footage similar to the planned one. GPU passes are computed from the rates of the captioner and the encoder alone in
gpu_build.py. Sizes are sizes of files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq

CAPTIONS = 71_280  # clips an hour, Qwen2.5-VL-7B's geometry, 96 tokens an answer, one H200: gpu_build.py
IMAGES = 2_050  # a second, OpenCLIP ViT-L/14, one H200: gpu_build.py
FRAMES = 8  # a clip
DRIVER_BYTES = 420  # a clip in the driver's memory: build_scale.py
UNIT_SECONDS = 0.0014  # of the driver's time a unit of work: build_scale.py
FOOTAGE_GB = 2.0  # an hour of source, 1080p at 4.5 Mbit/s, where the sources are not there to be looked at
BOX = 64  # cores of the machines that the table speaks of
DAY = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--hours", type=float, default=1e6)
    args = parser.parse_args()
    info = json.loads((args.dataset / "dataset.json").read_text())
    hours, count, passes = info["counts"]["hours_sources"], info["counts"], info["passes"]
    clips, kept = count["clips"] / hours, count["kept"] / hours
    busy = {name: one["parts"].get("total", 0.0) / one["amount"] for name, one in passes.items() if one["amount"]}
    packed = sum(shard["bytes"] for shard in info["shards"]) / 1e9 / hours
    frames, state = (size(args.dataset / name) / 1e9 / hours for name in ("tables/frames", "state"))
    tables = sum(size(args.dataset / "tables" / name) for name in ("clips", "sources")) / 1e9 / hours
    sources = pq.read_table(args.dataset / "tables" / "sources", columns=["source_uri", "status"])
    paths = [Path(row["source_uri"]) for row in sources.to_pylist() if row["status"] == "ok"]
    read = sum(path.stat().st_size for path in paths if path.is_file()) / 1e9 / hours or FOOTAGE_GB
    n = args.hours
    core = {
        "identify (read once, hash, probe)": busy.get("sources", 0.0) * len(paths) / hours / 3600,
        "scan": busy.get("scan", 0.0),  # seconds a second are hours an hour
        "embed, on cores": busy.get("embed", 0.0) * clips / 3600,
        "caption by measurement, on cores": busy.get("caption", 0.0) * kept / 3600,
        "pack": (busy.get("transcode", 0.0) + busy.get("pack", 0.0)) * kept / 3600,
    }
    gpu = {
        "embed with OpenCLIP ViT-L/14, on H200s": clips * FRAMES / IMAGES / 3600,
        "caption with a 7B model, on H200s": kept / CAPTIONS,
    }
    print(
        f"Measured on {hours:.2f} hours: {clips:,.0f} clips an hour of source, {kept:,.0f} kept, "
        f"{read:.2f} GB of source an hour.\n\n"
        f"| for {n:,.0f} hours | | of {BOX}-core machines or GPUs, in 30 days |\n|---|---|---|"
    )
    for name, one in core.items():
        print(f"| {name} | {figure(one * n)} core-hours | {one * n / BOX / 30 / DAY:,.1f} machines |")
    for name, one in gpu.items():
        print(f"| {name} | {figure(one * n)} GPU-hours | {one * n / 30 / DAY:,.1f} GPUs |")
    for name, one in (
        ("sources, read three times (hash, scan, pack)", read),
        ("sampled frames", frames),
        ("state of the passes", state),
        ("tables", tables),
        ("shards", packed),
    ):
        print(f"| storage: {name} | {figure(one * n)} GB | |")
    units = 6 * n  # of ten minutes
    writes = 3 * units + kept * n / 64 + packed * n / 0.256 * 2
    reads = read * n * 1e9 / (1 << 20) * 2 + kept * n * 2
    print(f"| requests: writes | {figure(writes)} | |\n| requests: reads, by the megabyte | {figure(reads)} | |")
    print(f"| driver: memory in selection | {figure(clips * n * DRIVER_BYTES / 1e9)} GB | |")
    print(f"| driver: time over {figure(units)} units | {figure(units * UNIT_SECONDS * 3 / 3600)} hours | |")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def figure(number: float) -> str:
    """Format a number with two significant digits."""
    return f"{float(f'{number:.2g}'):,.10g}"


if __name__ == "__main__":
    main()
