"""Dominant colours of a clip's frames, as common colour names."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from filters.base import shrunk

SHRUNK_SIZE = 64  # pixels of the longer side at which colours are counted
GREY, COLOURED = 0.13, 0.25  # largest saturation of grey, smallest saturation of a colour; 0 to 1
NAMED, WHITE = 0.2, 0.85  # smallest value of a pixel that has a name, and of white; 0 to 1
BROWN = 0.6  # value under which orange is brown
# Degrees of hue, from and to; hues between two ranges have no name.
HUES = {
    "orange": (18, 40),
    "yellow": (46, 62),
    "green": (75, 160),
    "turquoise": (168, 195),
    "blue": (200, 255),
    "purple": (262, 290),
    "pink": (300, 335),
}
RED = (345, 12)
MOSTLY, EACH = 0.5, 0.15  # smallest shares of the pixels: of the one or two colours together, and of each


def colours(frames: Sequence[np.ndarray]) -> list[tuple[str, float]]:
    """Return (name, share) of the one or two colours that cover at least half of the frames, the larger first.

    Frames are (h, w, 3) uint8 RGB. The result is empty if no two colours cover half. Dark pixels have no colour name,
    because `exposure` measures darkness.
    """
    shares: dict[str, float] = {}
    for frame in frames:
        for name, share in _named(shrunk(frame, SHRUNK_SIZE)).items():
            shares[name] = shares.get(name, 0.0) + share / len(frames)
    ranked = sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))
    for most in (ranked[:1], ranked[:2]):
        if most and most[-1][1] >= EACH and sum(share for _, share in most) >= MOSTLY:
            return most
    return []


def _named(rgb: np.ndarray) -> dict[str, float]:
    hue, saturation, value = np.moveaxis(cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2HSV), 2, 0)
    plain = (value >= NAMED) & (saturation <= GREY)
    coloured = (value >= NAMED) & (saturation >= COLOURED)
    masks = {"white": plain & (value >= WHITE), "grey": plain & (value < WHITE)}
    masks["red"] = coloured & ((hue >= RED[0]) | (hue < RED[1]))
    for name, (low, high) in HUES.items():
        masks[name] = coloured & (hue >= low) & (hue < high)
    masks["brown"] = masks["orange"] & (value < BROWN)
    masks["orange"] &= value >= BROWN
    return {name: float(mask.mean()) for name, mask in masks.items()}
