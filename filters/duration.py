"""Duration: length of a clip, and its frames a second."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown


class Duration:
    name = "duration"
    version = 2
    needs: frozenset[Track] = frozenset()
    columns: Mapping[str, pa.DataType] = {
        "duration_seconds": pa.float32(),
        "duration_fps": pa.float32(),  # mean source frames per second
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        if not (clip.duration > 0 and clip.fps > 0):
            return unknown(self, "one frame without a duration")
        return {"duration_seconds": float(clip.duration), "duration_fps": float(clip.fps)}
