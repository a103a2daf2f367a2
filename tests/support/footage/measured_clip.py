"""Clips with a known motion of their moving region, as the scan measures it, for tests of captions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from captioners.base import ClipFrames

Place = tuple[float, float, float]  # x and y as fractions of the picture, and picture heights per second


def clip(duration: float, path: Callable[[float], Place | None] | None = None, **scores: Any) -> ClipFrames:
    """Return a clip whose moving region is at `path(t)`, or which is still at times for which that is None."""
    times = np.arange(0.1, duration, 0.2)
    places = [path(t) if path else None for t in times]
    timeline = {
        "motion_times": times.tolist(),
        "motion_speed": [place[2] if place else 0.0 for place in places],
        "motion_x": [place[0] if place else float("nan") for place in places],
        "motion_y": [place[1] if place else float("nan") for place in places],
    }
    return ClipFrames("clip", duration, [], np.zeros(0), timeline | scores)
