"""Sharpness: how much fine detail the sampled frames hold, so that blurred and upscaled clips can be left out."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown

SHORT_SIDE = 256  # pixels at which every frame is scored; a smaller source is enlarged and therefore scores as soft
FLAT = 0.5  # grey levels: mean step between neighbouring pixels below which a frame has no detail
BLOCK_SIZE = 16  # pixels
LIVELIEST = 0.25  # share of the blocks that are scored: those with the most detail
REBLUR = 9  # pixels: length of the line along which a frame is blurred again
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))  # offsets, down and across, to the neighbour of a step
BLURS = [
    k.astype(np.float32) / REBLUR
    for k in (np.ones((1, REBLUR)), np.ones((REBLUR, 1)), np.eye(REBLUR), np.eye(REBLUR)[::-1])
]


class Sharpness:
    """Medians over the sampled frames; None for clips without a frame that has detail."""

    name = "sharpness"
    version = 3
    needs = frozenset({Track.FRAMES})
    columns: Mapping[str, pa.DataType] = {
        "sharpness_laplacian": pa.float32(),  # variance of the Laplacian, unbounded: grows with detail and contrast
        "sharpness_detail": pa.float32(),  # 0 to 1: what is lost by blurring again; falls with any blur, also of motion
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        grey = [_judged(frame) for frame in clip.frames if min(frame.shape[:2]) >= 32]
        grey = [g for g in grey if np.abs(np.diff(g)).mean() > FLAT]
        losses = [loss for loss in map(reblur_loss, grey) if loss is not None]
        if not losses:
            return unknown(self, "no detail to measure" if len(clip.frames) else "no frames")
        return {
            "sharpness_laplacian": float(np.median([laplacian_variance(g) for g in grey])),
            "sharpness_detail": float(np.median(losses)),
        }


def laplacian_variance(grey: np.ndarray) -> float:
    """Variance of the Laplacian of (h, w) float32 grey levels, > 0 (Pech-Pacheco et al., ICPR 2000)."""
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def reblur_loss(grey: np.ndarray) -> float | None:
    """Return the share of the steps between neighbouring pixels that a second blur removes, for the direction out of
    four with the smallest share: 0 blurred already, 1 all detail (one minus the metric of Crete et al., SPIE 2007). Of
    (h, w) float32 grey levels. Only the quarter of the blocks with the most detail counts, because a background may be
    out of focus; motion blur lacks steps along its path in those blocks too. None if there are no steps."""
    rows, columns = grey.shape[0] // BLOCK_SIZE, grey.shape[1] // BLOCK_SIZE
    cells = []
    for (down, across), blur in zip(DIRECTIONS, BLURS, strict=True):
        soft = cv2.filter2D(grey, -1, blur)
        neighbours = slice(down, grey.shape[0] - 1 + down), slice(1 + across, grey.shape[1] - 1 + across)
        steps, remaining = (cv2.absdiff(p[:-1, 1:-1], p[neighbours]) for p in (grey, soft))
        both = cv2.merge([steps, np.maximum(steps - remaining, 0)])[: rows * BLOCK_SIZE, : columns * BLOCK_SIZE]
        cells.append(cv2.resize(both, (columns, rows), interpolation=cv2.INTER_AREA))
    total, lost = np.moveaxis(np.stack(cells), 3, 0)  # (4, rows, columns) each
    lively = total.sum(axis=0) >= max(len(DIRECTIONS) * FLAT, np.quantile(total.sum(axis=0), 1 - LIVELIEST))
    if not lively.any():
        return None
    shares = lost[:, lively].sum(axis=1) / np.maximum(total[:, lively].sum(axis=1), 1e-6)
    return float(shares.min())


def _judged(rgb: np.ndarray) -> np.ndarray:
    """Return (h, w) float32 grey levels of a frame at the size that is scored."""
    height, width = rgb.shape[:2]
    scale = SHORT_SIDE / min(height, width)
    size = (round(width * scale), round(height * scale))
    grey = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR).astype(np.float32)
