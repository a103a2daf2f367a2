"""Frame contracts: how many frames of each clip are packed, so that a trainer can use all of them and drops none."""

from __future__ import annotations

import numpy as np

from pipeline.config.recipe import PackOptions

ROUNDING = 1e-6  # of a frame: seconds are floats


def packed_frames(seconds: np.ndarray, still: np.ndarray, options: PackOptions) -> np.ndarray | None:
    """(n,) int32: the frames that clips lasting (n,) `seconds` are packed with at `options.fps`; None where the options
    have no frame contract.

    The count is k * multiple + extra + spare, for the largest k of at least 1 that the clip reaches; a clip too short
    for k = 1 gets 0. The last frame may be shown for half its time beyond the span, as the encoder does it without a
    contract. A `still` stays 1 frame.
    """
    if options.frames is None or options.fps is None:
        return None
    frames, fixed = options.frames, options.frames.extra + options.frames.spare
    available = np.floor(np.nan_to_num(seconds) * options.fps + 0.5 + ROUNDING).astype(np.int64)
    steps = np.maximum(available - fixed, 0) // frames.multiple
    return np.where(still, 1, np.where(steps > 0, steps * frames.multiple + fixed, 0)).astype(np.int32)
