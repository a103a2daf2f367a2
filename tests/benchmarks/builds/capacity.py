"""Estimate the resources for a million hours of video from the measured costs of a built dataset.

    python tests/benchmarks/builds/capacity.py DATASET [--hours 1e6]

The last column says where a figure comes from:

- dataset: busy seconds of workers in dataset.json, at one core each, and sizes of files. Build the dataset on an idle
  machine, without a GPU, from footage similar to the planned one. Costs grow in proportion to hours or clips: assumed.
- gpu_build: rates that gpu_build.py measured on one H200 with 16 cores, random weights of full geometry, 864 clips.
- build_scale: the driver's rates at 1 and 10 million clips, by build_scale.py.
- assumed: not measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

EMBED_CLIPS = 14.4  # clips a second of the embed pass on one H200 and 16 cores, whose CPU filters bound it
ENCODER_CLIPS = 256.0  # clips a second, 8 frames each, of OpenCLIP ViT-L/14 alone on one H200
CAPTION_CLIPS = 19.8  # clips a second of the captioner alone, Qwen2.5-VL-7B's geometry, 96 tokens an answer, one H200
DRIVER_BYTES = 420  # a clip in the driver's memory
UNIT_SECONDS = 0.0014  # of the driver's time a unit of work
FOOTAGE_GB = 2.0  # an hour of source, 1080p at 4.5 Mbit/s, where the sources are not there to be looked at
UNITS = 6  # units of an hour of source, ten minutes each, in each of three passes
SHARD_GB = 0.256
BOX = 64  # cores of the machines that the table speaks of
MONTH = 30 * 24  # hours


class Row(NamedTuple):
    name: str
    amount: float  # for an hour of source
    unit: str
    source: str
    share: float = 0.0  # of the machines named in `per` that one unit an hour keeps busy
    per: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--hours", type=float, default=1e6)
    args = parser.parse_args()
    info = json.loads((args.dataset / "dataset.json").read_text())
    counts, hours = info["counts"], info["counts"]["hours_sources"]
    clips, kept = counts["clips"] / hours, counts["kept"] / hours
    sources = pq.read_table(args.dataset / "tables" / "sources", columns=["source_uri", "status"])
    phash = pq.read_table(args.dataset / "tables" / "clips", columns=["phash"])["phash"]
    embedded = (len(phash) - phash.null_count) / hours  # clips that the scan's thresholds admit
    paths = [Path(row["source_uri"]) for row in sources.to_pylist() if row["status"] == "ok"]
    measured = sum(path.stat().st_size for path in paths if path.is_file()) / 1e9 / hours
    footage = measured or FOOTAGE_GB
    print(
        f"Measured on {hours:.2f} hours; an hour of source has {clips:,.0f} clips, {embedded:,.0f} embedded and "
        f"{kept:,.0f} kept, and {footage:.2f} GB ({'dataset' if measured else 'assumed'}).\n\n"
        f"| for {args.hours:,.0f} hours | | in 30 days | figure from |\n|---|---|---|---|"
    )
    rows = [
        *core_rows(info, len(paths) / hours, embedded, kept),
        *gpu_rows(embedded, kept),
        *storage_rows(args.dataset, info, hours, footage, "dataset" if measured else "assumed"),
        *driver_rows(clips),
    ]
    for row in rows:
        amount = row.amount * args.hours
        machines = f"{amount * row.share / MONTH:,.1f} {row.per}" if row.per else ""
        print(f"| {row.name} | {figure(amount)} {row.unit} | {machines} | {row.source} |")


def core_rows(info: dict[str, Any], sources: float, embedded: float, kept: float) -> list[Row]:
    """Return core-hours for an hour of source with `sources` files, `embedded` and `kept` clips."""
    passes = info["passes"]
    busy = {
        name: spent["parts"].get("total", 0.0) / spent["amount"] for name, spent in passes.items() if spent["amount"]
    }
    hours = {
        "identify (read once, hash, probe)": busy.get("sources", 0.0) * sources / 3600,
        "scan": busy.get("scan", 0.0),  # seconds a second are hours an hour
        "embed, recipe's encoder included": busy.get("embed", 0.0) * embedded / 3600,
        "caption by measurement": busy.get("caption", 0.0) * kept / 3600,
        "pack": (busy.get("transcode", 0.0) + busy.get("pack", 0.0)) * kept / 3600,
    }
    return [
        Row(name, spent, "core-hours", "dataset", 1 / BOX, f"machines of {BOX} cores") for name, spent in hours.items()
    ]


def gpu_rows(embedded: float, kept: float) -> list[Row]:
    """Return machine-hours and GPU-hours of the recipe `standard` for an hour of source."""
    machines = "H200s with 16 cores each"
    return [
        Row(
            "embed with OpenCLIP ViT-L/14",
            embedded / EMBED_CLIPS / 3600,
            "hours of an H200 and 16 cores",
            "gpu_build",
            1,
            machines,
        ),
        Row("of these the encoder's", embedded / ENCODER_CLIPS / 3600, "GPU-hours", "gpu_build", 1, "H200s"),
        Row(
            "caption with a 7B model, if the pass keeps it as busy as alone",
            kept / CAPTION_CLIPS / 3600,
            "GPU-hours",
            "gpu_build; assumed: 276 clips took 44 s, 31% of that rate, start-up included",
            1,
            "H200s",
        ),
    ]


def storage_rows(dataset: Path, info: dict[str, Any], hours: float, footage: float, source: str) -> list[Row]:
    """Return gigabytes, and requests to an object store, for an hour of source of `footage` GB."""
    packed = sum(shard["bytes"] for shard in info["shards"]) / 1e9 / hours
    kept = info["counts"]["kept"] / hours
    frames, state, tables = (
        sum(size(dataset / name) for name in names) / 1e9 / hours
        for names in (["tables/frames"], ["state"], ["tables/clips", "tables/sources"])
    )
    return [
        Row("sources, read three times (hash, scan, pack)", footage, "GB", source),
        Row("storage: sampled frames", frames, "GB", "dataset"),
        Row("storage: state of the passes", state, "GB", "dataset"),
        Row("storage: tables", tables, "GB", "dataset"),
        Row("storage: shards", packed, "GB", "dataset"),
        Row("requests: writes", 3 * UNITS + kept / 64 + 2 * packed / SHARD_GB, "", "assumed: a file a unit"),
        Row("requests: reads", 2 * footage * 1e9 / (1 << 20) + 2 * kept, "", "assumed: by the megabyte"),
    ]


def driver_rows(clips: float) -> list[Row]:
    return [
        Row("driver: memory in selection", clips * DRIVER_BYTES / 1e9, "GB", "build_scale"),
        Row(f"driver: time, {UNITS} units an hour of source", 3 * UNITS * UNIT_SECONDS / 3600, "hours", "build_scale"),
    ]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def figure(number: float) -> str:
    """Format a number with two significant digits."""
    return f"{float(f'{number:.2g}'):,.10g}"


if __name__ == "__main__":
    main()
