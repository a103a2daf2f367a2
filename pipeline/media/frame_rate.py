"""Frame rate of a span whose frames are not all equally far apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GAP = 1.5  # medians: a frame that lasts longer is followed by missing ones
GAPLESS = 0.9  # least share of frames without a gap; with fewer the frame rate is variable, and no frame is left out


def without_gaps(durations: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the durations of frames, in any unit, without those that missing frames lengthen.

    Their mean is the time between two frames as a trainer sees it that reads frame by frame.
    """
    every = np.asarray(durations)
    usual = every[every <= GAP * np.median(every)]
    return usual if len(usual) >= GAPLESS * len(every) else every


def span_fps(times: np.ndarray, end: float) -> float:
    """Return the frame rate, without gaps, of a span with frames at `times`, (n,) seconds, that ends at `end`; 0 if it
    has no length."""
    if end <= times[0]:
        return 0.0
    usual = without_gaps(np.diff([*times, end]))
    if len(usual) == len(times):
        return len(times) / (end - float(times[0]))  # exact; a sum of differences is rounded
    return len(usual) / float(usual.sum())
