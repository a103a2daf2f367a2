"""Blockiness: steps on a grid of eight pixels, which strong compression leaves behind."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown

PERIOD = 8  # pixels: the transform size of MPEG-2, MPEG-4 and JPEG, and a divisor of the newer codecs' sizes
FAINT = 0.2  # log(1 + grey levels): smallest step beside the grid; weaker grids on smooth ground are not visible
LEAST = 0.25  # grey levels: mean step below which a patch is too flat to score


class Blockiness:
    name = "blockiness"
    version = 3
    needs = frozenset({Track.DETAIL})
    columns: Mapping[str, pa.DataType] = {
        "blockiness_grid": pa.float32(),  # how much larger steps are on the grid than beside it; 0: equal, 1: twice
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        patches = [block_steps(patch) for patch in clip.detail if min(patch.shape) >= 8 * PERIOD]
        steps = [value for value in patches if value is not None]
        if not steps:
            return unknown(
                self, "no texture in the patches" if patches else f"no patch of at least {8 * PERIOD} pixels"
            )
        return {"blockiness_grid": float(np.median(steps))}


def block_steps(patch: np.ndarray) -> float | None:
    """Return how much larger the second difference is across block edges than elsewhere, at the grid position where
    it is largest, as the mean of both directions; (h, w) uint8, source pixels. None for flat patches."""
    sides = [_excess(patch), _excess(patch.T)]
    return None if None in sides else float(np.mean([side for side in sides if side is not None]))


def _excess(patch: np.ndarray) -> float | None:
    """Return the excess across columns. A step between columns is measured relative to the mean of its neighbours, so
    that slopes do not count; its logarithm limits the weight of single strong edges of the scene."""
    step = np.abs(np.diff(patch.astype(np.float32), axis=1))
    if step.mean() < LEAST:
        return None
    jump = np.log1p(np.maximum(step[:, 1:-1] - (step[:, :-2] + step[:, 2:]) / 2, 0)).mean(axis=0)
    phases = np.array([jump[phase::PERIOD].mean() for phase in range(PERIOD)])
    top = int(phases.argmax())
    beside = float(np.delete(phases, top).mean())
    return (float(phases[top]) - beside) / max(beside, FAINT)
