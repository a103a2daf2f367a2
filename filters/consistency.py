"""Consistency: how alike neighbouring sampled frames are, so that a clip with a missed cut can be left out."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown
from filters.encoders.base import usable


class Consistency:
    """Cosine between the looks of neighbouring sampled frames: the lowest (a cut that was missed, a jump) and
    the mean (how much the clip changes at all). One frame has no neighbour: null."""

    name = "consistency"
    version = 1
    needs = frozenset({Track.EMBEDDING})
    columns: Mapping[str, pa.DataType] = {"consistency_min": pa.float32(), "consistency_mean": pa.float32()}

    def score(self, clip: ClipView) -> dict[str, Score]:
        if len(clip.appearance) < 2 or not usable(clip.appearance):
            return unknown(self, "no two usable embeddings")
        cosines = (clip.appearance[1:] * clip.appearance[:-1]).sum(axis=1)
        return {"consistency_min": float(cosines.min()), "consistency_mean": float(cosines.mean())}
