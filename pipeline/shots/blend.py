"""The second witness of a gradual transition: whether the frames in it are blends of the frames on both sides of it.

The network of cascade.py sees how frames relate; this looks at the pixels. Every frame of a dissolve lies on the line
between the two shots, and some frame of a fade is of one colour. Neither is true of a camera that turns or a hand that
comes close, nor of a wipe: so where pictures blend a doubtful network is enough, elsewhere it has to be certain.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.shots.frame_features import NOISE, mean_cells

POSSIBLE = 0.6  # lowest probability at which pictures that blend are a gradual transition
LIKELY = 0.9  # the same of pictures that may blend
CERTAIN = 0.97  # the same of pictures that do not
WITHOUT_SIDE = 0.995  # the same at an end of the source, where one of the two shots is missing
LONG, LONG_CERTAIN = 2.2, 0.99  # seconds, and lowest probability of a longer transition
ON_LINE, OFF_LINE = 0.25, 0.6  # distance from the line below which pictures blend, and above which they do not
FLAT = 8.0  # grey levels: deviation of a frame of one colour
NEAR, SIDE = 0.4, 3  # seconds, and frames at most, that stand for a shot


class Blend(NamedTuple):
    """`off_line`: mean distance of the frames from the line between both sides, relative to the sides' distance; None
    without frames on both sides. `flat`: whether a frame is of one colour. `sides`: frames before and after."""

    off_line: float | None
    flat: bool
    sides: tuple[int, int]


def blend(times: np.ndarray, colour: np.ndarray, leave: float, enter: float) -> Blend:
    """Compare the frames with leave <= time < enter with those beside them. `times` (n,) seconds rise, `colour` is
    (n, 27, 48, 3) uint8."""
    before = np.flatnonzero((times < leave) & (times > leave - NEAR))[-SIDE:]
    after = np.flatnonzero((times >= enter) & (times < enter + NEAR))[:SIDE]
    inside = np.flatnonzero((times >= leave) & (times < enter))
    flat = bool(len(inside)) and float(colour[inside].std(axis=(1, 2, 3)).min()) < FLAT
    if not (len(before) and len(after) and len(inside)):
        return Blend(None, flat, (len(before), len(after)))
    ends = np.stack([colour[rows].mean(axis=0).round().astype(np.uint8) for rows in (before, after)])
    first, last = mean_cells(ends)
    step, moved = last - first, mean_cells(colour[inside]) - first
    length = float((step * step).sum()) + NOISE * step.shape[1]
    place = (moved * step).sum(axis=(1, 2)) / length
    apart = moved - place[:, None, None] * step
    off_line = float(np.sqrt((apart * apart).sum(axis=(1, 2)) / length).mean())
    return Blend(off_line, flat, (len(before), len(after)))


def is_transition(probability: float, seconds: float, pictures: Blend) -> bool:
    """Return whether a gradual transition is one: `probability` is the network's, `seconds` its length."""
    if seconds > LONG and probability < LONG_CERTAIN:
        return False
    if pictures.flat:
        return probability >= POSSIBLE
    if pictures.off_line is None or min(pictures.sides) < 2:
        return probability >= WITHOUT_SIDE
    if pictures.off_line <= ON_LINE:
        return probability >= POSSIBLE
    return probability >= (CERTAIN if pictures.off_line > OFF_LINE else LIKELY)
