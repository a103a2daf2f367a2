"""Selection and shard planning over millions of clips: seconds and peak memory.

    python tests/benchmarks/select_scale.py [millions of clips, 10]

Synthetic rows: ten million clips of one million sources, six scores, two labels, perceptual hashes of `HASHES` frames a
clip, one clip in twenty a copy of another with a few bits changed. Each part runs in a process of its own, so that its
memory is its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pyarrow as pa

from pipeline.recipe import Bounds, PackOptions, Recipe, SelectOptions
from pipeline.select import select
from pipeline.shards import plan_shards

HASHES = 4
PARTS = ("thresholds, buckets, split", "the same and duplicates", "shard plan", "1 million sources: split")


def rows(n: int, hashes: int) -> pa.Table:
    random = np.random.default_rng(0)
    sources = max(1, n // 10)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = digits[random.integers(0, 16, (n, 20), np.uint8)]
    ids = pa.Array.from_buffers(
        pa.string(), n, [None, pa.py_buffer(np.arange(n + 1, dtype=np.int32) * 20), pa.py_buffer(text)]
    )
    names = pa.array([f"{i:032x}" for i in range(sources)])
    owner = pa.array(random.integers(0, sources, n, np.int32))
    source = pa.DictionaryArray.from_arrays(owner, names).cast(pa.string())
    sizes = np.array([[1920, 1080], [1280, 720], [640, 360], [1080, 1920], [960, 720]], np.int32)[
        random.integers(0, 5, n)
    ]
    seconds = random.uniform(2, 10, n)
    columns = {
        "clip_id": ids,
        "source_id": source,
        "source_uri": source,
        "shot_index": random.integers(0, 20, n, np.int32),
        "start": np.zeros(n),
        "end": seconds,
        "frames": (seconds * 30).astype(np.int32),
        "crop_w": sizes[:, 0],
        "crop_h": sizes[:, 1],
        "dropped": pa.array(np.where(random.random(n) < 0.1, "duration", ""), pa.string(), mask=random.random(n) > 0.1),
        "camera_label": pa.DictionaryArray.from_arrays(
            random.integers(0, 3, n, np.int8), pa.array(["static", "pan_left", "handheld"])
        ).cast(pa.string()),
        **{
            name: random.random(n, np.float32)
            for name in (
                "motion_object",
                "motion_camera",
                "exposure_luma",
                "sharpness_laplacian",
                "borders_area",
                "aesthetics_mean",
            )
        },
    }
    if hashes:
        pictures = random.integers(1, 2**63, (n, hashes), np.int64).view(np.uint64)
        copies = random.choice(n, n // 20, replace=False)
        pictures[copies] = pictures[random.integers(0, n, n // 20)] ^ (
            np.uint64(1) << random.integers(0, 64, (n // 20, hashes), np.uint64)
        )
        columns["phash"] = pa.ListArray.from_arrays(
            np.arange(n + 1, dtype=np.int32) * hashes, pa.array(pictures.ravel())
        )
    return pa.table(columns)


def recipe(duplicates: bool) -> Recipe:
    low = dict.fromkeys(("motion_object", "sharpness_laplacian", "aesthetics_mean"), Bounds(min=0.1))
    bounds = {**low, "exposure_luma": Bounds(min=0.05, max=0.95), "camera_label": Bounds(none_of=("handheld",))}
    return Recipe(select=SelectOptions(thresholds=bounds, duplicates=duplicates), pack=PackOptions(shard_mb=256))


def run(part: str, n: int) -> str:
    if part == PARTS[2]:
        table = rows(n, 0).select(["clip_id", "frames", "start", "end", "source_id"])
        random = np.random.default_rng(1)
        for name, values in (("bucket", ["16x9-720p", "16x9-360p", "9x16-1080p"]), ("split", ["train", "val"])):
            coded = pa.DictionaryArray.from_arrays(random.integers(0, len(values), n, np.int8), pa.array(values))
            table = table.append_column(name, coded.cast(pa.string()))
        start = time.perf_counter(), time.process_time()
        plans = plan_shards(table, recipe(False))
        said = f"{len(plans):,} shards"
    else:
        table = rows(n, HASHES if part == PARTS[1] else 0)
        start = time.perf_counter(), time.process_time()
        chosen = select(table, recipe(part == PARTS[1]))
        reasons = chosen["rejected_by"]
        kept = int(np.asarray(chosen["keep"]).sum())
        copies = len(chosen) - chosen["duplicates_of"].null_count
        said = f"{kept:,} kept, {copies:,} duplicates" + ("" if reasons.null_count == 0 else "!")
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"| {part} | {n:,} | {wall:.1f} | {cpu:.1f} | {peak:.2f} | {said} |"


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(run(sys.argv[2], int(float(sys.argv[1]) * 1e6)))
        sys.exit()
    millions = sys.argv[1] if len(sys.argv) > 1 else "10"
    print("| part | clips | wall s | CPU s | peak GiB, rows included | result |\n|---|---|---|---|---|---|", flush=True)
    for part in PARTS[:3]:
        answer = subprocess.run([sys.executable, __file__, millions, part], capture_output=True, text=True)
        print(answer.stdout.strip() or answer.stderr, flush=True)
