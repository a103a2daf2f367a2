"""Edge maps: the edges of every frame, as a video with the size, frames and times of the clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2

from pipeline.media.packed_clip import PackedClip


class Canny:
    """Member KEY.canny.mp4: white edges on black by OpenCV's Canny with hysteresis thresholds `low` and `high` on 8-bit
    grey. The defaults of 100 and 200 are those of ControlNet's annotator."""

    version = 1
    endings: Mapping[str, str] = {"canny": "canny.mp4"}

    def __init__(self, low: float = 100.0, high: float = 200.0) -> None:
        if not 0 <= low <= high:
            raise ValueError(f"expected 0 <= low <= high, got {low} and {high}")
        self._low, self._high = low, high

    def identity(self) -> Mapping[str, Any]:
        return {"version": self.version, "low": self._low, "high": self._high}

    def make(self, clip: PackedClip) -> dict[str, bytes]:
        grey = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip.frames())
        return {"canny": clip.video(cv2.Canny(picture, self._low, self._high) for picture in grey)}
