"""Builds of mutated video files: each file must have one row, with no crash and no leaked process, descriptor or file.

    python tests/benchmarks/builds/fuzz.py --count 3000 [--first N] [--ray] [--keep FOLDER]

Originals are a second of 64 x 48 pixels in MP4 (three layouts), MKV, WebM, TS, AVI and GIF; `--first` and `--count` say
which of the seeded mutations to build, in datasets of 250 files and two undamaged controls each; the first dataset has
the structured cases too (100 streams, 16k pictures, pipes, sockets, links in circles, files that grow and vanish).
Builds run in this process and its children, with mean colours in place of the image
encoder, unless `--ray` is given. Exits with 1 if a file does not have exactly one row, a build ends with an exception,
a control is not kept, or a process, descriptor or temporary file remains. The last table has the outcomes of the files;
"contained" are crashes of the decoder, and errors of the program, that became the error of their file. Memory is this
process's resident set after each dataset.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import fuzzing
import psutil
from footage.mutations import mutated, originals, structured

from pipeline.build import build

DATASET = 250  # files of one build
CONTROLS = ("plain.mp4", "vp9.webm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--ray", action="store_true", help="builds on Ray")
    parser.add_argument("--keep", type=Path, help="keep files that crashed a decoder or met an error in the program")
    args = parser.parse_args()
    table: dict[str, Counter[str]] = defaultdict(Counter)
    problems: list[str] = []
    memory: list[int] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        tempfile.tempdir = os.environ["TMPDIR"] = str(Path(scratch) / "temporary")  # so that what stays is ours
        Path(tempfile.tempdir).mkdir()
        sources = originals(Path(scratch))
        for first in range(args.first, args.first + args.count, DATASET):
            numbers = range(first, min(first + DATASET, args.first + args.count))
            started = time.monotonic()
            problems += dataset(Path(scratch) / str(first), numbers, sources, table, args.ray, args.keep)
            memory.append(psutil.Process().memory_info().rss >> 20)
            spent = time.monotonic() - started
            print(f"{numbers.start}-{numbers.stop - 1}: {spent:.0f} s, {memory[-1]} MB", file=sys.stderr, flush=True)
    states = sorted({state for row in table.values() for state in row})
    print("\n| mutation | files | " + " | ".join(states) + " |\n" + (2 + len(states)) * "|---" + "|")
    for mutation, row in table.items():
        print(f"| {mutation} | {row.total()} | " + " | ".join(str(row[state]) for state in states) + " |")
    total = sum(table.values(), Counter())
    print(f"| all | {total.total()} | " + " | ".join(str(total[state]) for state in states) + " |")
    print(f"\nmemory after each dataset, MB: {', '.join(map(str, memory))}")
    print("\n".join(problems) or "one row each, controls kept, nothing left behind")
    return 1 if problems else 0


def dataset(
    folder: Path,
    numbers: range,
    sources: dict[str, bytes],
    table: dict[str, Counter[str]],
    ray: bool,
    keep: Path | None,
) -> list[str]:
    """Build the files `numbers` and count their outcomes in `table`; return descriptions of violations."""
    footage, out = folder / "footage", folder / "dataset"
    footage.mkdir(parents=True)
    cases = {}
    for number in numbers:
        mutation, name, data = mutated(sources, number)
        (footage / name).write_bytes(data)
        cases[str(footage / name)] = mutation
    for name in CONTROLS:
        (footage / f"control-{name}").write_bytes(sources[name])
        cases[str(footage / f"control-{name}")] = "control"
    if numbers.start == 0:
        cases |= {str(footage / name): what for name, what in structured(footage, sources).items()}
    before = fuzzing.remains()
    try:
        built = build([str(footage)], str(out), fuzzing.recipe(), engine="ray") if ray else fuzzing.build_here(
            [str(footage)], out, footage
        )  # fmt: skip
    except Exception as error:
        return [f"{numbers.start}: the build ended: {type(error).__name__}: {error}"]
    after = fuzzing.remains()
    more = any(a > b for a, b in zip(dataclasses.astuple(after), dataclasses.astuple(before), strict=True))
    problems = [f"{numbers.start}: left behind: {before} became {after}"] if more and not ray else []
    outcomes = fuzzing.outcomes(built)
    if outcomes.keys() != cases.keys():
        problems.append(f"{numbers.start}: no row, or no file, for {sorted(outcomes.keys() ^ cases.keys())[:5]}")
    for uri, state in outcomes.items():
        table[cases.get(uri, "?")][state] += 1
        if "contained" in state:
            reason = next(row["error"] for row in built.sources if row["source_uri"] == uri)
            print(f"{Path(uri).name}: {state}: {reason}", file=sys.stderr)
            if keep:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / Path(uri).name).write_bytes(Path(uri).read_bytes())
        if cases.get(uri) == "control" and state != "kept":
            problems.append(f"{uri}: {state}")
    return problems


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
