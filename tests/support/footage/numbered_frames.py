"""Frames that show their own number, so that a test can name the frames of a clip that was cut and encoded."""

from __future__ import annotations

import io

import av
import numpy as np

from footage import videos
from pipeline.media.encode import Cut, Encoded
from pipeline.media.video import Video

BITS = 6


def coded(number: int, height: int = 96, width: int = 192) -> np.ndarray:
    """A picture that says its number, as black and white bars over a picture that moves."""
    frame = np.roll(videos.texture(3, height, width), 3 * number, axis=1)
    for bit in range(BITS):
        at = slice(bit * width // BITS, (bit + 1) * width // BITS)
        frame[height // 4 : 3 * height // 4, at] = 235 if number >> bit & 1 else 20
    return frame


def number_of(grey: np.ndarray) -> int:
    height, width = grey.shape
    row = grey[int(0.45 * height) : int(0.55 * height)].mean(axis=0)
    return sum(int(row[int((bit + 0.5) * width / BITS)] > 128) << bit for bit in range(BITS))


def decoded(encoded: Encoded) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(encoded.data)) as container:
        return list(container.decode(video=0))


def cut_of(video: Video, first: float, last: float, size: tuple[int, int] = (192, 96), **other: tuple) -> Cut:
    """Frames with first <= seconds < last of the whole picture."""
    probe = video.probe
    base = probe.time_base
    start, end = (round((seconds + probe.start) / base) for seconds in (first, last))
    shown = (probe.width, probe.height)
    return Cut(start, end, base, shown, other.get("crop", (0, 0, *shown)), size)
