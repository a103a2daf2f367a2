"""Builds over a folder that changes all the time: memory, descriptors and temporary files have to stay flat.

    python tests/benchmarks/builds/soak.py [--minutes 60] [--seed 0] [--ray]

Each round adds, replaces and removes a few small videos, damaged ones among them, and builds the same dataset again.
Builds run in this process and its children, with mean colours in place of the image encoder, unless `--ray` is given.
Prints a table of rounds, then the slope of memory and of open descriptors over the second half of the rounds, with its
standard error. Exits with 1 where either grows (by more than three standard errors, and by more than 1 MB or a tenth of
a descriptor a round), or where a child process or a temporary file stays. With `--ray` a Ray runs through all rounds,
and the table has the bytes in its object store after each; more than STORE_SHARE of the store is a failure too.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import fuzzing
import numpy as np
import psutil
import ray
from footage.mutations import mutated, originals
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from pipeline.build import Built, build

FILES = 24  # in the folder, about
ADDED, REPLACED = 4, 2  # files of a round
SHOWN = 20  # rows of the table, about
GROWTH = {"MB": 1.0, "descriptors": 0.1}  # of a round: less is noise of the allocator and of sampling
FEWEST = 4  # rounds in the second half
STORE_BYTES, STORE_SHARE = 256 << 20, 0.5  # of Ray's object store: its size, and what builds may fill of it
STORE_SECONDS = 0.2  # between two samples of it


def change(folder: Path, sources: dict[str, bytes], rng: random.Random) -> None:
    """Add, replace and remove some files of `folder`; every third new file is undamaged."""
    present = sorted(folder.iterdir())
    for path in rng.sample(present, min(REPLACED, len(present))):
        path.write_bytes(mutated(sources, rng.randrange(10**6))[2])
    for number in range(ADDED):
        _, name, data = mutated(sources, rng.randrange(10**6))
        (folder / name).write_bytes(data if number % 3 else sources[name.partition("-")[2]])
    for path in rng.sample(present, max(0, len(present) + ADDED - FILES)):
        path.unlink()


def slope(values: list[float]) -> tuple[float, float]:
    """Return the least-squares slope of `values` per round, and its standard error."""
    rounds = np.arange(len(values), dtype=np.float64)
    (gradient, _), covariance = np.polyfit(rounds, values, 1, cov=True)
    return float(gradient), float(np.sqrt(covariance[0, 0]))


class StoreMeter(threading.Thread):
    """Samples the bytes in Ray's object store while a build runs; a context manager."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended, self.peak = threading.Event(), 0

    def run(self) -> None:
        while not self._ended.wait(STORE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        stats = get_memory_info_reply(self._state).store_stats
        self.peak = max(self.peak, stats.object_store_bytes_used + stats.spilled_bytes_total)

    def __enter__(self) -> StoreMeter:
        self._state = get_state_from_address(ray.get_runtime_context().gcs_address)
        self._sample()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def build_on_ray(inputs: Sequence[str], out: Path, _: Path) -> Built:
    return build(inputs, str(out), fuzzing.recipe(), engine="ray")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", action="store_true", help="builds on Ray")
    args = parser.parse_args()
    rng, process, rows = random.Random(args.seed), psutil.Process(), []
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        tempfile.tempdir = os.environ["TMPDIR"] = str(Path(scratch) / "temporary")  # so that what stays is ours
        Path(tempfile.tempdir).mkdir()
        folder, out = Path(scratch) / "footage", Path(scratch) / "dataset"
        folder.mkdir()
        if args.ray:
            ray.init(num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False)
        sources, until = originals(Path(scratch)), time.monotonic() + 60 * args.minutes
        while time.monotonic() < until:
            change(folder, sources, rng)
            with StoreMeter() if args.ray else contextlib.nullcontext() as store:
                built = (build_on_ray if args.ray else fuzzing.build_here)([str(folder)], out, folder)
            remains, counts = fuzzing.remains(), built.info["counts"]
            memory = process.memory_info().rss / 2**20, store.peak / 2**20 if store else 0.0
            rows.append((*memory, *dataclasses.astuple(remains), len(built.sources), counts["clips"]))
        if args.ray:
            ray.shutdown()
    print("| round | memory, MB | object store, MB | descriptors | children | temporary files | sources | clips |")
    print("|" + 8 * "---|")
    for number in range(0, len(rows), max(1, len(rows) // SHOWN)):
        memory, store, *others = rows[number]
        print(f"| {number} | {memory:.0f} | {store:.1f} | " + " | ".join(map(str, others)) + " |")
    half = rows[len(rows) // 2 :]
    if len(half) < FEWEST:
        print(f"{len(rows)} rounds are too few for a slope: it needs {2 * FEWEST}")
        return 1
    grows = False
    for column, (unit, least) in zip((0, 2), GROWTH.items(), strict=True):
        gradient, error = slope([row[column] for row in half])
        grows |= gradient > max(3 * error, least)
        print(f"{len(rows)} rounds; slope over the last {len(half)}: {gradient:+.3f} +- {error:.3f} {unit} a round")
    over = max(store for _, store, *_ in rows) > STORE_SHARE * STORE_BYTES / 2**20
    stays = any(half[-1][column] > half[0][column] for column in (3, 4))
    return int(grows or stays or over)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
