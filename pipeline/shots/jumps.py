"""Jumps: gaps at which the whole picture becomes another one while it hardly moves before and after.

The network of cascade.py gives some real cuts low probabilities: those between two views of one scene, beside bars with
lettering, and in the dark. The change at such a cut still stands out from the motion around it, as in PySceneDetect's
adaptive detector, here after block matching. A flash is no jump, because the picture comes back. Lettering that changes
on its ground is none either: the colours stay, and so does most of the picture.
"""

from __future__ import annotations

import numpy as np

from pipeline.shots.frame_features import MOVED, PAIRS

AROUND = 2  # gaps on each side that a jump is compared with
LEAST = 18.0  # grey levels: mean difference of blocks after their best shift
RATIO = 2.8  # factor by which it exceeds those of the gaps around
CALM = 1.0  # grey levels added to those
UNLIKE = 0.15  # one minus the correlation of luma
LIGHT = 0.2  # added to UNLIKE for each factor of e by which the mean luma changes
DARK = 0.02  # added to mean luma, 0 to 1
RECOLOURED, UNRELATED = 0.22, 0.5  # difference of the colour histograms, or one minus the correlation without it
CONTRAST = 10.0  # grey levels: lowest deviation of luma on both sides


def jumps(inputs: np.ndarray) -> np.ndarray:
    """Return (n - 2 * AROUND,) bool for the gaps before frames AROUND up to n - AROUND of features (n, FEATURES)."""
    middle = np.arange(AROUND, len(inputs) - AROUND)
    moved = 32 * np.stack([inputs[:, _MOVED + 2 * index] for index in range(len(MOVED))])
    seconds = np.exp2(inputs[:, -1])
    around = [
        moved[0, middle + step] * np.sqrt(seconds[middle] / seconds[middle + step])
        for step in range(-AROUND, AROUND + 1)
        if step
    ]
    change = moved[:, middle].min(axis=0)
    pairs = [4 + 6 * PAIRS.index(lag) for lag in MOVED]
    uncorrelated = np.min([inputs[middle, pair + 2] for pair in (*pairs, 4 + 6 * PAIRS.index(8))], axis=0)
    recoloured = np.min([inputs[middle, pair + 3] for pair in pairs], axis=0)
    light = np.abs(np.log((inputs[middle, 0] + DARK) / (inputs[middle - 1, 0] + DARK)))
    contrast = 64 * np.minimum(inputs[middle - 1, 1], inputs[middle, 1])
    result: np.ndarray = (
        (change >= LEAST)
        & (change >= RATIO * (np.max(around, axis=0) + CALM))
        & (uncorrelated >= UNLIKE + LIGHT * light)
        & ((recoloured >= RECOLOURED) | (uncorrelated >= UNRELATED))
        & (contrast >= CONTRAST)
    )
    return result


_MOVED = 4 + 6 * len(PAIRS)  # column of the first moved pair
