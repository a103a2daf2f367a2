"""Verification of gradual transitions: test whether the frames inside are blends of the frames on both sides.

The network of cascade.py classifies similarities between frames; this test uses their pixels. In the space of pictures,
every frame of a dissolve lies on the line between the two shots, and a fade contains a frame of a single colour.
Neither holds for camera motion, for objects that cover the picture, or for wipes. The lowest probability at which a
transition is accepted is therefore low for blends and high otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.shots.frame_features import NOISE, mean_cells, unlike

POSSIBLE = 0.6  # lowest accepted probability if the frames are blends
LIKELY = 0.9  # lowest accepted probability if the frames may be blends
CERTAIN = 0.97  # lowest accepted probability if the frames are not blends
WITHOUT_SIDE = 0.995  # lowest accepted probability at an end of the source, where one of the two shots is missing
LONG, LONG_CERTAIN = 1.85, 0.99  # seconds, and lowest accepted probability of a longer transition
ON_LINE, OFF_LINE = 0.25, 0.6  # relative distance from the line up to which frames are blends; above which they are not
MIXED = 0.15  # least share of each shot in a mixed frame, and largest relative distance of it from the line
FLAT = 8.0  # grey levels; standard deviation below which a frame has a single colour
SAME = 0.25  # distance of two frames, the lower one by `unlike`, below which both sides of a flash show one picture
NEAR, SIDE = 0.4, 3  # seconds, and largest number of frames, that represent each shot


class Blend(NamedTuple):
    """Result of `blend`. `off_line`: mean distance of the frames from the line between both sides, relative to the
    distance of the sides; None without frames on both sides. `flat`: whether a frame has a single colour. `flash`:
    whether that colour is brighter than both sides, which show one picture. `sides`: number of frames before and
    after."""

    off_line: float | None
    flat: bool
    flash: bool
    sides: tuple[int, int]


def blend(times: np.ndarray, colour: np.ndarray, leave: float, enter: float) -> Blend:
    """Compare the frames with leave <= time < enter with those before and after. `times` are ascending seconds, (n,);
    `colour` is (n, 27, 48, 3) uint8."""
    before = np.flatnonzero((times < leave) & (times > leave - NEAR))[-SIDE:]
    after = np.flatnonzero((times >= enter) & (times < enter + NEAR))[:SIDE]
    inside = np.flatnonzero((times >= leave) & (times < enter))
    sides = len(before), len(after)
    contrast = colour[inside].std(axis=(1, 2, 3))
    flat = bool(len(inside)) and float(contrast.min()) < FLAT
    if not (len(before) and len(after) and len(inside)):
        return Blend(None, flat, False, sides)
    flattest = float(colour[inside[contrast.argmin()]].mean())
    bright = flattest > max(float(colour[rows].mean()) for rows in (before, after))
    pairs = (unlike(colour[i], colour[j]) for i in before for j in after)  # the light may still fade in the nearest
    flash = flat and bright and min(min(pair) for pair in pairs) < SAME
    ends = np.stack([colour[rows].mean(axis=0).round().astype(np.uint8) for rows in (before, after)])
    first, last = mean_cells(ends)
    step, moved = last - first, mean_cells(colour[inside]) - first
    length = float((step * step).sum()) + NOISE * step.shape[1]
    place = (moved * step).sum(axis=(1, 2)) / length
    apart = moved - place[:, None, None] * step
    off_line = float(np.sqrt((apart * apart).sum(axis=(1, 2)) / length).mean())
    return Blend(off_line, flat, flash, sides)


def is_mixed(before: np.ndarray, frame: np.ndarray, after: np.ndarray) -> bool:
    """Return whether a frame, (27, 48, 3) uint8, is a mixture of the frames before and after, as the conversion of
    frame rates and deinterlacing make one at a cut."""
    first, frame_cells, last = mean_cells(np.stack([before, frame, after]))
    step, moved = last - first, frame_cells - first
    length = float((step * step).sum()) + NOISE * step.shape[1]
    place = float((moved * step).sum()) / length
    apart = moved - place * step
    share = min(place, 1 - place)
    return share >= MIXED and float(np.sqrt((apart * apart).sum() / length)) <= MIXED


def is_transition(probability: float, seconds: float, pictures: Blend) -> bool:
    """Return whether a candidate is a gradual transition: `probability` by the network, duration in `seconds`."""
    if seconds > LONG and probability < LONG_CERTAIN:
        return False
    if pictures.flash:
        return False
    if pictures.flat:
        return probability >= POSSIBLE
    if pictures.off_line is None or min(pictures.sides) < 2:
        return probability >= WITHOUT_SIDE
    if pictures.off_line <= ON_LINE:
        return probability >= POSSIBLE
    return probability >= (CERTAIN if pictures.off_line > OFF_LINE else LIKELY)
