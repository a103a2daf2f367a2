"""Trains the two networks of `shots: cascade` and writes them into pipeline/shots/shots.npz.

    python tests/benchmarks/shots/train_shots.py WEB --packages FOLDER... [--keep-first | --folds] [--out FILE]

WEB is a folder of labelled clips, the folders of --packages hold unpacked packages: shot_examples.py lists the footage
and its licences. The first network sees about 12 frames a second and says where transitions are (cascade.py); it is the
mean of two that differ in their initial weights. The second places the boundaries of transitions (refine.py). The same
footage gives the same bytes on one machine. All examples and weights are kept in --cache.

--folds writes nothing. It trains without each of FOLDS in turn and judges the result on those groups' clips and on
films of their shots (shot_score.py), as scans would see them; last come the shipped weights on the sources that are in
no group. Every constant of the detector was chosen while looking at the latter.

Footage and licences (PACKAGES and GROUPS in shot_examples.py): 142 pieces of published packages under Apache-2.0, MIT
and BSD licences, and 32 labelled web shots under Apache-2.0, BSD, CC-BY-4.0 and MIT licences. Of packages, test films
have the same pieces as training films; of labelled clips they never do.

The weights in the repository are those of --keep-first: the second network is trained by this script, the first is
older. It was trained once on about 220 films of the same footage by an earlier form of this script, without parts of
films that start like files, labelled clips as they are, varied films, mixed frames at cuts, and cropping of bars, in
3,500 steps. What this script trains is
not better everywhere: at lowest probabilities LIKELY 0.75 and CERTAIN 0.85 (blend.py; chosen on films of a group left
out) no single-shot clip of 62 has a false transition either, and on films of sources in no group F1, purity and
footage kept are 0.979, 0.982, 0.936 (older: 0.973, 0.973, 0.932), but with much motion 0.924, 0.848, 0.934 (older:
0.954, 0.916, 0.920), and of 126 cuts in edited clips it finds one less.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[2] / "support"), str(Path(__file__).parent)]

from labelled_clips import LabelledClip  # noqa: E402
from real_shots import Clips, Spans  # noqa: E402
from shot_examples import (  # noqa: E402
    GROUPS,
    Footage,
    Limits,
    Moments,
    analysed,
    joined_film,
    kept,
    licensed,
    small,
    trained_on,
)
from shot_score import HEADER, Score  # noqa: E402
from shots_accuracy import frame_at  # noqa: E402

from pipeline.media.proxy import Proxy  # noqa: E402
from pipeline.shots import refine  # noqa: E402
from pipeline.shots.cascade import DILATIONS, Cascade  # noqa: E402
from pipeline.shots.frame_features import FEATURES  # noqa: E402
from pipeline.shots.shot_weights import weights  # noqa: E402

SHIPPED = Path(__file__).parents[3] / "pipeline" / "shots" / "shots.npz"
SAVE_EVERY = 250  # steps between two checkpoints of the first network
MEMBERS, WIDTH = 2, 48  # the first network is the mean of so many networks; channels of each
FOLDS = ((1,), (0, 4), (2, 3))  # groups of sources that are left out together
LENGTH, BATCH = 160, 24  # moments of a training sequence, and sequences of a step
QUANTILE = 0.93  # how often the first network's limits must not lie further in than true ones
NEAR = 12  # ticks: moments further inside a transition say nothing of a limit
LIMIT_STEPS = 2500  # training steps of the second network
JUDGED = range(900, 906)  # seeds of the films that a fold is judged on
Arrays = dict[str, np.ndarray]


class Net(nn.Module):
    """The network of pipeline.shots.shot_weights.logits, to be trained. (b, inputs, n) -> (b, outputs, n)."""

    def __init__(self, inputs: int, width: int, dilations: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(inputs, width, 1)
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=d, padding=d) for d in dilations)
        self.last = nn.Conv1d(width, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.first(x))
        for block in self.blocks:
            x = x + functional.relu(block(functional.dropout(x, 0.1, self.training)))
        return self.last(x)

    def arrays(self, mean: np.ndarray, deviation: np.ndarray, prefix: str) -> Arrays:
        """Weights by the names of `logits`; the standardisation of the inputs goes into the first layer."""
        state = {name.replace(".", "_"): value.detach().numpy() for name, value in self.state_dict().items()}
        weight = state["first_weight"][:, :, 0] / deviation
        state |= {"first_bias": state["first_bias"] - weight @ mean, "first_weight": weight[:, :, None]}
        return {prefix + name: value.astype(np.float32) for name, value in state.items()}


def limit_loss(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """The pinball loss of QUANTILE, in ticks, over moments in a transition; the nearer a limit, the more it counts."""
    near = true <= NEAR  # NaN is not
    true = torch.where(near, true, predicted.detach())
    short = true - predicted
    weight = near / (1 + true.abs())
    return (torch.maximum(QUANTILE * short, (QUANTILE - 1) * short) * weight).sum() / weight.sum().clamp(min=1)


def train_moments(examples: Sequence[Moments], steps: int, member: int, checkpoint: Path) -> Arrays:
    """Weights of one member of the first network, by the names of cascade.judge. An interrupted run continues from
    `checkpoint`."""
    sample = np.concatenate([x[::4] for x, _ in examples]).astype(np.float32)
    mean, deviation = sample.mean(axis=0), sample.std(axis=0) + 1e-3
    inputs = torch.from_numpy(np.concatenate([((x - mean) / deviation).astype(np.float16) for x, _ in examples]))
    targets = torch.from_numpy(np.concatenate([y for _, y in examples]))
    torch.manual_seed(member)
    net = Net(FEATURES, WIDTH, DILATIONS, 4)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    positive = torch.tensor([[2.0], [1.0]])
    parts: dict[str, Any] = {"net": net, "optimizer": optimizer, "schedule": schedule}
    begin, loss = 0, torch.zeros(())
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        begin = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for step in range(begin, steps):
        if step % SAVE_EVERY == 0 and step > begin:
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"step": step, **state}, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            print(f"  {checkpoint.stem} step {step}: loss {loss.item():.4f}", flush=True)
        torch.manual_seed(step * MEMBERS + member)  # the same batches and dropout after an interruption
        random = np.random.default_rng(step * MEMBERS + member)
        starts = random.integers(len(inputs) - LENGTH + 1, size=BATCH)
        x = torch.stack([inputs[a : a + LENGTH] for a in starts]).float().transpose(1, 2)
        y = torch.stack([targets[a : a + LENGTH] for a in starts]).transpose(1, 2)
        predicted = net(x)
        loss = functional.binary_cross_entropy_with_logits(predicted[:, :2], y[:, :2], pos_weight=positive)
        loss += 0.1 * limit_loss(predicted[:, 2:], y[:, 2:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.arrays(mean, deviation, "")


def side_by_side(members: Sequence[Arrays]) -> Arrays:
    """The network whose outputs are the means of the members' outputs: their channels beside each other."""
    widths = [len(member["first_bias"]) for member in members]
    whole = {name: np.concatenate([m[name] for m in members]) for name in members[0] if not name.startswith("last")}
    for index in range(len(DILATIONS)):
        kernel = np.zeros((sum(widths), sum(widths), 3), np.float32)
        for member, width, end in zip(members, widths, np.cumsum(widths), strict=True):
            kernel[end - width : end, end - width : end] = member[f"blocks_{index}_weight"]
        whole[f"blocks_{index}_weight"] = kernel
    whole["last_weight"] = np.concatenate([m["last_weight"] for m in members], axis=1) / len(members)
    whole["last_bias"] = np.mean([m["last_bias"] for m in members], axis=0)
    return whole


def trained(footage: Footage, without: Sequence[int], films: int, steps: int) -> Arrays:
    """Return the weights of both networks, trained on all groups but some, from the cache if they are there; without
    `steps` of the first network those of the shipped one."""
    groups = [group for group in (None, *range(len(GROUPS))) if group not in without]
    sources = [(group, seed) for group in groups for seed in range(films)]
    limits = [footage.limits(group, seed) for group, seed in sources]
    key = [content_hash(limits), inspect.getsource(train_limits), inspect.getsource(Net)]
    second = kept(footage.cache, "networks", key, partial(train_limits, limits, LIMIT_STEPS))
    if not steps:
        return weights() | second
    moments = [pair for group, seed in sources for pair in footage.moments(group, seed)]
    moments += [pair for group in groups for pair in footage.files(group)]
    content, code = content_hash(moments), [inspect.getsource(train_moments), inspect.getsource(Net)]
    members = []
    for member in range(MEMBERS):
        checkpoint = footage.cache / f"checkpoint-{content[:16]}-{steps}-{member}.pt"
        make = partial(train_moments, moments, steps, member, checkpoint)
        members.append(kept(footage.cache, "networks", [content, steps, member, *code], make))
    return side_by_side(members) | second


def content_hash(examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    content = hashlib.sha256()
    for pair in examples:
        for array in pair:
            content.update(array.tobytes())
    return content.hexdigest()


def train_limits(examples: Sequence[Limits], steps: int) -> Arrays:
    """Weights of the second network, by the names of refine.shift: whether a transition has started, 0 to 1."""
    inputs = np.concatenate([x for x, _ in examples])
    away = refine.AROUND - np.concatenate([y for _, y in examples])[:, None]  # seconds from its first frame
    mean, deviation = inputs.mean(axis=(0, 1)), inputs.std(axis=(0, 1)) + 0.01
    x = torch.from_numpy((inputs - mean) / deviation).transpose(1, 2)
    target = torch.from_numpy((away / refine.STEP + 1).clip(0, 1).astype(np.float32))
    weight = torch.from_numpy((1 / (1 + np.abs(away) / (2 * refine.STEP))).astype(np.float32))
    torch.manual_seed(0)
    net = Net(refine.INPUTS, refine.WIDTH, refine.DILATIONS, 1)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        loss = functional.binary_cross_entropy_with_logits(net(x[rows])[:, 0], target[rows], weight=weight[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.arrays(mean, deviation, "limits_")


_footage: list[Footage] = []


def _film(group: int | None, seed: int, steps: int) -> None:
    """Put the examples of a film into the cache."""
    _footage[0].limits(group, seed)
    if steps:
        _footage[0].moments(group, seed)


def _trained(without: Sequence[int], films: int, steps: int) -> Arrays:
    return trained(_footage[0], without, films, steps)


def detected(times: np.ndarray, colour: np.ndarray, fps: float, seed: int) -> Spans:
    """The cascade's transitions, where a decoder gives reference frames first and others around cuts."""
    proxies = [Proxy(i, float(time), frame) for i, (time, frame) in enumerate(zip(times, colour, strict=True))]
    detector = Cascade(fps, lambda after, before: [p for p in proxies if after < p.time < before])
    chosen = analysed(len(proxies), np.random.default_rng(seed)) if fps >= 20 else range(len(proxies))
    transitions = [t for i in chosen for t in detector.push(proxies[i])]
    return [(t.leave, t.enter) for t in [*transitions, *detector.finish()]]


def judge(
    footage: Footage, clips: Iterable[LabelledClip], pool: Sequence[np.ndarray], counts: Clips, score: Score
) -> None:
    """Add what the weights in use find in clips and in films of the pieces of a pool."""
    for clip in clips:
        times, colour = footage.proxies(clip)
        fps = (len(times) - 1) / max(float(times[-1]), 1e-3)
        counts.add(clip, detected(times, colour, fps, 0))
    for seed in JUDGED if len(pool) > 1 else ():
        film = small(joined_film(list(pool), [], seed))
        times = np.arange(len(film.frames)) / film.fps
        spans = [(frame_at(a, times), frame_at(b, times)) for a, b in detected(times, film.frames, film.fps, seed)]
        score.add(film, [span for span in spans if span[0] > 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("web", type=Path)
    parser.add_argument("--packages", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--keep-first", action="store_true", help="train the second network only")
    either.add_argument("--folds", action="store_true", help="judge without each group of sources; write nothing")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "clipmill-shots")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--films", type=int, default=30, help="films of each group")
    parser.add_argument("--steps", type=int, default=3500, help="of each member of the first network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    footage = Footage(options.web, options.packages, options.cache)
    groups: list[int | None] = [None, *range(len(GROUPS))]
    steps = 0 if options.keep_first else options.steps
    tasks = [(group, seed, steps) for group in groups for seed in range(options.films)]
    labelled = sum(len(footage.group(group)) for group in range(len(GROUPS)))
    print(f"{len(footage.packages)} pieces of packages, {labelled} of groups, {len(tasks)} films", flush=True)
    without: list[tuple[int, ...]] = list(FOLDS) if options.folds else [()]
    _footage.append(footage)  # processes that are forked now have it
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        pool.starmap(_film, tasks, chunksize=4)
        results = pool.starmap(_trained, [(fold, options.films, steps) for fold in without], chunksize=1)
    if not options.folds:
        np.savez_compressed(options.out, **results[0])
        print("wrote", options.out, options.out.stat().st_size, "bytes")
        return
    shipped = dict(weights())
    counts, score = Clips(), Score()
    for fold, arrays in zip(without, results, strict=True):
        weights().update(arrays)
        for group in fold:
            clips = [clip for clip in footage.clips if clip.source in GROUPS[group] and licensed(clip)]
            judge(footage, clips, footage.group(group), counts, score)
    print_judged("sources left out in turn", counts, score)
    weights().update(shipped)
    others = [clip for clip in footage.clips if not trained_on(clip)]
    counts, score = Clips(), Score()
    judge(footage, others, [piece for clip in others for piece in footage.pieces_of(clip)], counts, score)
    print_judged("sources in no group", counts, score)


def print_judged(name: str, counts: Clips, score: Score) -> None:
    print(f"{'':26} single  split  gradual  edited  cuts  prec. recall     F1  gradual found")
    print(f"{name:26} {counts.row()}")
    print(f"{'films of ' + name:33} {HEADER}")
    print(f"{'':33} {score.row()}")
    print(score.breakdown())
    print("  " + "; ".join(counts.misses), flush=True)


if __name__ == "__main__":
    main()
