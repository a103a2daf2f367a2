"""Flicker: brightness of the whole picture that jumps from frame to frame, by lamps, shutters or old film."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown

GRID = (16, 9)  # blocks across and down; the median over them ignores what moves
DARK = 12.0  # grey levels added to both sides of the ratio, so that noise in the dark is no flicker


class Flicker:
    name = "flicker"
    version = 1
    needs = frozenset({Track.LUMA, Track.BURST})
    columns: Mapping[str, pa.DataType] = {
        "flicker_luma": pa.float32(),  # typical jump of the whole picture's brightness between frames; 0.02 is 2%
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        jumps = [jump for jump in map(brightness_jumps, (clip.burst, clip.luma)) if jump is not None]
        return {"flicker_luma": max(jumps)} if jumps else unknown(self, "fewer than five frames")


def brightness_jumps(frames: np.ndarray) -> float | None:
    """How far each frame's brightness lies from the middle of its neighbours': median of the absolute value, as a
    fraction; (n, h, w) uint8 frames, None for fewer than five. A steady fade is none; the median lets a cut or a flash
    pass."""
    if len(frames) < 5 or min(frames.shape[1:]) < GRID[1]:
        return None
    level = np.stack([cv2.resize(f, GRID, interpolation=cv2.INTER_AREA).ravel() for f in frames]).astype(np.float64)
    steps = np.median(np.diff(np.log(level + DARK), axis=0), axis=1)
    return float(np.median(np.abs(np.diff(steps)) / 2))
