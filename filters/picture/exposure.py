"""Exposure: brightness of a clip, shares of crushed blacks and clipped whites, and contrast."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, evenly, unknown

SAMPLES = 16  # frames that are analysed, evenly spread
CRUSHED, BURNT = 6, 249  # grey levels up to which a pixel is crushed, and from which it is clipped


class Exposure:
    """Means over time, so that a fade changes the scores in proportion to its length."""

    name = "exposure"
    version = 1
    needs = frozenset({Track.LUMA})
    columns: Mapping[str, pa.DataType] = {
        "exposure_luma": pa.float32(),  # mean luma, 0 black to 1 white
        "exposure_dark": pa.float32(),  # share of the pixels that are crushed to black
        "exposure_bright": pa.float32(),  # share that is burnt to white
        "exposure_contrast": pa.float32(),  # spread between the 5th and the 95th percentile of luma, 0 to 1
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        luma = clip.luma
        if luma.size == 0:
            return unknown(self, "no frames")
        counts = np.stack([np.bincount(luma[k].ravel(), minlength=256) for k in evenly(len(luma), SAMPLES)])
        share = counts / counts.sum(axis=1, keepdims=True)
        below = share.cumsum(axis=1)
        low, high = (below >= 0.05).argmax(axis=1), (below >= 0.95).argmax(axis=1)
        return {
            "exposure_luma": float((share @ np.arange(256)).mean() / 255),
            "exposure_dark": float(share[:, : CRUSHED + 1].sum(axis=1).mean()),
            "exposure_bright": float(share[:, BURNT:].sum(axis=1).mean()),
            "exposure_contrast": float((high - low).mean() / 255),
        }
