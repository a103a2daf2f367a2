"""Interlacing: frames whose two fields were captured at different times.

In an interlaced frame, lines of one parity fit the previous frame better and lines of the other parity the next frame.
FFmpeg's filter idet detects this order. Fine texture (grass, sea, brick, shutters) has comb patterns in every frame,
but no such order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown

COLUMNS = 128  # number of evenly spaced columns of a frame that are compared
LEAST_ROWS = 32  # smallest number of rows of a picture that is analysed
LEAST = 5  # smallest number of frames with motion for a score
ORDERED = math.log(1.04)  # log of the smallest ratio between the misfits of both field orders, as in idet
WINDOW, STEP = 32, 16  # lines; height and spacing of the windows whose frequencies are compared
# Frequencies of the pattern in periods per window, of fields scaled from 480 or 576 lines to 720 or 1080. Multiples
# of 4 are excluded because blocks of 8 lines have them, and 14 to 16 because any real signal is coherent there.
PERIODS = np.array([5, 6, 7, 9, 10, 11, 13])
DIFFERS = 1.0  # grey levels; mean misfit of both orders up to which a frame has no motion


class Interlacing:
    name = "interlacing"
    version = 4
    needs = frozenset({Track.FIELDS})
    columns: Mapping[str, pa.DataType] = {
        # Share of the frames with motion whose fields fit one order, minus the share that fits the other, 0 to 1.
        "interlacing_share": pa.float32(),
        "interlacing_order": pa.string(),  # tff or bff: top or bottom field first; null if neither dominates
        "interlacing_scaled": pa.float32(),  # coherence of the pattern of resized fields, 0 to 1
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        misfits = np.asarray(clip.fields, np.float64).reshape(-1, 2)
        moves = misfits.mean(axis=1) > DIFFERS
        moving = misfits[moves]
        if len(moving) < LEAST:
            few = len(misfits) < LEAST
            return unknown(self, "too few consecutive frames" if few else "too little motion to measure interlacing")
        order = np.log((moving[:, 0] + 1e-6) / (moving[:, 1] + 1e-6))
        balance = float((order > ORDERED).mean() - (order < -ORDERED).mean())
        return {
            "interlacing_share": abs(balance),
            "interlacing_order": None if balance == 0 else "tff" if balance > 0 else "bff",
            "interlacing_scaled": coherence(np.asarray(clip.line_phases)[moves]),
        }


def field_columns(luma: np.ndarray) -> np.ndarray:
    """Return about COLUMNS evenly spaced columns, (h, n) int16, of the coded luma (h, w) uint8."""
    return luma[:, :: max(1, luma.shape[1] // COLUMNS)].astype(np.int16)


def field_misfits(before: np.ndarray, frame: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Return the misfits of the orders bottom field first and top field first, in mean absolute grey levels.

    Arguments are the `field_columns` of three consecutive frames. The result is (0, 0) for pictures with fewer than
    LEAST_ROWS rows. As in FFmpeg's idet, lines of one parity of the previous frame, and of the other parity of the next
    frame, are compared with the mean of the lines above and below in this frame.
    """
    if min(len(before), len(frame), len(after)) < LEAST_ROWS:
        return 0.0, 0.0
    around = frame[:-2] + frame[2:]
    odd, even = np.s_[0::2], np.s_[1::2]  # rows 1, 3, 5 ... and 2, 4, 6 ... of the picture
    earlier, later = (
        [float(cv2.norm(around[rows], 2 * other[1:-1][rows], cv2.NORM_L1)) / around[rows].size for rows in (odd, even)]
        for other in (before, after)
    )
    return (earlier[1] + later[0]) / 4, (earlier[0] + later[1]) / 4


def line_phases(before: np.ndarray, frame: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return normalised squared Fourier coefficients of the moving parts of a frame, (2, windows, PERIODS) complex64.

    Arguments are the `field_columns` of three consecutive frames. Coefficients are of windows of lines, squared (a
    pattern and its negative have the same square), summed over columns, and rotated to a phase origin that all windows
    share. The first set is divided by the energy at its frequency, the second by the energy at two nearby frequencies.
    """
    moved = (2 * frame - before - after)[:, ::2].astype(np.float32)
    if len(moved) < WINDOW:
        return np.zeros((2, 0, len(PERIODS)), np.complex64)
    windows = np.lib.stride_tricks.sliding_window_view(moved, WINDOW, axis=0)[::STEP]  # (windows, columns, WINDOW)
    coefficients = windows @ _WAVES  # (windows, columns, WINDOW // 2)
    energy = (np.abs(coefficients) ** 2).sum(axis=(0, 1)) + 1e-6
    squares = (coefficients[:, :, PERIODS] ** 2).sum(axis=1) * _rotations(len(windows))
    beside = (energy[PERIODS - 2] + energy[PERIODS + 2]) / 2
    return np.stack([squares / energy[PERIODS], squares / beside]).astype(np.complex64)


@functools.lru_cache(maxsize=16)
def _rotations(windows: int) -> np.ndarray:
    """Return the factors, (windows, PERIODS), that shift the phases of the squares to the first window's first line."""
    return np.exp(-4j * np.pi * STEP * np.outer(np.arange(windows), PERIODS) / WINDOW)


def coherence(phases: np.ndarray) -> float:
    """Return the largest share, 0 to 1, over frequencies of the energy whose phase depends only on the line.

    `phases` are results of `line_phases` for n frames, (n, 2, windows, PERIODS). Frequencies between those of PERIODS
    are included. A resized progressive picture has such a phase too, because its lines are not equally sharp, but less
    energy at that frequency than at its neighbours; the result is reduced in proportion.
    """
    if not phases.size:
        return 0.0
    mean = phases.mean(axis=0)
    share, excess = np.abs(np.fft.fft(mean, n=2 * mean.shape[1], axis=1)).max(axis=1)  # (PERIODS,) each
    return float((share * np.minimum(1, excess)).max())


_WAVES = np.exp(-2j * np.pi * np.outer(np.arange(WINDOW), np.arange(WINDOW // 2)) / WINDOW)
_WAVES = (_WAVES * np.hanning(WINDOW + 2)[1:-1, None]).astype(np.complex64)
