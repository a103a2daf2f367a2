"""Builds over a folder that changes all the time: memory, descriptors and temporary files have to stay flat.

    python tests/benchmarks/builds/soak.py [--minutes 60] [--seed 0] [--ray]

Each round adds, replaces and removes a few small videos, damaged ones among them, and builds the same dataset again.
Builds run in this process and its children, with mean colours in place of the image encoder, unless `--ray` is given.
Prints a table of rounds, then the slope of memory and of open descriptors over the second half of the rounds, with its
standard error. Exits with 1 where either grows (by more than three standard errors, and by more than 1 MB or a tenth of
a descriptor a round), or where a child process or a temporary file stays.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import fuzzing
import numpy as np
import psutil
from mutations import mutated, originals

from pipeline.build import build

FILES = 24  # in the folder, about
ADDED, REPLACED = 4, 2  # files of a round
SHOWN = 20  # rows of the table, about
GROWTH = {"MB": 1.0, "descriptors": 0.1}  # of a round: less is noise of the allocator and of sampling


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
    """Least-squares slope of `values` a round, and its standard error."""
    rounds = np.arange(len(values), dtype=np.float64)
    (gradient, _), covariance = np.polyfit(rounds, values, 1, cov=True)
    return float(gradient), float(np.sqrt(covariance[0, 0]))


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
        sources, until = originals(Path(scratch)), time.monotonic() + 60 * args.minutes
        while time.monotonic() < until:
            change(folder, sources, rng)
            if args.ray:
                built = build([str(folder)], str(out), fuzzing.recipe(), engine="ray")
            else:
                built = fuzzing.build_here([str(folder)], out, folder)
            remains = fuzzing.remains()
            usage = process.memory_info().rss / 2**20, remains.descriptors, remains.children, remains.temporary
            rows.append((*usage, len(built.sources), built.info["counts"]["clips"] if "counts" in built.info else 0))
    print("| round | memory, MB | descriptors | children | temporary files | sources | clips |")
    print("|---|---|---|---|---|---|---|")
    for number in range(0, len(rows), max(1, len(rows) // SHOWN)):
        print(f"| {number} | {rows[number][0]:.0f} | " + " | ".join(str(value) for value in rows[number][1:]) + " |")
    second_half = rows[len(rows) // 2 :]
    grows = False
    for column, (unit, least) in enumerate(GROWTH.items()):
        gradient, error = slope([row[column] for row in second_half])
        grows |= gradient > max(3 * error, least)
        print(
            f"{len(rows)} rounds; slope over the last {len(second_half)}: {gradient:+.3f} +- {error:.3f} {unit} a round"
        )
    stays = rows[-1][3] > rows[len(rows) // 2][3] or rows[-1][2] > rows[len(rows) // 2][2]
    return int(grows or stays)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
