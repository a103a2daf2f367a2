"""A build over a million sources and ten million clips: seconds and peak memory of what the driver does.

    python tests/benchmarks/builds/build_scale.py [--clips 10e6] [--folder FOLDER]
        [--part all|make|build|again|changed|units]

Writes the state of finished scan and embed passes (random scores, ten clips per source, one clip in twenty a copy of
another, hashes of four frames per clip; partly in merged files, partly in small fragments), then runs the rest of the
build: pending units, selection, duplicates, clusters, captions (one text for all), shards (an encoder that returns 1 kB
per clip), tables and report. `again` repeats the build, which has nothing to do; `changed` builds with another
threshold. `units` sends thousands of empty units through Ray Data to measure the driver's cost per unit. Needs about
6 GB of disk.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import functools
import inspect
import itertools
import json
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import build
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.engine.base import Stage
from pipeline.engine.ray_engine import RayEngine
from pipeline.media import encode
from pipeline.pack.worker import Transcode, TranscodeUnit
from pipeline.passes import caption, scan, snapshot, transcode
from pipeline.report import page
from pipeline.sources.discover import DiscoveredFile
from pipeline.state import committed, fingerprints
from pipeline.state.units import CaptionUnit, UnitClips, UnitResult
from pipeline.storage.store import Store
from pipeline.tables.compaction import GROUP, MERGED, writer
from pipeline.tables.fragments import DONE, FRAMES, Fragment, IdRange, table_from, to_parquet, write_fragment

OPTIONS = (
    *("filters={}", "filters.exposure={}", "filters.motion={}", "filters.camera={}", "filters.sharpness={}"),
    *("select.thresholds={}", "select.thresholds.exposure_luma.min=0.7", "select.thresholds.motion_object.min=0.7"),
    *("select.thresholds.sharpness_laplacian.min=0.6", "select.balance_clusters=64", "caption.batch=1024"),
)
PER_SOURCE, PER_UNIT, HASHES, DIMENSIONS = 10, 120, 4, 64
FILE, LOOSE = 500_000, 240  # rows of a merged file; small fragments
SIZES = np.array([[1920, 1080], [1280, 720], [640, 360], [1080, 1920], [960, 720]], np.int32)


def ids(n: int, digits: int, random: np.random.Generator) -> pa.Array:
    """Return n strings of hex digits, sorted if they are source ids."""
    text = np.frombuffer(b"0123456789abcdef", np.uint8)[random.integers(0, 16, (n, digits), np.uint8)]
    offsets = np.arange(n + 1, dtype=np.int32) * digits
    return pa.Array.from_buffers(pa.string(), n, [None, pa.py_buffer(offsets), pa.py_buffer(text)])


def make(store: Store, recipe: Recipe, clips: int) -> None:
    """Write the state of the passes before captions."""
    random = np.random.default_rng(0)
    count = clips // PER_SOURCE
    sources = np.sort(ids(count, 32, random).to_numpy(zero_copy_only=False))
    for at in range(0, count, FILE):
        block_sources = sources[at : at + FILE]
        n = len(block_sources)
        columns = {
            "uri": pa.array([uri(at + i) for i in range(n)]),
            "size": np.full(n, 10**7),
            "stamp": pa.array(["1"] * n),
            "source_id": pa.array(block_sources),
            "status": pa.array(["ok"] * n),
            "error": pa.nulls(n, pa.string()),
            "start": np.zeros(n),
            "duration": np.full(n, 60.0),
            "fps": np.full(n, 30.0),
            "width": np.full(n, 1920, np.int32),
            "height": np.full(n, 1080, np.int32),
            "codec": pa.array(["h264"] * n),
        }
        table = pa.table(columns).cast(fingerprints.IDENTIFIED)
        write_fragment(store, f"state/sources/{at:09}.parquet", table, {})
    nothing = to_parquet(FRAMES.empty_table())
    pictures = random.integers(1, 2**63, (clips // 20, HASHES), np.int64)
    small = LOOSE * PER_UNIT // PER_SOURCE  # the sources of the loose fragments: the last ones
    edges = [*range(0, count - small, FILE // PER_SOURCE), count - small]
    spans = [(a, b, True) for a, b in itertools.pairwise(edges)]
    step = PER_UNIT // PER_SOURCE
    spans += [(a, min(a + step, count), False) for a in range(count - small, count, step)]
    for number, (first, last, merged) in enumerate(spans):
        scan, embed, parts = rows(sources[first:last], number, recipe, pictures, random)
        for name, table, made_by, more in (
            ("scan", scan, fingerprints.scan_fingerprint(recipe), {"parts": parts}),
            ("embed", embed, fingerprints.embed_fingerprint(recipe), {}),
        ):
            done = {"fingerprint": made_by, **more, "sources": [sources[first], sources[last - 1]]}
            done |= {MERGED: True} if merged else {}
            with writer(store, f"state/{name}/{number:016x}.parquet", table.schema) as out:
                out.write_table(table, row_group_size=GROUP)
                out.add_key_value_metadata({DONE: json.dumps(done).encode()})
        for unit in {part["unit"] for part in parts}:
            path = Path(store.path(f"tables/frames/{unit}.parquet"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(nothing)


def rows(
    sources: np.ndarray, number: int, recipe: Recipe, pictures: np.ndarray, random: np.random.Generator
) -> tuple[pa.Table, pa.Table, list[dict[str, Any]]]:
    n = len(sources) * PER_SOURCE
    owner = np.repeat(np.arange(len(sources)), PER_SOURCE)
    units = [f"{number:08x}{i:08x}" for i in range(-(-n // PER_UNIT))]
    unit = np.arange(n) // PER_UNIT
    shown = SIZES[random.integers(0, 5, n)]
    start = np.tile(np.arange(PER_SOURCE) * 6.0, len(sources))
    seconds = random.uniform(2, 6, n)
    clip, source = ids(n, 20, random), pa.array(sources).take(pa.array(owner))
    given: dict[str, Any] = {
        "clip_id": clip,
        "source_id": source,
        "source_uri": source,
        "shot_index": np.tile(np.arange(PER_SOURCE, dtype=np.int32), len(sources)),
        "start": start,
        "end": start + seconds,
        "start_pts": (start * 1000).astype(np.int64),
        "end_pts": ((start + seconds) * 1000).astype(np.int64),
        "time_base": pa.DictionaryArray.from_arrays(np.zeros(n, np.int8), ["1/1000"]),
        "frames": (seconds * 30).astype(np.int32),
        "fps": np.full(n, 30.0),
        "width": shown[:, 0],
        "height": shown[:, 1],
        "crop_w": shown[:, 0],
        "crop_h": shown[:, 1],
        "dropped": pa.array(["duration"]).take(pa.array(np.zeros(n, np.int8), mask=random.random(n) > 0.1)),
        "unit": pa.array(units).take(pa.array(unit)),
        "camera_label": pa.DictionaryArray.from_arrays(random.integers(0, 2, n, np.int8), ["static", "pan_left"]),
    }
    hashes = random.integers(1, 2**63, (n, HASHES), np.int64)
    copies = random.random(n) < 0.05
    hashes[copies] = pictures[random.integers(0, len(pictures), int(copies.sum()))] ^ (1 << random.integers(0, 60))
    looks = random.random((n, DIMENSIONS), np.float32) - 0.5
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    looks[copies] = DIMENSIONS**-0.5
    filters = list(fingerprints.filters_of(recipe, "embed"))
    lists = np.arange(n + 1, dtype=np.int32)
    scored = pa.DictionaryArray.from_arrays(np.tile(np.arange(len(filters), dtype=np.int8), n), filters)
    embedded: dict[str, Any] = {
        "clip_id": clip,
        "source_id": source,
        "scored": pa.ListArray.from_arrays(lists * len(filters), scored.cast(pa.string())),
        "embedding": pa.ListArray.from_arrays(lists * DIMENSIONS, looks.ravel()),
        "phash": pa.ListArray.from_arrays(lists * HASHES, hashes.ravel().view(np.uint64)),
    }
    tables = [
        pa.table({f.name: filled(given_rows, f, n, random) for f in schema}, schema=schema)
        for given_rows, schema in (
            (given, fingerprints.scan_schema(recipe)),
            (embedded, fingerprints.embed_schema(recipe)),
        )
    ]
    size = len(to_parquet(FRAMES.empty_table()))
    parts = [{"key": s, "unit": units[i * PER_SOURCE // PER_UNIT], "frames_bytes": size} for i, s in enumerate(sources)]
    return tables[0], tables[1], parts


def filled(columns: dict[str, Any], field: pa.Field, n: int, random: np.random.Generator) -> pa.Array:
    if field.name in columns:
        return pa.array(columns[field.name]).cast(field.type)
    return pa.array(random.random(n, np.float32)) if field.type == pa.float32() else pa.nulls(n, field.type)


def uri(i: int) -> str:
    return f"/raw/videos/{i:09}.mp4"


class Captions:
    """One text for every clip."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._recipe = store, recipe

    def __call__(self, unit: CaptionUnit) -> UnitResult:
        texts = {
            "caption_short": "A bird.",
            "caption_dense": "A bird sits on a branch, then flies off.",
            "caption_json": "{}",
        }
        by_fragment: dict[str, list[UnitClips]] = defaultdict(list)
        for part in unit.parts:
            by_fragment[part.clips.fragment].append(part.clips)
        given: list[dict[str, Any]] = []
        for fragment, parts in by_fragment.items():
            ranges = [part.sources for part in parts if part.sources]
            whole = IdRange(min(ids.first for ids in ranges), max(ids.end for ids in ranges))
            rows = Fragment(fragment, {}).rows(self._store, ["clip_id"], whole)
            wanted = pa.array([clip for part in parts for clip in part.clip_ids or ()])
            rows = rows.filter(pc.is_in(rows["clip_id"], wanted))
            given += [{**row, **texts} for row in rows.to_pylist()]
        table = table_from(given, fingerprints.caption_schema(self._recipe))
        done = {"fingerprint": fingerprints.caption_fingerprint(self._recipe)}
        write_fragment(self._store, f"state/caption/{given[0]['clip_id']}.parquet", table, done)
        return UnitResult("caption", unit.amount)


class DummyTranscode(Transcode):
    """Writes parts with placeholder media instead of encoding clips."""

    def __call__(self, unit: TranscodeUnit) -> UnitResult:
        encoded = encode.Encoded(bytes(1000), "mp4", 100, 30.0, 1280, 720, 3.3)
        self._encoder.encode_all = lambda rows, *_: ((row["clip_id"], encoded) for row in rows)  # type: ignore[method-assign]
        return super().__call__(unit)


def timed(owner: Any, name: str, label: Callable[..., str] | str = "") -> None:
    """Replace the function `owner.name` by one that also prints a row of the table."""
    inner = inspect.unwrap(getattr(owner, name))  # not also for the build before

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter(), time.process_time()
        answer = inner(*args, **kwargs)
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        title = label(*args) if callable(label) else label or name
        if wall > 0.05:
            print(f"| {title} | {wall:.1f} | {cpu:.1f} | {peak():.2f} |", flush=True)
        return answer

    setattr(owner, name, outer)


def peak() -> float:
    """GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def whole(folder: Path, clips: int, *more: str) -> None:
    recipe = load_recipe("embedded", [*OPTIONS, *more])
    files = [DiscoveredFile(uri(i), 10**7, "1") for i in range(clips // PER_SOURCE)]
    build.discover = lambda *_: files
    caption.CaptionClips, transcode.Transcode = Captions, DummyTranscode
    timed(snapshot, "source_rows", "sources, as columns")
    timed(committed, "merge", "small fragments merged")
    timed(committed, "scanned", "what is scanned")
    timed(scan, "source_parts", "what there is to scan")
    timed(snapshot, "clip_rows", "columns that selection reads")
    timed(snapshot, "select", "selection, duplicates, clusters")
    timed(build, "run_passes", lambda passes, *_: f"passes: {', '.join(each.name for each in passes)}")
    timed(transcode, "plan_shards", "shard plan")
    timed(build, "publish", "tables written")
    timed(build, "retire")
    timed(build, "sweep")
    timed(page, "write_report", "report")
    timed(build, "is_unchanged", "is anything changed?")
    print(f"\n{' '.join(more)}\n| part | wall s | CPU s | peak GiB so far |\n|---|---|---|---|", flush=True)
    start = time.perf_counter()
    built = build.build([], str(folder), recipe)
    count = built.info["counts"]
    line = ", ".join(f"{count[name]:,} {name}" for name in ("sources", "clips", "kept", "captions"))
    line += f", {len(built.info['shards'])} shards"
    print(f"| **all of it** ({line}) | {time.perf_counter() - start:.1f} | | {peak():.2f} |", flush=True)


@dataclass(frozen=True)
class Number:
    value: int


class Nothing:
    def __call__(self, unit: Number) -> UnitResult:
        return UnitResult("nothing", unit.value)


def units(count: int = 1000) -> None:
    """Return the milliseconds of wall time and of the driver's CPU time per unit without work."""
    engine = RayEngine(cores=2)
    for n in (10, count):
        start = time.perf_counter(), time.process_time()
        results = list(engine.run(map(Number, range(n)), [Stage(Nothing, (), Number, 1.0)]))
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        assert sorted(result.amount for result in results) == list(range(n))
        print(f"{n} empty units: {1000 * wall / n:.1f} ms of wall time a unit, {1000 * cpu / n:.1f} ms of CPU")
    engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=lambda text: int(float(text)), default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the dataset is made; default: a temporary folder")
    parser.add_argument("--part", choices=("all", "make", "build", "again", "changed", "units"), default="all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "dataset"
        if args.part in ("all", "make"):
            start = time.perf_counter()
            make(Store(str(folder)), load_recipe("embedded", OPTIONS), args.clips)
            print(f"made in {time.perf_counter() - start:.0f} s", flush=True)
        if args.part in ("all", "build"):
            whole(folder, args.clips)
        if args.part in ("all", "again"):
            whole(folder, args.clips)
        if args.part in ("all", "changed"):
            whole(folder, args.clips, "select.thresholds.motion_object.min=0.75")
        if args.part in ("all", "units"):
            units()


if __name__ == "__main__":
    main()
