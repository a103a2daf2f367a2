"""Consistency: similarity of neighbouring sampled frames, to detect clips with a missed cut."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown
from filters.encoders.base import usable


class Consistency:
    """Cosine between the appearance of neighbouring sampled frames: the lowest (low for a missed cut or a jump) and the
    mean (low if the clip changes much). Null for a single frame."""

    name = "consistency"
    version = 1
    needs = frozenset({Track.EMBEDDING})
    columns: Mapping[str, pa.DataType] = {"consistency_min": pa.float32(), "consistency_mean": pa.float32()}

    def score(self, clip: ClipView) -> dict[str, Score]:
        if len(clip.appearance) < 2 or not usable(clip.appearance):
            return unknown(self, "no two usable embeddings")
        cosines = (clip.appearance[1:] * clip.appearance[:-1]).sum(axis=1)
        return {"consistency_min": float(cosines.min()), "consistency_mean": float(cosines.mean())}
