"""Does curation pay: one model with the same tokens on a noisy corpus, and on what the default recipe keeps of it.

    python tests/benchmarks/training/curation_effect.py prepare FOOTAGE FOLDER [--cache FOLDER]
    python tests/benchmarks/training/curation_effect.py train FOLDER/data.safetensors OUT [--seconds 420]     # on a GPU
    python tests/benchmarks/training/curation_effect.py measure FOLDER OUT         # here: the tables

FOOTAGE is the labelled footage of noisy_footage.py, which plants the junk. Arms, each a set of clips of the corpus:

- raw: all. kept: what the recipe `embedded` keeps. clean: what is neither planted junk nor has a wrong caption.
- part~kept, part~clean: clips of raw drawn at random, other ones for each seed, until they have as many windows as that
  arm. Clips that curation keeps are worth more than others if kept has a lower loss than part~kept.
- kept+REASON: kept, and what is rejected for that reason alone. It costs if its loss is lower than that of kept.
- raw-JUNK: all but one kind of junk. That junk harms if its loss is lower than that of raw.

All runs have the same model, steps and batch; three seeds each. Losses are on windows of held-out footage labelled
clean, of other sources, at fixed noise and times. Latents are principal components fitted on all clips, captions are
encoded by MiniLM. `train` needs torch and safetensors alone. Intervals are of 2,000 bootstrap draws of held-out files,
over the mean of the seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from curation_arms import arms_of, windows_of

from model.network.dit import SIZES, DiT
from model.objective import LINEAR, loss_per_sample, noisy, sample_time
from model.sampler import guided, sample
from model.training.optimise import clipped_step, global_norm, make_optimizer, update_ema

ROOT = Path(__file__).resolve().parents[3]
FRAMES, SIDE, FPS = 9, 128, 8.0  # of a window; pixels; frames a second
HOP, MOST = 0.5, 12  # seconds between the starts of two windows of a clip, and windows of a clip
WORDS = 24  # tokens of a caption
STEPS, BATCH, EVERY, WARMUP = 800, 24, 100, 50
TIMES = tuple((i + 0.5) / 8 for i in range(8))  # at which held-out loss is measured
SAMPLES = 12  # held-out captions that are sampled from
MAIN = ("raw", "kept", "clean", "part~kept", "part~clean")


def prepare(footage: Path, folder: Path, cache: Path) -> None:
    """Plant junk, score all files as real_footage.py does (results are kept in `cache`), select by the recipe
    `embedded`, and write the latents, captions and arms to data.safetensors."""
    for folder_of_modules in ("benchmarks/training", "benchmarks/filters", "support"):
        sys.path.insert(1, str(ROOT / "tests" / folder_of_modules))
    import pyarrow as pa
    from footage_cache import looks, scanned_file
    from noisy_footage import JUNK, write_footage

    from filters import filter_of
    from model.latents.base import to_signed
    from model.latents.pca import PCA
    from model.text import HiddenStates
    from pipeline.config.recipe import load_recipe
    from pipeline.media.clip_reader import read_frames
    from pipeline.selection.select import select

    recipe = load_recipe("embedded")
    judged = {filter_of(column) for column in recipe.select.thresholds}
    fewer = dataclasses.replace(recipe, filters={name: v for name, v in recipe.filters.items() if name in judged})
    training, heldout = write_footage(footage, folder / "planted")
    clips: list[dict[str, Any]] = []
    for row in training:
        root = footage if row["junk"] not in JUNK else folder / "planted"
        name, by = str(Path(row["file"]).relative_to(root)), fewer if row["junk"] in JUNK else recipe
        scanned, pictures = scanned_file(root, name, by, cache), looks(root, name, by, cache)
        nothing: dict[str, Any] = {"phash": [], "embedding": None}
        clips += [
            {**clip, **pictures.get(clip["clip_id"], nothing), **row, "first": scanned.start} for clip in scanned.clips
        ]
        print(f"{len(clips)} clips, {name}", flush=True)
    ids: dict[str, int] = {}
    for number, clip in enumerate(clips):  # the same file may be in the corpus twice
        clip["clip_id"] = f"{clip['clip_id']}-{ids.setdefault(clip['clip_id'], number)}"
    kinds = {"phash": pa.list_(pa.uint64()), "embedding": pa.list_(pa.float32())}
    apart = {"caption", "first", *kinds}
    table = pa.Table.from_pylist([{k: v for k, v in clip.items() if k not in apart} for clip in clips])
    for name, column_type in kinds.items():
        table = table.append_column(name, pa.array([clip[name] for clip in clips], column_type))
    reasons = [sorted(set(why)) for why in select(table, recipe, captioned=False)["rejected_by"].to_pylist()]
    usable = [i for i, clip in enumerate(clips) if clip["dropped"] is None]
    text = HiddenStates("minilm", WORDS)
    parts = {
        "all": [
            (clips[i]["file"], clips[i]["start"] - clips[i]["first"], clips[i]["end"] - clips[i]["start"])
            for i in usable
        ],
        "heldout": [],
    }
    for row in heldout:
        scanned = scanned_file(footage, row["source"], recipe, cache)
        parts["heldout"] += [
            (row["file"], clip["start"] - scanned.start, clip["end"] - clip["start"], row["caption"])
            for clip in scanned.clips
            if clip["dropped"] is None
        ]
    captions = {
        "all": [clips[i]["caption"] for i in usable],
        "heldout": [each[3] for each in parts["heldout"]],
    }
    tensors: dict[str, torch.Tensor] = {}
    described: dict[str, Any] = {"rejected": [[clip["junk"], why] for clip, why in zip(clips, reasons, strict=True)]}
    latents: PCA | None = None
    for part, spans in parts.items():
        numbers, videos = [], []
        for i, (file_name, start, seconds, *_) in enumerate(spans):
            kept = folder / "windows" / f"{part}-{i}.npy"
            if not kept.exists():
                kept.parent.mkdir(exist_ok=True)
                data, starts = Path(file_name).read_bytes(), np.arange(0, seconds - FRAMES / FPS + 1e-6, HOP)[:MOST]
                times = (start + starts[:, None] + np.arange(FRAMES) / FPS).ravel()
                np.save(kept, read_frames(data, times, SIDE, SIDE).reshape(-1, FRAMES, SIDE, SIDE, 3))
            windows = torch.from_numpy(np.load(kept))
            numbers += [i] * len(windows)
            videos += list(windows)
        print(f"{part}: {len(spans)} clips, {len(videos)} windows", flush=True)
        latents = latents or PCA.fit(lambda videos=videos: (to_signed(v[None]) for v in videos), 16)
        tensors[f"{part}.latents"] = torch.cat([latents.encode(to_signed(v[None])) for v in videos]).half()
        tensors[f"{part}.clip"] = torch.tensor(numbers)
        tensors[f"{part}.words"] = text(captions[part])["text"].half()
        described[part] = {"files": [span[0] for span in spans], "captions": captions[part]}
    assert latents is not None
    tensors |= {f"pca.{name}": tensor for name, tensor in latents.tensors.items() if name != "scale"}
    tensors["empty"] = text([""])["text"].half()
    arms = arms_of([clips[i]["junk"] for i in usable], [reasons[i] for i in usable])
    metadata = {"arms": json.dumps(arms), "described": json.dumps(described)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "data.safetensors", metadata=metadata)
    for name, clips_of_arm in arms.items():
        print(f"{name}: {sum(clips_of_arm)} clips")


def train(data: Path, out: Path, seconds: float, parallel: int) -> None:
    """Run all arms, several at a time in processes of their own, the main ones first; results are files in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with safe_open(data, "pt") as file:
        arms = json.loads(file.metadata()["arms"])
    jobs = [(arm, seed) for seed in range(3) for arm in MAIN]
    jobs += [(arm, seed) for seed in range(3) for arm in arms if arm not in MAIN]
    began, running = time.monotonic(), list[subprocess.Popen[bytes]]()
    devices = itertools.cycle(range(torch.cuda.device_count()))
    script = str(Path(__file__).resolve())
    for arm, seed in jobs:
        if (out / f"{arm}-{seed}.json").exists():
            continue
        while len(running) >= parallel:
            running = [process for process in running if process.poll() is None]
            time.sleep(0.2)
        if time.monotonic() - began > seconds:
            break
        device = {"CUDA_VISIBLE_DEVICES": str(next(devices))} if torch.cuda.is_available() else {}
        command = [sys.executable, script, "one", str(data), str(out), arm, str(seed)]
        running.append(subprocess.Popen(command, env={**os.environ, **device}))
    for process in running:
        process.wait()
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*-?.json"))]
    (out / "results.json").write_text(json.dumps(results))
    saved = {
        path.stem: load_file(path)["samples"] for path in sorted(out.glob("*.safetensors")) if path.stem != "samples"
    }
    save_file(saved, out / "samples.safetensors")
    print(f"{len(results)} of {len(jobs)} runs, {time.monotonic() - began:.0f} s", flush=True)


def train_one(data: Path, out: Path, arm: str, seed: int) -> None:
    """Train one model, measure it on the way, and sample from a model of a main arm."""
    cuda = torch.cuda.is_available()
    device, size, steps = torch.device("cuda" if cuda else "cpu"), "S" if cuda else "tiny", STEPS if cuda else 4
    tensors = {name: tensor.to(device) for name, tensor in load_file(data).items()}
    with safe_open(data, "pt") as file:
        members = windows_of(arm, seed, json.loads(file.metadata()["arms"]), tensors["all.clip"].cpu()).to(device)
    torch.manual_seed(seed)
    x_all, words_all, empty = tensors["all.latents"], tensors["all.words"].float(), tensors["empty"].float()
    model = DiT(SIZES[size], x_all.shape[1], words_all.shape[2]).to(device)
    ema = {name: p.detach().clone() for name, p in model.named_parameters()}
    config: Any = SimpleNamespace(
        lr=5e-4, beta2=0.95, weight_decay=0.01, time="logit_normal", time_mean=0.0, time_std=1.0, time_range=(0.0, 1.0)
    )
    optimizer = make_optimizer(list(model.parameters()), config)
    generator = torch.Generator(device).manual_seed(1000 + seed)
    curve: list[list[float]] = []
    began = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / WARMUP)
        drawn = members[torch.randint(len(members), (BATCH,), generator=generator, device=device)]
        x0, words = x_all[drawn].float(), words_all[tensors["all.clip"][drawn]]
        order = torch.rand(BATCH, generator=generator, device=device).double()
        quantiles = (torch.arange(BATCH, device=device) + order) / BATCH
        t = sample_time(quantiles, config, 1.0)[:, None].expand(-1, x0.shape[2])
        keep = torch.rand(BATCH, 1, 1, generator=generator, device=device) >= 0.1
        noise = torch.randn(x0.shape, generator=generator, device=device)
        x, target = noisy(x0, noise, t, LINEAR)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = loss_per_sample(model(x, t, torch.where(keep, words, empty)), target, torch.ones_like(t)).mean()
        loss.backward()
        norm = global_norm(list(model.parameters()))
        clipped_step(optimizer, norm, torch.full_like(norm, 1.0))
        update_ema(ema, model, min(0.995, (1 + step) / (10 + step)))
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            curve.append(held_out(model, ema, tensors))
    result = {"arm": arm, "seed": seed, "windows": len(members), "losses": curve, "seconds": time.monotonic() - began}
    if arm in MAIN:
        save_file({"samples": sampled(model, ema, tensors, cuda)}, out / f"{arm}-{seed}.safetensors")
    (out / f"{arm}-{seed}.json").write_text(json.dumps(result))
    print(f"{arm} {seed}: {len(members)} windows, loss {np.mean(curve[-1]):.4f}, {result['seconds']:.0f} s", flush=True)


@torch.no_grad()
def held_out(model: DiT, ema: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> list[float]:
    """Return the moving average's loss on each held-out window, mean over TIMES, with the same noise in all runs."""
    x0, words = tensors["heldout.latents"].float(), tensors["heldout.words"].float()[tensors["heldout.clip"]]
    losses = torch.zeros(len(x0), device=x0.device)
    for i, at in enumerate(TIMES):
        noise = torch.randn(x0.shape, generator=torch.Generator(x0.device).manual_seed(i), device=x0.device)
        t = torch.full((len(x0), x0.shape[2]), at, device=x0.device)
        x, target = noisy(x0, noise, t, LINEAR)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=x0.is_cuda):
            parts = [
                torch.func.functional_call(model, ema, (x[s], t[s], words[s]))
                for s in torch.arange(len(x0), device=x0.device).split(64)
            ]
        losses += loss_per_sample(torch.cat(parts), target, torch.ones_like(t)) / len(TIMES)
    return losses.tolist()


@torch.no_grad()
def sampled(model: DiT, ema: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], cuda: bool) -> torch.Tensor:
    """Latents (SAMPLES, c, t, h, w) half from the first held-out captions, with noise that is the same in every run."""
    device = tensors["empty"].device
    count = min(SAMPLES, len(tensors["heldout.words"]))
    words, empty = {"text": tensors["heldout.words"][:count].float()}, {"text": tensors["empty"].float()}

    def network(x: torch.Tensor, t: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            return torch.func.functional_call(model, ema, (x, t, w["text"]))

    noise = torch.randn(count, *tensors["all.latents"].shape[1:], generator=torch.Generator().manual_seed(0)).to(device)
    return sample(guided(network, words, empty, 2.0), noise, words, 30 if cuda else 2).half().cpu().contiguous()


def measure(folder: Path, out: Path) -> None:
    """Print what the recipe did with the junk, the held-out losses, and the measures of samples."""
    from filters.encoders.base import load_encoder
    from model.evaluation.measures import consistency, look
    from model.latents.base import to_bytes
    from model.latents.pca import PCA

    tensors = load_file(folder / "data.safetensors")
    with safe_open(folder / "data.safetensors", "pt") as file:
        described = json.loads(file.metadata()["described"])
    results = json.loads((out / "results.json").read_text())
    print("| in the corpus | clips | rejected | reasons |\n|---|---|---|---|")
    for name in sorted({junk for junk, _ in described["rejected"]}):
        why = [reasons for junk, reasons in described["rejected"] if junk == name]
        counts = {reason: sum(reason in each for each in why) for reason in sorted({r for each in why for r in each})}
        listed = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        print(f"| {name} | {len(why)} | {sum(map(bool, why))} | {listed} |")
    held = described["heldout"]["files"]
    files = np.unique([held[i] for i in tensors["heldout.clip"].tolist()], return_inverse=True)[1]
    losses = {
        arm: np.array([row["losses"] for row in results if row["arm"] == arm])  # (seeds, points, windows)
        for arm in dict.fromkeys(row["arm"] for row in results)
    }
    print(
        "\n| arm | runs | windows | loss at the end | lowest on the way | less raw | less kept |\n" + "|---" * 7 + "|"
    )
    for arm, values in losses.items():
        windows = next(row["windows"] for row in results if row["arm"] == arm)
        final, lowest = values[:, -1].mean(0), values.mean(2).min(1).mean()
        against = [interval(final - losses[other][:, -1].mean(0), files) for other in ("raw", "kept")]
        print(
            f"| {arm} | {len(values)} | {windows} | {final.mean():.4f} | {lowest:.4f} | {against[0]} | {against[1]} |"
        )
    pca = PCA({name.removeprefix("pca."): t for name, t in tensors.items() if name.startswith("pca.")})
    encoder, captions = load_encoder(name="conse"), described["heldout"]["captions"]
    saved = load_file(out / "samples.safetensors")
    scores: dict[str, list[list[dict[str, float]]]] = {}
    for name, latents in saved.items():
        videos = [to_bytes(pca.decode(each[None].float()))[0].numpy() for each in latents]
        texts = [[captions[i], *(c for c in captions if c != captions[i])] for i in range(len(videos))]
        rows = [consistency(v) | look(v, t, encoder) for v, t in zip(videos, texts, strict=True)]
        scores.setdefault(name.rpartition("-")[0], []).append(rows)
    print("\n| of samples | " + " | ".join(scores) + " | kept less raw |\n" + "|---" * (len(scores) + 2) + "|")
    for key in ("motion", "warp", "flicker", "same", "text"):
        means = {arm: np.array([[row[key] for row in run] for run in runs]).mean(0) for arm, runs in scores.items()}
        difference = interval(means["kept"] - means["raw"], np.arange(len(means["raw"])))
        print(f"| {key} | " + " | ".join(f"{m.mean():.4f}" for m in means.values()) + f" | {difference} |")


def interval(values: np.ndarray, groups: np.ndarray) -> str:
    """Return the mean of `values` and its 95% bootstrap interval, with whole groups drawn with replacement."""
    rng, count = np.random.default_rng(0), int(groups.max()) + 1
    sums, sizes = np.bincount(groups, values, count), np.bincount(groups, minlength=count)
    draws = rng.integers(count, size=(2000, count))
    low, high = np.quantile(sums[draws].sum(1) / sizes[draws].sum(1), [0.025, 0.975])
    return f"{values.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["prepare", "train", "one", "measure"])
    parser.add_argument("words", nargs="+")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/clipmill-real-footage"), help="of real_footage.py")
    parser.add_argument("--seconds", type=float, default=420, help="start no run after this time")
    parser.add_argument("--parallel", type=int, default=6, help="runs at a time")
    args = parser.parse_args()
    paths = [Path(word) for word in args.words[:2]]
    if args.stage == "prepare":
        prepare(*paths, args.cache)
    elif args.stage == "train":
        train(*paths, args.seconds, args.parallel)
    elif args.stage == "one":
        train_one(*paths, args.words[2], int(args.words[3]))
    else:
        measure(*paths)


if __name__ == "__main__":
    main()
