"""Colour: colourfulness and saturation of the sampled frames, to detect grey and garish clips."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown

WIDTH = 128  # pixels at which colours are counted


class Colour:
    """Medians over the sampled frames."""

    name = "colour"
    version = 1
    needs = frozenset({Track.FRAMES})
    columns: Mapping[str, pa.DataType] = {
        "colour_saturation": pa.float32(),  # mean chroma, (max - min) / 255 of RGB, 0 grey to 1
        "colour_fulness": pa.float32(),  # Hasler and Suesstrunk's colourfulness; 0 grey, about 40 ordinary, 100 garish
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        small = [_small(frame) for frame in clip.frames if min(frame.shape[:2]) > 0]
        if not small:
            return unknown(self, "no frames")
        return {
            "colour_saturation": float(np.median([float(np.ptp(frame, axis=2).mean() / 255) for frame in small])),
            "colour_fulness": float(np.median([colourfulness(frame) for frame in small])),
        }


def colourfulness(rgb: np.ndarray) -> float:
    """Return the colourfulness of (h, w, 3) levels of 255: spread plus 0.3 times the mean distance from grey in two
    opponent channels (Hasler and Suesstrunk, SPIE 2003)."""
    red, green, blue = (rgb[..., k] for k in range(3))
    first, second = red - green, (red + green) / 2 - blue
    return float(np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean()))


def _small(rgb: np.ndarray) -> np.ndarray:
    scale = min(1.0, WIDTH / rgb.shape[1])
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.float32)
