"""Trains the two networks of `shots: cascade` and writes them into pipeline/shots/shots.npz.

    python tests/benchmarks/shots/train_shots.py WEB --packages FOLDER... [--folds] [--out FILE] [--processes 2]

WEB is a folder of labelled clips, the folders of --packages hold unpacked packages: shot_examples.py lists the footage
and its licences. The first network sees about 12 frames a second and says where transitions are (cascade.py); the
second places the boundaries of gradual ones (refine.py). The same footage gives the same bytes on one machine.

--folds writes nothing. It trains without each group of sources in turn and judges the result on that group's clips and
on films of their shots (Score in shots_accuracy.py), as scans would see them; last come the shipped weights on the
sources that are in no group. Every constant of the detector was chosen while looking at the latter.

Footage and licences (PACKAGES and GROUPS in shot_examples.py): 142 pieces of published packages under Apache-2.0, MIT
and BSD licences, and 32 labelled web shots under Apache-2.0, BSD, CC-BY-4.0 and MIT licences.

The second network in the repository is of this script with --films 40. The first one is of an earlier form of it with
the same footage: a run of this form (--films 40 --steps 6000) was worse on labelled clips (8 of 35 single shots with a
false transition at the start, where the older has 0), so it is not used.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[2] / "support"), str(Path(__file__).parent)]

from labelled_clips import LabelledClip  # noqa: E402
from real_shots import Clips, Found  # noqa: E402
from shot_examples import GROUPS, Footage, Limits, Moments, analysed, joined_film, kept, licensed, small  # noqa: E402
from shots_accuracy import Score, frame_at  # noqa: E402

from pipeline.media.proxy import Proxy  # noqa: E402
from pipeline.shots import refine  # noqa: E402
from pipeline.shots.cascade import DILATIONS, WIDTH, Cascade  # noqa: E402
from pipeline.shots.frame_features import FEATURES  # noqa: E402
from pipeline.shots.shot_weights import weights  # noqa: E402

SHIPPED = Path(__file__).parents[3] / "pipeline" / "shots" / "shots.npz"
SAVE_EVERY = 250  # steps between two checkpoints of the first network
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


def train_moments(examples: Sequence[Moments], steps: int, checkpoint: Path) -> Arrays:
    """Weights of the first network, by the names of cascade.judge. An interrupted run continues from `checkpoint`."""
    examples = [pair for pair in examples if len(pair[0]) >= LENGTH]
    sample = np.concatenate([x[::4] for x, _ in examples]).astype(np.float32)
    mean, deviation = sample.mean(axis=0), sample.std(axis=0) + 1e-3
    inputs = [torch.from_numpy((x.astype(np.float32) - mean) / deviation).half() for x, _ in examples]
    targets = [torch.from_numpy(y) for _, y in examples]
    torch.manual_seed(0)
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
        torch.manual_seed(step)  # the same batches and dropout after an interruption
        random = np.random.default_rng(step)
        rows = random.integers(len(inputs), size=BATCH)
        starts = [int(random.integers(len(inputs[i]) - LENGTH + 1)) for i in rows]
        x = torch.stack([inputs[i][a : a + LENGTH] for i, a in zip(rows, starts, strict=True)]).float().transpose(1, 2)
        y = torch.stack([targets[i][a : a + LENGTH] for i, a in zip(rows, starts, strict=True)]).transpose(1, 2)
        predicted = net(x)
        loss = functional.binary_cross_entropy_with_logits(predicted[:, :2], y[:, :2], pos_weight=positive)
        loss += 0.1 * limit_loss(predicted[:, 2:], y[:, 2:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.arrays(mean, deviation, "")


def trained(footage: Footage, without: int | None, films: int, steps: int) -> Arrays:
    """Return the weights of both networks, trained on all groups but one, from the cache if they are there."""
    moments = [pair for group, seed in sources(without, films) for pair in footage.moments(group, seed)]
    key = [content_hash(moments), steps, inspect.getsource(train_moments), inspect.getsource(Net)]
    checkpoint = footage.cache / f"checkpoint-{without}-{films}-{steps}.pt"
    first = kept(footage.cache, "networks", key, lambda: train_moments(moments, steps, checkpoint))
    limits = [footage.limits(group, seed) for group, seed in sources(without, films)]
    key = [content_hash(limits), inspect.getsource(train_limits), inspect.getsource(Net)]
    return dict(first) | kept(footage.cache, "networks", key, lambda: train_limits(limits, LIMIT_STEPS))


def content_hash(examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    content = hashlib.sha256()
    for pair in examples:
        for array in pair:
            content.update(array.tobytes())
    return content.hexdigest()


def sources(without: int | None, films: int) -> Iterator[tuple[int | None, int]]:
    """Groups and seeds of the films that are trained on."""
    for group in (None, *range(len(GROUPS))):
        if group is None or group != without:
            yield from ((group, seed) for seed in range(films))


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


def _film(group: int | None, seed: int) -> None:
    """Put the examples of a film into the cache."""
    _footage[0].moments(group, seed)
    _footage[0].limits(group, seed)


def _trained(without: int | None, films: int, steps: int) -> Arrays:
    return trained(_footage[0], without, films, steps)


def detected(times: np.ndarray, colour: np.ndarray, fps: float, seed: int) -> Found:
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
    parser.add_argument("--folds", action="store_true", help="judge without each group of sources; write nothing")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "clipmill-shots")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--films", type=int, default=40, help="films of each group")
    parser.add_argument("--steps", type=int, default=6000, help="of the first network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    footage = Footage(options.web, options.packages, options.cache)
    groups: list[int | None] = [None, *range(len(GROUPS))]
    tasks = [(group, seed) for group in groups for seed in range(options.films)]
    labelled = sum(len(footage.group(group)) for group in range(len(GROUPS)))
    print(f"{len(footage.packages)} pieces of packages, {labelled} of groups, {len(tasks)} films", flush=True)
    without: list[int | None] = [*range(len(GROUPS))] if options.folds else [None]
    _footage.append(footage)  # processes that are forked now have it
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        pool.starmap(_film, tasks, chunksize=4)
        results = pool.starmap(_trained, [(group, options.films, options.steps) for group in without], chunksize=1)
    if not options.folds:
        np.savez_compressed(options.out, **results[0])
        print("wrote", options.out, options.out.stat().st_size, "bytes")
        return
    shipped = dict(weights())
    counts, score = Clips(), Score()
    for group, arrays in zip(without, results, strict=True):
        weights().update(arrays)
        clips = [clip for clip in footage.clips if clip.source in GROUPS[group] and licensed(clip)]
        judge(footage, clips, footage.group(group), counts, score)
    print_judged("sources left out in turn", counts, score)
    weights().update(shipped)
    others = [clip for clip in footage.clips if not (licensed(clip) and any(clip.source in group for group in GROUPS))]
    counts, score = Clips(), Score()
    judge(footage, others, [piece for clip in others for piece in footage.pieces_of(clip)], counts, score)
    print_judged("sources in no group", counts, score)


def print_judged(name: str, counts: Clips, score: Score) -> None:
    print(f"{'':26} single  split  gradual  edited  cuts  prec. recall     F1  gradual found")
    print(f"{name:26} {counts.row()}")
    print(f"{'films of ' + name:33}     F1  prec. recall  gradual  purity   kept  joins  clips")
    print(f"{'':33} {score.row()}")
    print("  " + "; ".join(counts.misses), flush=True)


if __name__ == "__main__":
    main()
