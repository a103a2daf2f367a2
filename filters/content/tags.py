"""Tags: the encoder's labels of the frames with probabilities."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown


class Tags:
    """`tags_labels` and `tags_probabilities`, likeliest first: the mean over frames, where a label missing from a
    frame's list counts as 0. `count` labels are kept: captioners add up related ones, so unlikely ones matter too."""

    name = "tags"
    version = 3
    needs = frozenset({Track.EMBEDDING})
    columns: Mapping[str, pa.DataType] = {
        "tags_labels": pa.list_(pa.string()),
        "tags_probabilities": pa.list_(pa.float32()),
    }

    def __init__(self, count: int = 32):
        self.count = count

    def score(self, clip: ClipView) -> dict[str, Score]:
        totals: defaultdict[str, float] = defaultdict(float)
        for frame in clip.tags:
            for label, probability in frame:
                totals[label] += probability / len(clip.tags)
        best = sorted(totals.items(), key=lambda item: (-item[1], item[0]))[: self.count]
        if not best or not math.isfinite(best[0][1] + best[-1][1]):
            return unknown(self, "the result is not a finite number" if best else "no frames")
        return {"tags_labels": [label for label, _ in best], "tags_probabilities": [p for _, p in best]}
