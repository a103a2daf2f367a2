"""Resolution: size of the picture in source pixels, without borders."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown


class Resolution:
    name = "resolution"
    version = 1
    needs: frozenset[Track] = frozenset()
    columns: Mapping[str, pa.DataType] = {
        "resolution_width": pa.float32(),  # source pixels inside the borders
        "resolution_height": pa.float32(),
        "resolution_aspect": pa.float32(),  # width / height
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        x0, y0, x1, y1 = clip.box
        width, height = clip.width * (x1 - x0), clip.height * (y1 - y0)
        if not (width >= 1 and height >= 1):
            return unknown(self, "no picture")
        return {
            "resolution_width": float(width),
            "resolution_height": float(height),
            "resolution_aspect": float(width / height),
        }
