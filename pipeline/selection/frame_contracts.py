"""Frame contracts: the number of frames packed for each clip, so that a trainer can use every one of them."""

from __future__ import annotations

import numpy as np

from pipeline.config.recipe import PackOptions

ROUNDING = 1e-6  # frames of tolerance: seconds are floats


def packed_frames(seconds: np.ndarray, still: np.ndarray, options: PackOptions) -> np.ndarray | None:
    """Return the packed frame counts of clips of (n,) `seconds` at `options.fps`: (n,) int32; None without a contract.

    The count is k * multiple + extra + spare, for the largest k of at least 1 that the clip reaches; a clip too short
    for k = 1 gets 0. The last frame may extend beyond the span by half a frame period, as it does without a contract. A
    `still` keeps its 1 frame.
    """
    if options.frames is None or options.fps is None:
        return None
    frames, fixed = options.frames, options.frames.extra + options.frames.spare
    available = np.floor(np.nan_to_num(seconds) * options.fps + 0.5 + ROUNDING).astype(np.int64)
    steps = np.maximum(available - fixed, 0) // frames.multiple
    return np.where(still, 1, np.where(steps > 0, steps * frames.multiple + fixed, 0)).astype(np.int32)
