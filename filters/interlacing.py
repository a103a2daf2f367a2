"""Interlacing: combs, where two moments of time share a picture line by line.

Fine texture (grass, sea, brick, shutters) has strong steps between neighbouring lines too. A comb is told from it by
motion: what moved between the two fields fits when the lines of one field are shifted, and texture fits no better
wherever it is shifted to.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown

FURTHEST = 12  # pixels that a field is shifted by to both sides
BLOCK = (16, 8)  # pixels across, and lines of one field, that are judged together
DIFFERS = 4.0  # grey levels: mean difference of a block's fields below which nothing shows
FITS = 0.5  # of that difference: what may be left of it after the best shift in a comb
LEAST_SIDE = 64  # pixels of a patch


class Interlacing:
    name = "interlacing"
    version = 2
    needs = frozenset({Track.DETAIL})
    columns: Mapping[str, pa.DataType] = {
        "interlacing_combs": pa.float32(),  # share of a patch's blocks inside a comb, in the worst patch, 0 to 1
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        large = [patch for patch in clip.detail if min(patch.shape) >= LEAST_SIDE]
        if not large:
            return unknown(self, f"smaller than {LEAST_SIDE} pixels")
        return {"interlacing_combs": max(map(combs, large))}


def combs(patch: np.ndarray) -> float:
    """Return the share of the blocks of a (h, w) uint8 patch, source pixels, whose lower field differs from the upper
    field's interpolation and fits it once it is shifted, sideways or by a line up or down."""
    upper, lower = patch[0::2], patch[1::2]
    lines = min(len(upper) - 1, len(lower))
    between = cv2.addWeighted(upper[:lines], 0.5, upper[1 : lines + 1], 0.5, 0)
    size = (patch.shape[1] // BLOCK[0], lines // BLOCK[1])
    target = np.ascontiguousarray(lower[:lines])
    padded = cv2.copyMakeBorder(between, 1, 1, FURTHEST, FURTHEST, cv2.BORDER_REPLICATE)

    def apart(across: int, down: int) -> np.ndarray:
        shifted = padded[1 + down : 1 + down + lines, FURTHEST + across : FURTHEST + across + patch.shape[1]]
        return cv2.resize(cv2.absdiff(target, shifted), size, interpolation=cv2.INTER_AREA)

    unshifted = apart(0, 0).astype(np.float32)
    differs = unshifted > DIFFERS
    if not differs.any():
        return 0.0
    best = np.minimum(apart(0, -1), apart(0, 1))
    for across in range(1, FURTHEST + 1):
        best = np.minimum(best, np.minimum(apart(-across, 0), apart(across, 0)))
    return float((differs & (best < FITS * unshifted)).mean())
