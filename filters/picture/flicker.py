"""Flicker: jumps in the brightness of the whole picture between frames, from lamps, shutters or old film."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown

GRID = (16, 9)  # blocks across and down; the median over them ignores moving objects
LEVEL_OFFSET = 12.0  # grey levels added to both sides of the ratio, so that noise in dark frames does not count


class Flicker:
    name = "flicker"
    version = 2
    needs = frozenset({Track.LUMA, Track.BURST})
    columns: Mapping[str, pa.DataType] = {
        "flicker_luma": pa.float32(),  # typical jump of the whole picture's brightness between frames; 0.02 is 2%
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        jumps = [jump for jump in map(brightness_jumps, (clip.burst, clip.luma)) if jump is not None]
        return {"flicker_luma": max(jumps)} if jumps else unknown(self, "fewer than five frames")


def brightness_jumps(frames: np.ndarray) -> float | None:
    """Return how far each frame's brightness lies from the middle of its neighbours' beyond what the blocks disagree
    by: median of the absolute value over time, as a fraction; (n, h, w) uint8 frames, None for fewer than five.

    A lamp or a shutter changes all blocks by one factor; what moves fast changes them by different ones, so the median
    deviation between blocks is taken off. A steady fade is none; the median over time lets a cut or a flash pass.
    """
    if len(frames) < 5 or min(frames.shape[1:]) < GRID[1]:
        return None
    level = np.stack([cv2.resize(f, GRID, interpolation=cv2.INTER_AREA).ravel() for f in frames]).astype(np.float64)
    bends = np.diff(np.log(level + LEVEL_OFFSET), n=2, axis=0) / 2  # (n - 2, blocks)
    common = np.median(bends, axis=1)
    apart = np.median(np.abs(bends - common[:, None]), axis=1)
    return float(np.median(np.maximum(np.abs(common) - apart, 0)))
