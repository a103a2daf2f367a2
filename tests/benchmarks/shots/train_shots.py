"""Trains the two networks of `shots: cascade` and writes them into pipeline/shots/shots.npz.

    python tests/benchmarks/shots/train_shots.py WEB --packages FOLDER... [--folds] [--out FILE] [--processes 2]

WEB is a folder of labelled clips, the folders of --packages hold unpacked packages: shot_examples.py lists the footage
and its licences. The first network sees about 12 frames a second and says where transitions are (cascade.py); the
second places the boundaries of gradual ones (refine.py). The same footage gives the same bytes on one machine.

--folds writes nothing. It trains without each group of sources in turn and judges the result on that group's clips and
on films of their shots (Score in shots_accuracy.py), as scans would see them; last come the shipped weights on the
sources that are in no group. Every constant of the detector was chosen while looking at the latter.

The weights in the repository are older: an earlier form of this script made them from the same footage, 32 shots of
groups and 142 of packages, so a run gives other bytes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[2] / "support"), str(Path(__file__).parent)]

from labelled_clips import LabelledClip  # noqa: E402
from real_shots import Clips, Found  # noqa: E402
from shot_examples import GROUPS, Examples, Footage, analysed, joined_film, licensed  # noqa: E402
from shots_accuracy import Score, frame_at  # noqa: E402

from pipeline.media.proxy import Proxy  # noqa: E402
from pipeline.shots.cascade import DILATIONS, WIDTH, Cascade  # noqa: E402
from pipeline.shots.frame_features import FEATURES  # noqa: E402
from pipeline.shots.refine import INPUTS  # noqa: E402
from pipeline.shots.shot_weights import weights  # noqa: E402

SHIPPED = Path(__file__).parents[3] / "pipeline" / "shots" / "shots.npz"
LENGTH, BATCH = 160, 24  # moments of a training sequence, and sequences of a step
QUANTILE = 0.93  # how often the first network's limits must not lie further in than true ones
NEAR = 12  # ticks: moments further inside a transition say nothing of a limit
HIDDEN = 48  # units of each hidden layer of the second network
REFINED = 0.97  # how often the second network must not place a boundary inside a transition
JUDGED = range(900, 906)  # seeds of the films that a fold is judged on
Arrays = dict[str, np.ndarray]


class Net(nn.Module):
    """The network of pipeline.shots.cascade.judge, to be trained. (b, FEATURES, n) -> (b, 4, n): logits and ticks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(FEATURES, WIDTH, 1)
        self.blocks = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 3, dilation=d, padding=d) for d in DILATIONS)
        self.last = nn.Conv1d(WIDTH, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.first(x))
        for block in self.blocks:
            x = x + functional.relu(block(functional.dropout(x, 0.1, self.training)))
        return self.last(x)


def limit_loss(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """The pinball loss of QUANTILE, in ticks, over moments in a transition; the nearer a limit, the more it counts."""
    near = true <= NEAR  # NaN is not
    true = torch.where(near, true, predicted.detach())
    short = true - predicted
    weight = near / (1 + true.abs())
    return (torch.maximum(QUANTILE * short, (QUANTILE - 1) * short) * weight).sum() / weight.sum().clamp(min=1)


def train_moments(films: Sequence[Examples], steps: int) -> Arrays:
    """Weights of the first network, by the names of cascade.judge."""
    examples = [pair for film in films for pair in film.moments if len(pair[0]) >= LENGTH]
    sample = np.concatenate([x[::4] for x, _ in examples]).astype(np.float32)
    mean, deviation = sample.mean(axis=0), sample.std(axis=0) + 1e-3
    inputs = [torch.from_numpy((x.astype(np.float32) - mean) / deviation).half() for x, _ in examples]
    targets = [torch.from_numpy(y) for _, y in examples]
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    positive = torch.tensor([[2.0], [1.0]])
    for step in range(steps):
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
        if step % 1000 == 0:
            print(f"  step {step}: loss {loss.item():.4f}", flush=True)
    state = {name.replace(".", "_"): value.detach().numpy() for name, value in net.state_dict().items()}
    weight = state["first_weight"][:, :, 0] / deviation  # standardisation goes into the first layer
    state |= {"first_bias": state["first_bias"] - weight @ mean, "first_weight": weight[:, :, None]}
    return {name: value.astype(np.float32) for name, value in state.items()}


def train_limits(films: Sequence[Examples], steps: int) -> Arrays:
    """Weights of the second network, by the names of refine._shift."""
    inputs = np.concatenate([film.limits[0] for film in films])
    true = torch.from_numpy(np.concatenate([film.limits[1] for film in films]))
    torch.manual_seed(0)
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0) + 0.01
    x = torch.from_numpy(((inputs - mean) / deviation).clip(-5, 5))
    layers = [nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)]
    net = nn.Sequential(layers[0], nn.ReLU(), nn.Dropout(0.15), layers[1], nn.ReLU(), nn.Dropout(0.15), layers[2])
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        batch = torch.randint(len(x), (256,))
        short = 10 * true[batch] - net(x[batch])[:, 0]  # in tenths of a second
        loss = torch.maximum((1 - REFINED) * short, -REFINED * short).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    arrays = {"mean": mean, "deviation": deviation}
    for i, layer in enumerate(layers):
        unit = 10 if layer is layers[2] else 1
        arrays |= {f"weight{i}": layer.weight.detach().numpy() / unit, f"bias{i}": layer.bias.detach().numpy() / unit}
    return {f"limits_{name}": value.astype(np.float32) for name, value in arrays.items()}


_footage: list[Footage] = []


def _film(group: int | None, seed: int) -> None:
    """Put the examples of a film into the cache."""
    list(_footage[0].examples(group, range(seed, seed + 1)))


def _trained(without: int | None, films: int, steps: int) -> Arrays:
    """Weights of both networks, of all groups but one."""
    groups = [None, *(group for group in range(len(GROUPS)) if group != without)]
    chosen = [film for group in groups for film in _footage[0].examples(group, range(films))]
    return train_moments(chosen, steps) | train_limits(chosen, steps)


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
        film = joined_film(list(pool), [], seed)
        tiny = np.stack([cv2.resize(frame, (48, 27), interpolation=cv2.INTER_AREA) for frame in film.frames])
        times = np.arange(len(tiny)) / film.fps
        spans = [(frame_at(a, times), frame_at(b, times)) for a, b in detected(times, tiny, film.fps, seed)]
        score.add(film, [span for span in spans if span[0] > 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("web", type=Path)
    parser.add_argument("--packages", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--folds", action="store_true", help="judge without each group of sources; write nothing")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "clipmill-shots")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--films", type=int, default=45, help="films of each group")
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
        trained = pool.starmap(_trained, [(group, options.films, options.steps) for group in without], chunksize=1)
    if not options.folds:
        np.savez_compressed(options.out, **trained[0])
        print("wrote", options.out, options.out.stat().st_size, "bytes")
        return
    shipped = dict(weights())
    counts, score = Clips(), Score()
    for group, arrays in zip(without, trained, strict=True):
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
