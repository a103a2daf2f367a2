"""Noise: grain in the smoothest parts of the picture."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown

BLOCK_SIZE = 16  # pixels
SMOOTHEST = 0.1  # quantile of the blocks that is assumed to be free of texture
MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)  # zero for slopes and edges along the axes


class Noise:
    name = "noise"
    version = 2
    needs = frozenset({Track.DETAIL})
    columns: Mapping[str, pa.DataType] = {"noise_sigma": pa.float32()}  # standard deviation, grey levels of 255

    def score(self, clip: ClipView) -> dict[str, Score]:
        estimates = [noise_sigma(patch) for patch in clip.detail if min(patch.shape) >= 2 * BLOCK_SIZE]
        sigmas = [sigma for sigma in estimates if sigma is not None]
        if not sigmas:
            return unknown(self, "patches are black, white or too small")
        return {"noise_sigma": float(np.median(sigmas))}


def noise_sigma(patch: np.ndarray) -> float | None:
    """Estimate the standard deviation of white noise in (h, w) uint8, grey levels, from the smoothest blocks (after
    Immerkaer, Computer Vision and Image Understanding 64, 1996). Blocks near black and white, where noise is clipped,
    are ignored; None if there are no others."""
    rows, columns = patch.shape[0] // BLOCK_SIZE, patch.shape[1] // BLOCK_SIZE
    grey = patch[: rows * BLOCK_SIZE, : columns * BLOCK_SIZE].astype(np.float32)
    rough = np.abs(cv2.filter2D(grey, -1, MASK, borderType=cv2.BORDER_REFLECT_101))
    size = (columns, rows)
    sigma = cv2.resize(rough, size, interpolation=cv2.INTER_AREA) * np.sqrt(np.pi / 2) / 6
    level = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    inside = (level > 12) & (level < 243)
    return float(np.quantile(sigma[inside], SMOOTHEST)) if inside.any() else None
