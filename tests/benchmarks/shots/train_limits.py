"""Trains the network that places the limits of gradual transitions (pipeline/shots/refine.py), after train_shots.py.

    python tests/benchmarks/shots/train_limits.py FILES_OR_FOLDERS... [--leave-out SOURCE,...] [--out FILE]

What the cascade says of joined films, before refine.py betters it, is compared with the truth, as it says it and with
its limits moved about. FILES, FOLDERS and the footage of the weights in the repository are those of train_shots.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]

from joined_films import Film  # noqa: E402
from train_shots import Pieces, analysed, films, pieces_of  # noqa: E402

from pipeline.media.proxy import Proxy  # noqa: E402
from pipeline.shots import refine  # noqa: E402
from pipeline.shots.cascade import Cascade  # noqa: E402
from pipeline.shots.refine import FURTHEST, INPUTS, features  # noqa: E402

QUANTILE = 0.97  # how often the network must not say less than how far out a limit lies
HIDDEN = 48
MOVED = 2  # times each limit is moved at random


def samples(film: Film, random: np.random.Generator) -> Iterator[tuple[np.ndarray, float]]:
    """Inputs of the network, and seconds from a limit to the frame of the transition that is nearest to the shot."""
    tiny = np.stack([cv2.resize(frame, (48, 27), interpolation=cv2.INTER_AREA) for frame in film.frames])
    if random.random() < 0.3:
        tiny = np.clip(tiny + random.normal(0, random.uniform(0.5, 4), tiny.shape), 0, 255).astype(np.uint8)
    seen = analysed(film, random)
    times, colour = seen / film.fps, tiny[seen]
    detector = Cascade(film.fps)
    pushed = [found for i, time in enumerate(times) for found in detector.push(Proxy(i, float(time), colour[i]))]
    for found in [*pushed, *detector.finish()]:
        near = [j for j in film.joins if j[1] / film.fps < found.enter + 0.1 and found.leave - 0.1 < j[2] / film.fps]
        if found.leave == found.enter or len(near) != 1 or near[0][0] == "cut":
            continue
        first, last = near[0][1] / film.fps, (near[0][2] - 1) / film.fps
        for moved in range(1 + MOVED):
            away = random.uniform((-0.25, -0.2), (0.2, 0.25)) * bool(moved)
            leave, enter = found.leave + away[0], found.enter + away[1]
            if leave + 0.1 > enter:
                continue
            before = features(times, colour, leave, enter)
            after = features(-times[::-1], colour[::-1], -enter, -leave)
            yield from ((x, y) for x, y in ((before, first - leave), (after, enter - last)) if x is not None)


def train(inputs: np.ndarray, true: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """Weights by the names of pipeline.shots.refine, by the pinball loss of QUANTILE."""
    torch.manual_seed(0)
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0) + 0.01
    x, y = torch.from_numpy(((inputs - mean) / deviation).clip(-5, 5)), torch.from_numpy(true)
    layers = [nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)]
    net = nn.Sequential(layers[0], nn.ReLU(), nn.Dropout(0.15), layers[1], nn.ReLU(), nn.Dropout(0.15), layers[2])
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        batch = torch.randint(len(x), (256,))
        short = 10 * y[batch] - net(x[batch])[:, 0]
        loss = torch.maximum((1 - QUANTILE) * short, -QUANTILE * short).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 1000 == 0:
            print(step, round(loss.item(), 4), flush=True)
    layers[2].weight.data /= 10
    layers[2].bias.data /= 10
    arrays = {"mean": mean, "deviation": deviation}
    for i, layer in enumerate(layers):
        arrays |= {f"weight{i}": layer.weight.detach().numpy(), f"bias{i}": layer.bias.detach().numpy()}
    return {f"limits_{name}": value.astype(np.float32) for name, value in arrays.items()}


def gather(pieces: Pieces, sources: Sequence[Pieces], count: int) -> tuple[np.ndarray, np.ndarray]:
    found: list[tuple[np.ndarray, float]] = []
    for seed, film in enumerate(films(pieces, sources, range(500_000, 500_000 + count), 30)):
        found += samples(film, np.random.default_rng(seed))
    true = np.array([y for _, y in found], np.float32)
    within = (true > -FURTHEST - 0.1) & (true < 1.0)
    return np.stack([x for x, _ in found])[within], true[within]


def unrefined(times: np.ndarray, colour: np.ndarray, leave: float, enter: float) -> tuple[float, float]:
    """The limits as the cascade says them, in place of pipeline.shots.refine.refine."""
    return leave, enter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[3] / "pipeline" / "shots" / "shots.npz")
    parser.add_argument("--leave-out", default="", help="sources of labelled clips not to train on, by commas")
    parser.add_argument("--films", type=int, default=150)
    parser.add_argument("--steps", type=int, default=8000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    refine.refine = unrefined
    inputs, true = gather(*pieces_of(options.footage, options.leave_out.split(",")), options.films)
    print(f"{len(true)} limits")
    with np.load(options.out) as file:
        arrays = dict(file)
    np.savez_compressed(options.out, **arrays | train(inputs, true, options.steps))
    print("wrote", options.out, options.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
