"""Stitching: a hard cut whose two sides show the same scene is none, as in Panda-70M (Chen et al., CVPR 2024).

Compared are the sampled candidates next to it, by the looks of the embedded encoder, whose network is loaded when the
first cut is in doubt: between pictures of other colours nothing is. Only hard cuts, since whatever a dissolve or fade
leads to, its frames belong in no clip.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.proxy import TINY
from pipeline.similarity import histograms

OTHER_COLOURS = 1.0  # difference of histograms, 0 to 2, above which no pair of one scene was seen
SAME_SCENE = 0.76  # cosine; on joined films false alarms had 0.80 to 0.87, true transitions at most 0.71


def same_scene(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether two pictures, (h, w, 3) uint8 RGB, show one scene."""
    tiny = np.stack([cv2.resize(picture, TINY, interpolation=cv2.INTER_AREA) for picture in (before, after)])
    first, second = histograms(tiny)
    if np.abs(first - second).sum() > OTHER_COLOURS:
        return False
    from filters.conse import appearance  # torch, which most scans do not need

    return float(appearance(before) @ appearance(after)) > SAME_SCENE
