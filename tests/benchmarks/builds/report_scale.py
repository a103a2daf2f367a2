"""Costs of the report, the calibration and a counterfactual on large tables: CPU seconds and peak memory.

    python tests/benchmarks/builds/report_scale.py [CLIPS ...]

Clips are synthetic: 30 scores, reasons of four thresholds, captions of kept clips. Each step runs in a new process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from pipeline.config import recipe  # noqa: E402
from pipeline.report import calibrate, page, what_if  # noqa: E402
from pipeline.tables import fragments  # noqa: E402

THRESHOLDS = {f"f{i}_score": {"min": 0.2} for i in range(4)}
RECIPE = recipe.from_dict({"select": {"duplicates": False, "thresholds": THRESHOLDS}})
STEPS = {
    "report": lambda folder: page.write_report(folder),
    "calibrate": lambda folder: calibrate.calibrate(folder),
    "what if": lambda folder: what_if.what_if(folder, RECIPE, ["f0_score.min=0.3"]),
}
ROWS = 500_000  # of one file


def make(folder: Path, count: int) -> None:
    """Write a dataset of `count` clips without media."""
    for name in ("clips", "sources"):
        (folder / "tables" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for start in range(0, count, ROWS):
        n = min(ROWS, count - start)
        scores = rng.random((30, n), dtype=np.float32)
        failed = scores[:4] < 0.2
        keep = ~failed.any(axis=0)
        offsets = np.append(0, failed.sum(axis=0).cumsum()).astype(np.int32)
        reasons = pa.array(list(THRESHOLDS)).take(pa.array(np.nonzero(failed.T)[1]))
        ids = pa.array([f"{word:016x}0000" for word in rng.integers(0, 2**62, n)])
        sources = pa.array([f"/media/{number:08d}.mp4" for number in rng.integers(0, max(1, count // 10), n)])
        columns = {
            "clip_id": ids, "source_id": sources, "source_uri": sources,
            "start": np.zeros(n), "end": np.full(n, 4.0), "fps": np.full(n, 25.0), "frames": np.full(n, 100, np.int32),
            "width": np.full(n, 1920, np.int32), "height": np.full(n, 1080, np.int32),
            "crop_w": np.full(n, 1920, np.int32), "crop_h": np.full(n, 1080, np.int32),
            **{f"f{i}_score": scores[i] for i in range(30)},
            "keep": keep, "rejected_by": pa.ListArray.from_arrays(offsets, reasons),
            "caption": pa.array(np.where(keep, "The camera pans left; something moves to the right.", None)),
            "bucket": pa.array(["16x9-1080p"] * n), "split": pa.array(["train"] * n),
        }  # fmt: skip
        pq.write_table(pa.table(columns), folder / f"tables/clips/{start // ROWS:05}.parquet", row_group_size=100_000)
    pq.write_table(fragments.table_from([], fragments.SOURCES), folder / "tables/sources/00000.parquet")
    info = {"format": 1, "recipe": recipe.to_dict(RECIPE), "counts": {"clips": count}, "passes": {}, "shards": []}
    (folder / "dataset.json").write_text(json.dumps(info))


def measure(step: str, folder: str) -> None:
    began = time.process_time()
    STEPS[step](folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"{step:<10}  {time.process_time() - began:7.1f} CPU s  {peak:7,.0f} MB")


def main(counts: list[int]) -> None:
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            make(Path(scratch), count)
            print(f"{count:,} clips", flush=True)
            for step in STEPS:
                subprocess.run([sys.executable, __file__, step, scratch], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in STEPS:
        measure(*sys.argv[1:])
    else:
        main([int(count) for count in sys.argv[1:]] or [100_000, 1_000_000])
