"""Films joined from pieces of real footage, so that every cut, dissolve, fade and wipe in them is known.

Pieces are spans of the given videos in which TransNetV2 sees no transition at all. Between them lie hard cuts,
dissolves of 0.3-2 s, fades through black and white, and wipes; inside them flashes, strobes, whip pans, fast objects
passing close by, titles, shaking, speed-ups and changes of exposure, which are no transitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np
from moving_shots import moving_shot, overlay

MARGIN = 4  # frames left out on both sides of anything that looks like a transition in the footage


@dataclass
class Film:
    """Frames (n, h, w, 3) uint8 RGB; `joins` are (kind, first, last): frames first <= i < last belong to two shots or
    to none, and first == last is a hard cut before that frame; `events` are (kind, first, last) inside shots."""

    frames: np.ndarray
    fps: float
    joins: list[tuple[str, int, int]] = field(default_factory=list)
    events: list[tuple[str, int, int]] = field(default_factory=list)


def footage(files: Sequence[Path], size: tuple[int, int], shortest: int = 20) -> Iterator[np.ndarray]:
    """Pieces of single shots, (n, h, w, 3) uint8 RGB at `size` (width, height), cut to its aspect ratio."""
    from pipeline.shots.transnet import CONTEXT, predict

    for file in files:
        with av.open(str(file)) as container:
            container.streams.video[0].thread_type = "AUTO"
            frames = [fit(f.to_ndarray(format="rgb24"), size) for f in container.decode(video=0)]
        tiny = np.stack([cv2.resize(f, (48, 27), interpolation=cv2.INTER_AREA) for f in frames])
        padded = np.concatenate([tiny[:1].repeat(CONTEXT, 0), tiny, tiny[-1:].repeat(CONTEXT, 0)])
        unclean = np.zeros(len(tiny), bool)
        for start in range(0, len(tiny), 200):
            single, many = predict(padded[start : start + 200 + 2 * CONTEXT])
            inside = np.maximum(single, many)[CONTEXT:-CONTEXT] > 0.1
            unclean[start : start + len(inside)] = inside
        unclean = np.convolve(unclean, np.ones(2 * MARGIN + 1), "same") > 0
        unclean |= tiny.reshape(len(tiny), -1).std(axis=1) < 8  # black and empty frames are in no shot
        edges = np.flatnonzero(np.diff(np.concatenate([[1], unclean, [1]]).astype(int)))
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            if last - first >= shortest:
                yield np.stack(frames[first:last])


def join(pieces: Sequence[np.ndarray], seed: int, shots: int, fps: float = 25.0, motion: bool = False) -> Film:
    """A film of `shots` shots taken from `pieces`. With `motion` the shots are those of moving_shots.py, some of them
    very short, some cuts lie inside one scene, and bars or graphics may be laid over the whole film."""
    random = np.random.default_rng(seed)
    film = Film(np.zeros((0, *pieces[0].shape[1:]), np.uint8), fps)
    parts: list[np.ndarray] = []
    length, last = 0, -1
    for number in range(shots):
        which = int(random.choice([i for i in range(len(pieces)) if i != last or len(pieces) == 1]))
        transition = str(random.choice(["cut", "dissolve", "black", "white", "wipe"], p=[0.45, 0.22, 0.1, 0.05, 0.18]))
        tail = len(parts[-1]) if parts else 0
        span = 0
        if transition in ("dissolve", "wipe"):
            span = min(round(fps * random.uniform(0.3, 2.0 if transition == "dissolve" else 1.2)), tail // 3)
        solid = round(fps * random.uniform(0.2, 1.6)) + span
        if motion:
            brief = random.random() < 0.25
            which = last if transition == "cut" and number and random.random() < 0.15 else which
            count = round(fps * random.uniform(0.25, 0.8)) if brief else round(fps * random.uniform(0.8, 3.2)) + solid
            shot, events = moving_shot(pieces[which], max(count, span + 5), fps, random, pieces), []
            if random.random() < 0.3 and len(shot) > fps:
                event = str(random.choice(["flash", "strobe", "title"]))
                events.append((event, *_EVENTS[event](shot, fps, random)))
            if transition == "cut" and number and _resembles(parts[-1][-1], shot[0]):
                continue
        else:
            shot, events = _shot(pieces[which], round(fps * random.uniform(0.8, 3.2)) + solid, fps, random)
        last = which
        if not parts:
            parts.append(shot)
            length = len(shot)
            film.events += events
            continue
        if transition in ("dissolve", "wipe") and span >= 5:
            out, into = parts[-1][-span:], shot[:span]
            weights = (np.arange(span) + 1) / (span + 1)
            mixed = _dissolve(out, into, weights) if transition == "dissolve" else _wipe(out, into, weights, random)
            parts[-1] = parts[-1][:-span]
            parts += [mixed, shot[span:]]
            start = length - span
            film.joins.append((transition, start, length))
        elif transition in ("black", "white"):
            down, hold, up = (round(fps * random.uniform(*r)) for r in ((0.2, 0.8), (0.0, 0.3), (0.2, 0.8)))
            down, up = max(3, min(down, len(parts[-1]) // 3)), max(3, min(up, len(shot) // 3))
            colour = np.full_like(shot[:1], 0 if transition == "black" else 255)
            if random.random() < 0.3:  # not a fade on both sides: one of them, or both, is a hard cut
                side = int(random.integers(3))
                down, up, hold = (0 if side != 1 else down), (0 if side != 0 else up), max(hold, round(0.12 * fps))
            ending = _dissolve(parts[-1][len(parts[-1]) - down :], colour.repeat(down, 0), (np.arange(down) + 1) / down)
            rising = _dissolve(colour.repeat(up, 0), shot[:up], np.arange(up) / up)
            parts[-1] = parts[-1][: len(parts[-1]) - down]
            parts += [ending, colour.repeat(hold, 0), rising, shot[up:]]
            start = length
            film.joins.append((transition, length - down, length + hold + up))
            start += hold
        else:
            parts.append(shot)
            start = length
            film.joins.append(("cut", length, length))
        film.events += [(k, a + start, b + start) for k, a, b in events]
        length = start + len(shot)
    film.frames = np.concatenate([p for p in parts if len(p)])
    if motion:
        overlay(film.frames, fps, random)
    assert len(film.frames) == length, (len(film.frames), length)
    spans = [(a, b) for _, a, b in film.joins]
    film.events = [e for e in film.events if all(e[2] < a - 2 or e[1] > b + 2 for a, b in spans)]
    return film


def _resembles(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two frames are so alike that a cut between them is hardly one."""
    small = [cv2.resize(frame, (16, 9), interpolation=cv2.INTER_AREA).astype(np.float32) for frame in (first, second)]
    return float(np.abs(small[0] - small[1]).mean()) < 0.12 * float(np.stack(small).mean() + 20)


def _shot(piece: np.ndarray, length: int, fps: float, random: np.random.Generator) -> tuple[np.ndarray, list]:
    """`length` frames of a piece, forwards and backwards where it is too short, in a crop and light of their own."""
    there_and_back = np.concatenate([piece, piece[-2:0:-1]]) if len(piece) > 2 else piece
    begin = int(random.integers(len(there_and_back)))
    speed = int(random.choice([1, 1, 1, 2, 3])) if len(piece) > 30 else 1
    frames = there_and_back[(begin + speed * np.arange(length)) % len(there_and_back)]
    height, width = frames.shape[1:3]
    if random.random() < 0.5:
        frames = frames[:, :, ::-1]
    zoom, drift = random.uniform(1.0, 1.5), random.uniform(-0.002, 0.002) if random.random() < 0.4 else 0.0
    x, y = random.uniform(0, 1, 2)
    pan = random.uniform(-0.01, 0.01, 2) if random.random() < 0.4 else np.zeros(2)
    shake = random.uniform(0, 0.006) if random.random() < 0.2 else 0.0
    gain, gamma = random.uniform(0.7, 1.2), random.uniform(0.8, 1.25)
    tint = random.uniform(0.9, 1.1, 3)
    ramp = random.uniform(-0.01, 0.01) if random.random() < 0.15 else 0.0
    filmed = np.empty_like(frames)
    for i, frame in enumerate(frames):
        scale = max(1.0, zoom * (1 + drift * i))
        w, h = width / scale, height / scale
        left = np.clip((x + pan[0] * i) % 2, 0, 2)
        top = np.clip((y + pan[1] * i) % 2, 0, 2)
        left, top = (min(v, 2 - v) for v in (left, top))  # there and back again
        left, top = np.clip(np.array([left, top]) + random.normal(0, 1, 2) * shake, 0, 1)
        warp = np.array([[1 / scale, 0, left * (width - w)], [0, 1 / scale, top * (height - h)]], np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped = cv2.warpAffine(np.ascontiguousarray(frame), warp, (width, height), flags=flags)
        curve = 255 * (np.arange(256) / 255) ** gamma
        curves = np.clip(curve[:, None] * tint * np.clip(gain * (1 + ramp * i), 0.4, 1.8), 0, 255)
        filmed[i] = cv2.LUT(warped, curves.astype(np.uint8)[None])
    events = []
    if random.random() < 0.45 and length > fps:
        event = str(random.choice(list(_EVENTS)))
        events.append((event, *_EVENTS[event](filmed, fps, random)))
    return filmed, events


def _flash(frames: np.ndarray, fps: float, random: np.random.Generator) -> tuple[int, int]:
    first, count = int(random.integers(3, len(frames) - 8)), int(random.integers(1, 4))
    for i in range(count + 3):
        strength = random.uniform(0.5, 1.0) if i < count else 0.3 / (i - count + 1)
        frames[first + i] = np.clip(frames[first + i] * (1.0 - strength) + 255 * strength, 0, 255)
    return first, first + count + 3


def _strobe(frames: np.ndarray, fps: float, random: np.random.Generator) -> tuple[int, int]:
    first = int(random.integers(2, len(frames) // 2))
    last = min(len(frames) - 2, first + round(fps * random.uniform(0.4, 1.2)))
    period, dark = int(random.integers(1, 4)), random.uniform(0.1, 0.5)
    for i in range(first, last):
        if (i - first) // period % 2 == 0:
            frames[i] = frames[i] * dark
    return first, last


def _whip(frames: np.ndarray, fps: float, random: np.random.Generator) -> tuple[int, int]:
    """The camera swings by one or two widths over scenery that continues mirrored, blurred by its speed."""
    width = frames.shape[2]
    count = min(round(fps * random.uniform(0.15, 0.5)), len(frames) // 3)
    first = int(random.integers(2, len(frames) - count - 2))
    way = width * int(random.choice([-2, -1, 1, 2]))
    place = np.round(way * (0.5 - 0.5 * np.cos(np.pi * np.arange(1, count + 1) / count))).astype(int)
    speed = np.abs(np.diff(np.concatenate([[0], place])))
    for i in range(first, len(frames)):
        step = i - first
        if step >= count and (way // width) % 2 == 0:
            break
        wide = np.concatenate([frames[i], frames[i][:, ::-1]], axis=1)
        wide = np.roll(wide, -int(place[min(step, count - 1)]), axis=1)[:, :width]
        if step < count and speed[step] > 1:
            wide = cv2.blur(np.ascontiguousarray(wide), (int(min(speed[step], width // 3)), 1))
        frames[i] = wide
    return first, first + count


def _object(frames: np.ndarray, fps: float, random: np.random.Generator) -> tuple[int, int]:
    """Something near and textured crosses the picture."""
    height, width = frames.shape[1:3]
    count = min(round(fps * random.uniform(0.2, 0.9)), len(frames) - 6)
    first = int(random.integers(2, len(frames) - count - 2))
    h, w = round(height * random.uniform(0.6, 1.0)), round(width * random.uniform(0.25, 1.1))
    coarse = (random.integers(0, 256, (4, 5, 3)) * random.uniform(0.2, 1.0)).astype(np.uint8)
    picture = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
    mask = cv2.ellipse(np.zeros((h, w), np.uint8), (w // 2, h // 2), (w // 2, h // 2), 0, 0, 360, 255, -1) > 0
    top, backwards = int(random.integers(0, height - h + 1)), random.random() < 0.5
    for i in range(count):
        left = round(-w + (width + w) * (i + 1) / (count + 1))
        left = width - w - left if backwards else left
        a, b = max(0, left), min(width, left + w)
        if b > a:
            part = slice(a - left, b - left)
            view = frames[first + i, top : top + h, a:b]
            view[mask[:, part]] = picture[:, part][mask[:, part]]
    return first, first + count


def _title(frames: np.ndarray, fps: float, random: np.random.Generator) -> tuple[int, int]:
    """Lettering fades in over the picture, stays, and fades out."""
    height, width = frames.shape[1:3]
    fade = round(fps * random.uniform(0.1, 0.8))
    first = int(random.integers(1, max(2, len(frames) // 2)))
    last = min(len(frames), first + round(fps * random.uniform(0.6, 3.0)))
    drawn = np.zeros((height, width), np.uint8)
    size = random.uniform(0.1, 0.35) * height / 22
    for line in range(int(random.integers(1, 4))):
        text = "".join(random.choice(list("ABCDEFGHIKLMNOPRSTU "), int(random.integers(4, 16))))
        place = (round(width * random.uniform(0.02, 0.4)), round(height * random.uniform(0.2, 0.95)) - line)
        cv2.putText(drawn, text, place, cv2.FONT_HERSHEY_DUPLEX, size, 255, max(1, round(size * 2)), cv2.LINE_AA)
    colour = random.integers(150, 256, 3) if random.random() < 0.8 else random.integers(0, 60, 3)
    for i in range(first, last):
        strength = min(1.0, (i - first + 1) / (fade + 1), (last - i) / (fade + 1))
        share = drawn[..., None] / 255 * strength
        frames[i] = frames[i] * (1 - share) + colour * share
    return first, last


_EVENTS = {"flash": _flash, "strobe": _strobe, "whip": _whip, "object": _object, "title": _title}


def _dissolve(out: np.ndarray, into: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if not len(out):
        return out
    return np.stack([cv2.addWeighted(a, 1 - w, b, w, 0) for a, b, w in zip(out, into, weights, strict=True)])


def _wipe(out: np.ndarray, into: np.ndarray, weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An edge, sharp or soft, sweeps across, or a circle opens."""
    height, width = out.shape[1:3]
    y, x = np.mgrid[0:height, 0:width]
    y, x = y / height, x / width
    fields = [x, 1 - x, y, 1 - y, (x + y) / 2, np.hypot(x - 0.5, y - 0.5) / 0.708]
    place, soft = fields[int(random.integers(len(fields)))], random.uniform(0.005, 0.15)
    frames = []
    for a, b, w in zip(out, into, weights, strict=True):
        share = np.clip((w * (1 + soft) - place) / soft, 0, 1)[..., None]
        frames.append((a * (1 - share) + b * share).astype(np.uint8))
    return np.stack(frames)


def fit(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The frame's black bars cut off, its middle cropped to the aspect of `size`, and resized."""
    grey = frame.max(axis=2)
    rows, columns = np.flatnonzero(grey.max(axis=1) > 30), np.flatnonzero(grey.max(axis=0) > 30)
    if len(rows) > 0.6 * grey.shape[0]:
        frame = frame[rows[0] : rows[-1] + 1]
    if len(columns) > 0.6 * grey.shape[1]:
        frame = frame[:, columns[0] : columns[-1] + 1]
    height, width = frame.shape[:2]
    w, h = min(width, round(height * size[0] / size[1])), min(height, round(width * size[1] / size[0]))
    top, left = (height - h) // 2, (width - w) // 2
    return cv2.resize(frame[top : top + h, left : left + w], size, interpolation=cv2.INTER_AREA)
