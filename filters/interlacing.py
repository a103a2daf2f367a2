"""Interlacing: combs, where two moments of time share a picture line by line."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown

STEP = 3  # grey levels that neighbouring lines must differ by, to and fro


class Interlacing:
    name = "interlacing"
    version = 1
    needs = frozenset({Track.DETAIL})
    columns: Mapping[str, pa.DataType] = {
        "interlacing_combs": pa.float32(),  # share of a patch's pixels inside a comb, in the worst patch, 0 to 1
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        large = [patch for patch in clip.detail if min(patch.shape) >= 32]
        return {"interlacing_combs": max(map(combs, large))} if large else unknown(self, "smaller than 32 pixels")


def combs(patch: np.ndarray) -> float:
    """Share of the pixels of (h, w) uint8 where five lines go up and down in turn by more than `STEP`, less the share
    where five columns do: fine texture does both, a comb only the one."""
    return max(0.0, _zigzag(patch) - _zigzag(patch.T))


def _zigzag(patch: np.ndarray) -> float:
    step = np.diff(patch.astype(np.int16), axis=0)
    turn = np.where(np.arange(len(step)) % 2 == 0, 1, -1)[:, None] * step
    up, down = turn > STEP, turn < -STEP
    return float(max(_four(up), _four(down)))


def _four(rows: np.ndarray) -> float:
    return float((rows[:-3] & rows[1:-2] & rows[2:-1] & rows[3:]).mean())
