"""First and last frame of a clip as JPEG, for image-to-video training."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from pipeline.media.packed_clip import PackedClip


class FirstLast:
    """Members KEY.first.jpg and KEY.last.jpg; `quality` is the JPEG quality, 1 to 100."""

    version = 1
    endings: Mapping[str, str] = {"first": "first.jpg", "last": "last.jpg"}

    def __init__(self, quality: int = 95) -> None:
        if not 1 <= quality <= 100:
            raise ValueError(f"quality: expected 1 to 100, got {quality}")
        self._quality = quality

    def identity(self) -> Mapping[str, Any]:
        return {"version": self.version, "quality": self._quality}

    def make(self, clip: PackedClip) -> dict[str, bytes]:
        frames = clip.frames()
        first = next(frames)
        last = deque(frames, 1)
        return {"first": self._jpeg(first), "last": self._jpeg(last[0] if last else first)}

    def _jpeg(self, rgb: np.ndarray) -> bytes:
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self._quality])[1].tobytes()
