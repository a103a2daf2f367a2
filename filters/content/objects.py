"""Objects: which of COCO's eighty classes the frames show, and how many of each at once."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Mapping
from statistics import median

import pyarrow as pa

from filters.base import ClipView, Score, Track, evenly, unknown
from filters.content.detector import STRIDE, Detection, Detector

LEAST = 0.1  # probability of a detection from which it adds to its class
COUNTED = 0.4  # probability of a detection that is counted


class Objects:
    """Columns, computed from at most `frames` sampled frames, likeliest class first: `objects_labels`;
    `objects_probabilities`, the mean over frames of the likeliest detection, 0 where there is none; `objects_counts`,
    the median number of detections over the frames that have any, at least 1.

    People are found from any side and partly hidden; drawn ones, and hands alone, seldom. Small objects and those seen
    from above are often missed or confused.
    """

    name = "objects"
    version = 1
    needs = frozenset({Track.FRAMES})
    columns: Mapping[str, pa.DataType] = {
        "objects_labels": pa.list_(pa.string()),
        "objects_probabilities": pa.list_(pa.float32()),
        "objects_counts": pa.list_(pa.float32()),
    }

    def __init__(self, frames: int = 4):
        self.frames = frames

    @functools.cached_property
    def detector(self) -> Detector:
        return Detector()

    def score(self, clip: ClipView) -> dict[str, Score]:
        if not len(clip.frames) or min(clip.frames[0].shape[:2]) < STRIDE:
            return unknown(self, f"no frame of at least {STRIDE} pixels")
        frames = [clip.frames[i] for i in evenly(len(clip.frames), self.frames)]
        try:
            detections_by_frame = [self.detector(frame, LEAST) for frame in frames]
        except FloatingPointError:
            return unknown(self, "the result is not a finite number")
        best: defaultdict[str, list[float]] = defaultdict(list)
        counts: defaultdict[str, list[int]] = defaultdict(list)
        for detections in detections_by_frame:
            for label, group in _by_label(detections).items():
                best[label].append(group[0].probability)
                counts[label].append(sum(detection.probability >= COUNTED for detection in group))
        means = {label: math.fsum(values) / len(frames) for label, values in best.items()}
        labels = sorted(means, key=lambda label: (-means[label], label))
        return {
            "objects_labels": labels,
            "objects_probabilities": [means[label] for label in labels],
            "objects_counts": [float(max(1, median(counts[label]))) for label in labels],
        }


def _by_label(detections: list[Detection]) -> dict[str, list[Detection]]:
    groups: defaultdict[str, list[Detection]] = defaultdict(list)
    for detection in detections:
        groups[detection.label].append(detection)
    return groups
