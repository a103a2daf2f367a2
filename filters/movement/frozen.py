"""Frozen: static pictures, slideshows, and frame rates that were raised by repeating frames."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown, why_null

GRID = (16, 9)  # blocks across and down in which changes are measured
SAME = 0.8  # grey levels: a block's mean difference that noise and compression alone may cause
WIDESPREAD = 0.9  # quantile of the blocks' changes that must exceed twice SAME before copies are counted
LEAST_SECONDS = 3.0  # shorter clips are not called frozen: quiet scenes can be motionless for that long
REPEAT = 0.1  # fraction of the usual difference between neighbours up to which a frame is a copy
MOST_COPIES = 4  # of one frame in a row; a longer row is a scene at rest
ENOUGH = 24.0  # different frames a second with which no footage counts as repeated, as in 24 copied to 60


class Frozen:
    """A still image is frozen. A tripod shot of a quiet street is not, because something moves in some block."""

    name = "frozen"
    version = 4
    needs = frozenset({Track.LUMA, Track.BURST})
    columns: Mapping[str, pa.DataType] = {
        "frozen_share": pa.float32(),  # share of the time in which nothing changes, 0 to 1; null under LEAST_SECONDS
        "frozen_longest": pa.float32(),  # seconds of the longest such stretch
        "frozen_repeats": pa.float32(),  # share that copies of the frame before take of the frame rate, or of ENOUGH if
        # that is less, while the picture moves
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        seconds = np.diff(clip.luma_times)
        if not seconds.sum() > 0:
            return unknown(self, "fewer than two frames")
        still = changes(clip.luma) <= SAME
        short = clip.duration < LEAST_SECONDS
        repeats = _repeats(clip.burst, clip.fps)
        reasons = [f"shorter than {LEAST_SECONDS:g} s"] * short
        reasons += ["too little motion to detect repeated frames"] * (repeats is None)
        return {
            "frozen_share": None if short else float((seconds * still).sum() / seconds.sum()),
            "frozen_longest": _longest(still, seconds),
            "frozen_repeats": repeats,
            **({why_null(self.name): "; ".join(reasons)} if reasons else {}),
        }


def changes(frames: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference, grey levels, of the block that changes most between neighbours of (n, h, w)
    uint8 frames: (n - 1,) float."""
    return _block_changes(frames).max(axis=1, initial=0.0)


def _block_changes(frames: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference of each block between neighbours: (n - 1, blocks) float32."""
    apart = (cv2.absdiff(a, b).astype(np.float32) for a, b in itertools.pairwise(frames))
    blocks = [cv2.resize(each, GRID, interpolation=cv2.INTER_AREA).ravel() for each in apart]
    return np.array(blocks, np.float32).reshape(-1, GRID[0] * GRID[1])


def _longest(still: np.ndarray, seconds: np.ndarray) -> float:
    longest = run = 0.0
    for same, length in zip(still, seconds, strict=True):
        run = run + float(length) if same else 0.0
        longest = max(longest, run)
    return longest


def _repeats(burst: np.ndarray, fps: float) -> float | None:
    """Return `frozen_repeats` of consecutive frames; None with too few of them, or if little of the picture moves
    between different ones: a cursor, a cartoon's mouth or a slow hand may rest for a frame that is not a copy."""
    if len(burst) < 8:
        return None
    blocks = _block_changes(burst)
    if float(np.quantile(np.quantile(blocks, WIDESPREAD, axis=1), 0.9)) < 2 * SAME:
        return None
    change = blocks.max(axis=1)
    copies = change <= max(REPEAT * float(np.quantile(change, 0.9)), 0.25)
    rows = [list(row) for _, row in itertools.groupby(copies)]
    share = sum(len(row) for row in rows if row[0] and len(row) <= MOST_COPIES) / len(copies)
    return max(0.0, 1 - (1 - share) * fps / min(fps, ENOUGH)) if fps > 0 else share
