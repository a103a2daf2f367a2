"""Measure the effect of curation: train one model with the same tokens on all clips and on the kept ones, and compare.

    python jobs/ablation.py SOURCE ... --heldout SOURCE ... --out FOLDER [key=value ...]
    python jobs/ablation.py --demo --out FOLDER
    ray job submit --working-dir . -- python jobs/ablation.py SOURCE ... --heldout SOURCE ... --out /shared/FOLDER \
        --address auto --workers 8

One recipe builds both datasets from one scan, and a third dataset from the held-out footage with all of its clips. The
runs have the same latents, seeds and steps. Options are the recipe's (scan.min_seconds=1) and the trainer's
(steps=300). Run it again to continue. --demo uses the demo's two videos: their last thirds are held out, and copies of
the rest with known defects are added; it takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from demo import videos

from model.config import load_config
from model.data.index import read_index
from model.evaluate import encoder_of, evaluate
from model.latents.settle import settle_latents
from model.sample import Trained
from model.train import train
from model.training.parallel import join
from pipeline.build import build
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.media.clip_reader import fit, write_mp4

ARMS = ("all", "kept")
SCORES = ("loss", "sampled_motion", "sampled_warp", "sampled_flicker", "sampled_same", "sampled_text")
DEMO = ("scan.min_seconds=1", "steps=300", "resolutions=64", "shift_tokens=64", "tokens=512")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="SOURCE | key=value", help="footage, and options")
    parser.add_argument("--heldout", nargs="+", default=[], metavar="SOURCE", help="other footage, to measure on")
    parser.add_argument("--out", required=True, metavar="FOLDER", type=Path)
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--recipe", default="embedded", help="a recipe's name, or a YAML file")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--clips", type=int, default=16, help="held-out clips to measure on")
    parser.add_argument("--address", help="the Ray cluster to build on; default: this machine")
    parser.add_argument("--workers", type=int, default=0, help="of a Ray cluster that train together; 0 trains here")
    args = parser.parse_intermixed_args()
    sources = [word for word in args.words if "=" not in word]
    options = [*(DEMO if args.demo else ()), *(word for word in args.words if "=" in word)]
    if args.demo:
        sources, args.heldout = footage(args.out / "footage")
    if not sources or not args.heldout:
        parser.error("give footage to train on, and --heldout footage to measure on; or --demo")
    recipe = load_recipe(args.recipe, [*(o for o in options if "." in o.split("=")[0]), "select.val_fraction=0"])
    options = [o for o in options if "." not in o.split("=")[0]]
    clips = datasets(args.out, sources, args.heldout, recipe, args.address)
    heldout = str(args.out / "heldout")
    if not any(o.startswith("latents=") for o in options):
        config = load_config(None, options, [heldout])
        settle_latents(config, args.out, join("cpu"), read_index([heldout]))
        options.append(f"latents=pca:{args.out}")
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(args.seeds):
        for arm in ARMS:
            run = args.out / "runs" / f"{arm}-{seed}"
            if not (run / "heldout.json").exists():
                trained(run, [*options, f"seed={seed}"], str(args.out / arm), args.workers)
            rows[arm].append(measured(run, heldout, args.clips))
    report = table(rows, clips)
    (args.out / "ablation.json").write_text(json.dumps(rows, indent=1))
    (args.out / "ablation.md").write_text(report)
    print(f"\n{report}")
    return 0


def footage(folder: Path) -> tuple[list[str], list[str]]:
    """Write the demo's videos at 360 lines: the first two thirds, clean and with each of several defects, to train on,
    and the rest to measure on. Return both lists of folders."""
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "benchmarks" / "filters"))
    from planted_clips import DEFECTS

    clean = videos(folder / "whole")
    for name in ("train", "heldout"):
        (folder / name).mkdir(exist_ok=True)
    for path in sorted(clean.glob("*.mp4")):
        if (folder / "heldout" / path.name).exists():
            continue
        with av.open(str(path)) as container:
            fps = float(container.streams.video[0].average_rate or 25)
            frames = np.concatenate(
                [fit(f.to_ndarray(format="rgb24")[None], 360, 640) for f in container.decode(video=0)]
            )
        end = len(frames) * 2 // 3
        write_mp4(folder / "train" / path.name, frames[:end], fps)
        for name, defect in DEFECTS.items():
            if name not in ("clean", "copy", "cut"):
                write_mp4(folder / "train" / f"{path.stem} {name}.mp4", defect.apply(frames[:end]), fps)
        write_mp4(folder / "heldout" / path.name, frames[end:], fps)
    return [str(folder / "train")], [str(folder / "heldout")]


def datasets(
    out: Path, sources: Sequence[str], heldout: Sequence[str], recipe: Recipe, address: str | None
) -> dict[str, str]:
    """Build OUT/kept, OUT/all and OUT/heldout; return a description of the size of each."""
    everything = dataclasses.replace(recipe.select, thresholds={}, duplicates=False, balance_clusters=0)
    unfiltered = dataclasses.replace(recipe, select=everything)
    sizes = {}
    for name, given, by in (("kept", sources, recipe), ("all", sources, unfiltered), ("heldout", heldout, unfiltered)):
        if name == "all" and not (out / name).exists():  # reuse the scan and captions of OUT/kept
            part = out / "all.part"
            shutil.rmtree(part, ignore_errors=True)
            for folder in ("state", "tables"):
                shutil.copytree(out / "kept" / folder, part / folder)
            part.rename(out / name)
        counts = build(given, str(out / name), by, address).info["counts"]
        sizes[name] = f"{counts['kept']} clips, {3600 * counts['hours_kept']:.0f} s"
    return sizes


def trained(run: Path, options: Sequence[str], data: str, workers: int) -> None:
    """Train a run to its end, in this process or by jobs/train.py."""
    if workers == 0:
        train(load_config(None, options, [data]), run)
        return
    script = str(Path(__file__).with_name("train.py"))
    subprocess.run([sys.executable, script, data, "--out", str(run), "--workers", str(workers), *options], check=True)


def measured(run: Path, heldout: str, clips: int) -> dict[str, float]:
    """Return the scores of a finished run on the held-out clips; they are computed once."""
    path = run / "heldout.json"
    if not path.exists():
        scores, _ = evaluate(Trained(run), read_index([heldout]), clips, 20, encoder_of(heldout))
        path.write_text(json.dumps(scores))
    return dict(json.loads(path.read_text()))


def table(rows: dict[str, list[dict[str, float]]], clips: dict[str, str]) -> str:
    """Return a table of means and standard deviations over the seeds, of both arms and of their paired differences."""
    real = rows["kept"][0]
    lines = [f"| held out: {clips['heldout']} | all: {clips['all']} | kept: {clips['kept']} | kept - all | real |"]
    lines.append("|---" * 5 + "|")
    for name in SCORES:
        a, b = ([row[name] for row in rows[arm]] for arm in ARMS)
        beside = real.get(name.replace("sampled", "real")) if name != "loss" else None
        cells = [spread(a), spread(b), spread([y - x for x, y in zip(a, b, strict=True)])]
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if beside is None else f'{beside:.4f}'} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


if __name__ == "__main__":
    sys.exit(main())
