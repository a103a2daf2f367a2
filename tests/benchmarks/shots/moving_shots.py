"""Single shots with much motion, made of real pieces: a camera that turns, walks and zooms, hands and people that come
close, water and light that move, and graphics laid over all of it. None of it is a transition.

The picture continues mirrored beyond its edges, so that a camera may turn as far as it likes.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

Random = np.random.Generator


def moving_shot(piece: np.ndarray, length: int, fps: float, random: Random, others: Sequence[np.ndarray]) -> np.ndarray:
    """(length, h, w, 3) uint8 RGB of a piece, forwards and backwards where it is too short, up to four times as fast.
    `others` are pieces that what comes close is cut out of."""
    cycle = np.concatenate([piece, piece[-2:0:-1]]) if len(piece) > 2 else piece
    speed = int(random.choice([1, 1, 2, 3, 4])) if len(piece) > 30 else 1
    frames = cycle[(int(random.integers(len(cycle))) + speed * np.arange(length)) % len(cycle)]
    if random.random() < 0.5:
        frames = frames[:, :, ::-1]
    path = _camera_path(length, fps, random)
    frames = np.stack([_view(np.ascontiguousarray(frame), *place) for frame, place in zip(frames, path, strict=True)])
    speeds = np.abs(np.diff(path[:, :2], axis=0, prepend=path[:1, :2])) * frames.shape[2:0:-1]
    if random.random() < 0.6:  # exposure of about half a frame
        for i, (across, down) in enumerate(speeds):
            if max(across, down) > 3:
                frames[i] = cv2.blur(frames[i], (1 + int(min(across / 2, 30)), 1 + int(min(down / 2, 20))))
    for effect, share in ((_intrusion, 0.45), (_ripple, 0.12), (_light, 0.2), (_focus, 0.08)):
        if random.random() < share and length > fps / 2:
            effect(frames, fps, random, others)
    return _graded(frames, random)


def overlay(frames: np.ndarray, fps: float, random: Random) -> None:
    """Draws what stays over a whole film: bars or a surround, a logo, subtitles that change at any time."""
    count, height, width = frames.shape[:3]
    if random.random() < 0.35:
        _surround(frames, random)
    if random.random() < 0.25:
        side = round(height * random.uniform(0.08, 0.25))
        x, y = (int(random.choice([3, size - side - 3])) for size in (width, height))
        picture = cv2.resize(random.integers(0, 256, (3, 3, 3)).astype(np.uint8), (side, side))
        share = random.uniform(0.5, 1.0)
        place = frames[:, y : y + side, x : x + side]
        place[:] = place * (1 - share) + picture * share
    if random.random() < 0.2:
        first = int(random.integers(max(1, count // 2)))
        while first < count:
            last = min(count, first + round(fps * random.uniform(0.5, 4.0)))
            text = "".join(random.choice(list("abcdefghiklmnoprstu  "), int(random.integers(5, 26))))
            size = random.uniform(0.2, 0.5) * height / 54
            drawn = np.zeros((height, width), np.uint8)
            cv2.putText(drawn, text, (width // 10, round(height * 0.92)), cv2.FONT_HERSHEY_DUPLEX, size, 255, 1)
            frames[first:last][:, drawn > 100] = 245
            first = last + round(fps * random.exponential(1.0))


def _camera_path(length: int, fps: float, random: Random) -> np.ndarray:
    """(length, 4): where the middle of the view lies in widths and heights of the picture, its magnification, and its
    roll in radians."""
    time = np.arange(length) / fps
    style = str(random.choice(["still", "drift", "turn", "walk", "follow"], p=[0.15, 0.2, 0.25, 0.2, 0.2]))
    path = np.stack([*(np.full(length, v) for v in random.uniform(0.3, 0.7, 2)), np.zeros(length), np.zeros(length)], 1)
    path[:, 2] = np.log(random.uniform(1.0, 2.2))
    if style == "drift":
        path[:, :2] += time[:, None] * random.uniform(-0.15, 0.15, 2)
    elif style == "turn":  # one or two turns that begin and end gently
        for _ in range(int(random.integers(1, 3))):
            begin, takes = random.uniform(-0.5, max(0.1, time[-1])), random.uniform(0.25, 2.5)
            share = np.clip((time - begin) / takes, 0, 1)
            path[:, :2] += (0.5 - 0.5 * np.cos(np.pi * share))[:, None] * random.uniform(-1, 1, 2) * [1.8, 0.7]
    elif style in ("walk", "follow"):
        pace, sway = random.uniform(1.2, 2.5), random.uniform(0.01, 0.07)
        path[:, 0] += sway * np.sin(np.pi * pace * time + random.uniform(0, 6))
        path[:, 1] += 1.5 * sway * np.abs(np.sin(np.pi * pace * time + random.uniform(0, 6)))
        path[:, 3] += random.uniform(0, 0.06) * np.sin(np.pi * pace * time)
        path[:, 2] += random.uniform(-0.25, 0.35) * time
        path[:, :2] += time[:, None] * random.uniform(-0.6, 0.6, 2) * [1.0, 0.3] * (style == "follow")
    if random.random() < 0.6:  # hands shake, slowly and quickly
        noise = random.normal(0, 1, (length, 4))
        for smooth, size in ((round(fps / 2), 0.05), (max(1, round(fps / 12)), 0.008)):
            kernel = np.hanning(smooth + 2) / np.sqrt((np.hanning(smooth + 2) ** 2).sum())
            shake = np.stack([np.convolve(noise[:, i], kernel, "same")[:length] for i in range(4)], axis=1)
            path += shake * size * random.uniform(0, 1) * [1, 1, 0.7, 0.4]
    if random.random() < 0.15:
        path[:, 2] += random.uniform(-1.0, 1.0) * np.clip((time - random.uniform(0, 1)) / random.uniform(0.3, 2), 0, 1)
    path[:, 2] = np.exp(np.clip(path[:, 2], -0.2, 1.6))
    return path


def _view(frame: np.ndarray, x: float, y: float, scale: float, roll: float) -> np.ndarray:
    height, width = frame.shape[:2]
    c, s = np.cos(roll) / scale, np.sin(roll) / scale
    middle = np.array([x * width, y * height])
    turn = np.array([[c, -s], [s, c]])
    shift = middle - turn @ np.array([width / 2, height / 2])
    warp = np.concatenate([turn, shift[:, None]], axis=1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(frame, warp, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def _intrusion(frames: np.ndarray, fps: float, random: Random, others: Sequence[np.ndarray]) -> None:
    """Things enter, stay about and leave again, or do not: hands, heads, passers-by, doors."""
    count, height, width = frames.shape[:3]
    for _ in range(int(random.integers(1, 4))):
        piece = others[int(random.integers(len(others)))]
        picture = piece[int(random.integers(len(piece)))]
        h, w = round(height * random.uniform(0.3, 1.3)), round(width * random.uniform(0.12, 0.9))
        top, left = (int(random.integers(size // 2)) for size in picture.shape[:2])
        patch = cv2.resize(picture[top : top + height // 2, left : left + width // 2], (w, h))
        if random.random() < 0.5:  # skin, cloth: little texture
            tone = np.array([random.uniform(60, 240), random.uniform(40, 200), random.uniform(30, 180)])
            patch = np.clip(0.3 * (patch.astype(np.float32) - patch.mean()) + tone, 0, 255).astype(np.uint8)
        mask = np.zeros((h, w), np.uint8)
        corners = np.array([w / 2, h / 2]) * (1 + _polar(random, 9) * random.uniform(0.55, 1.0, (9, 1)))
        cv2.fillPoly(mask, [corners.astype(np.int32)], 255)
        mask = cv2.blur(mask, (3, 3))
        angle = random.uniform(0, 2 * np.pi)
        outside = np.array([width, height]) * (0.5 + 0.5 * np.array([np.cos(angle), np.sin(angle)]) * 1.5) + (
            np.array([np.cos(angle), np.sin(angle)]) * [w, h] * 0.7
        )
        inside = random.uniform(0.15, 0.85, 2) * [width, height]
        begin, takes = random.uniform(-0.5, count / fps), random.uniform(0.15, 1.2)
        stays = random.choice([0.0, random.uniform(0.1, 1.5), 99.0])
        time = np.arange(count) / fps - begin
        share = np.clip(time / takes, 0, 1) - np.clip((time - takes - stays) / takes, 0, 1)
        share = 0.5 - 0.5 * np.cos(np.pi * share)
        if stays == 0.0 and random.random() < 0.5:  # passes through
            share = np.clip(time / takes, 0, 1)
            inside = np.array([width, height]) - outside
        wobble = np.stack([np.sin(random.uniform(2, 12) * time), np.cos(random.uniform(2, 12) * time)], 1)
        places = outside + share[:, None] * (inside - outside) + wobble * random.uniform(0, 0.05) * height
        for i in np.flatnonzero((share > 0) & (share < 1 + (stays > 0))):
            _paste(frames[i], patch, mask, places[i])


def _polar(random: Random, corners: int) -> np.ndarray:
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _paste(frame: np.ndarray, patch: np.ndarray, mask: np.ndarray, middle: np.ndarray) -> None:
    (height, width), (h, w) = frame.shape[:2], patch.shape[:2]
    left, top = (round(float(m) - size / 2) for m, size in zip(middle, (w, h), strict=True))
    x0, x1, y0, y1 = max(0, left), min(width, left + w), max(0, top), min(height, top + h)
    if x0 < x1 and y0 < y1:
        inner = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        share = mask[inner][..., None] / 255
        frame[y0:y1, x0:x1] = frame[y0:y1, x0:x1] * (1 - share) + patch[inner] * share


def _ripple(frames: np.ndarray, fps: float, random: Random, others: Sequence[np.ndarray]) -> None:
    """Water, flames, leaves: every part of the picture moves on its own."""
    count, height, width = frames.shape[:3]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [(*random.uniform(0.05, 0.5, 2), random.uniform(2, 14), random.uniform(0, 6)) for _ in range(4)]
    size = random.uniform(0.005, 0.03) * width
    for i in range(count):
        phases = [a * x + b * y + c * i / fps + d for a, b, c, d in waves]
        dx, dy = np.sin(phases[0]) + np.sin(phases[1]), np.cos(phases[2]) + np.sin(phases[3])
        maps = (x + size * dx).astype(np.float32), (y + size * dy).astype(np.float32)
        frames[i] = cv2.remap(frames[i], *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _light(frames: np.ndarray, fps: float, random: Random, others: Sequence[np.ndarray]) -> None:
    """Lamps go on, clouds pass, flames and screens flicker, a camera sets its exposure anew."""
    count = len(frames)
    time = np.arange(count) / fps
    if random.random() < 0.5:
        begin, takes = random.uniform(0, count / fps), random.choice([0.01, random.uniform(0.1, 2.0)])
        gain = 1 + random.uniform(-0.5, 0.6) * np.clip((time - begin) / takes, 0, 1)
    else:
        noise = np.convolve(random.normal(0, 1, count), np.ones(2) / 2, "same")
        gain = 1 + random.uniform(0.05, 0.3) * noise
    side = random.uniform(0.2, 1.0)  # of the picture that is lit
    edge = round(frames.shape[2] * side)
    for i in range(count):
        frames[i, :, :edge] = np.clip(frames[i, :, :edge] * max(0.2, gain[i]), 0, 255)


def _focus(frames: np.ndarray, fps: float, random: Random, others: Sequence[np.ndarray]) -> None:
    time = np.arange(len(frames)) / fps
    away = np.abs(np.clip((time - random.uniform(0, time[-1])) / random.uniform(0.2, 1.0), -1, 1))
    for i, share in enumerate(away if random.random() < 0.5 else 1 - away):
        side = 1 + 2 * round(share * 0.06 * frames.shape[1])
        frames[i] = cv2.blur(frames[i], (side, side))


def _graded(frames: np.ndarray, random: Random) -> np.ndarray:
    """In a light and colour of its own, now and then very dark."""
    gain = random.uniform(0.15, 0.5) if random.random() < 0.15 else random.uniform(0.7, 1.2)
    curve = 255 * (np.arange(256) / 255) ** random.uniform(0.8, 1.25)
    curves = np.clip(curve[:, None] * random.uniform(0.9, 1.1, 3) * gain, 0, 255).astype(np.uint8)
    stacked = frames.reshape(-1, *frames.shape[2:])
    return cv2.LUT(stacked, curves[None]).reshape(frames.shape)


def _surround(frames: np.ndarray, random: Random) -> None:
    """Bars above and below or at the sides, black or of a colour, with lettering or the picture of a collage."""
    height, width = frames.shape[1:3]
    bars = np.zeros((height, width), bool)
    if random.random() < 0.6:
        first, second = random.uniform(0.04, 0.3, 2) if random.random() < 0.4 else [random.uniform(0.05, 0.2)] * 2
        bars[: round(first * height)] = bars[height - round(second * height) :] = True
    else:
        side = round(random.uniform(0.1, 0.34) * width)
        bars[:, :side] = bars[:, width - side :] = True
    colour = np.zeros(3) if random.random() < 0.6 else random.integers(0, 256, 3)
    surround = np.full((height, width, 3), colour, np.uint8)
    if random.random() < 0.4:
        for line in range(int(random.integers(1, 4))):
            text = "".join(random.choice(list("ABCDEFGHIKLMNOPRSTU "), int(random.integers(6, 18))))
            y = round(height * random.choice([0.1, 0.97])) + line
            size = random.uniform(0.2, 0.5) * height / 54
            ink = [int(v) for v in random.integers(0, 256, 3)]
            cv2.putText(surround, text, (width // 12, y), cv2.FONT_HERSHEY_DUPLEX, size, ink, 1)
    frames[:, bars] = surround[bars]
