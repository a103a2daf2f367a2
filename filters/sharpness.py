"""Sharpness: how much fine detail the sampled frames hold, so that blurred and upscaled clips can be left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track

SHORT_SIDE = 256  # pixels at which every frame is judged; a smaller source is enlarged, and so counts as soft
FLAT = 0.5  # mean step between neighbouring pixels, grey levels, below which there is nothing to be sharp
BLOCK = 16  # pixels
SHARPEST = 0.75  # quantile of the blocks that the picture is judged by
REBLUR = 9  # pixels, the box that a frame is blurred with again


class Sharpness:
    """Medians over the sampled frames; None for clips without a frame that shows anything."""

    name = "sharpness"
    version = 1
    needs = frozenset({Track.FRAMES})
    columns: Mapping[str, pa.DataType] = {
        "sharpness_laplacian": pa.float32(),  # variance of the Laplacian, unbounded: grows with detail and contrast
        "sharpness_detail": pa.float32(),  # 0 to 1: what is lost by blurring again; little depends on the content
    }

    def score(self, clips: Sequence[ClipView]) -> list[dict[str, Score]]:
        return [self._score(clip.frames) for clip in clips]

    def _score(self, frames: Sequence[np.ndarray]) -> dict[str, Score]:
        grey = [_judged(frame) for frame in frames if min(frame.shape[:2]) >= 32]
        grey = [g for g in grey if np.abs(np.diff(g)).mean() > FLAT]
        if not grey:
            return dict.fromkeys(self.columns)
        losses = [loss for loss in map(reblur_loss, grey) if loss is not None]
        return {
            "sharpness_laplacian": float(np.median([laplacian_variance(g) for g in grey])),
            "sharpness_detail": float(np.median(losses)) if losses else None,
        }


def laplacian_variance(grey: np.ndarray) -> float:
    """Variance of the Laplacian of (h, w) float32 grey levels, > 0 (Pech-Pacheco et al., ICPR 2000)."""
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def reblur_loss(grey: np.ndarray) -> float | None:
    """Share of the steps between neighbouring pixels that a second blur takes away, in the direction where it takes
    less: 0 blurred already, 1 all detail (one minus the metric of Crete et al., SPIE 2007). Of (h, w) float32 grey
    levels, by blocks; the answer is for the sharpest ones, because a background may be out of focus. None where no
    block holds any steps."""
    rows, columns = grey.shape[0] // BLOCK, grey.shape[1] // BLOCK
    losses = []
    for axis in (0, 1):
        kernel = (1, REBLUR) if axis == 0 else (REBLUR, 1)
        steps, soft = (np.abs(np.diff(p, axis=axis, append=0)) for p in (grey, cv2.blur(grey, kernel)))
        both = cv2.merge([steps, np.maximum(steps - soft, 0)])[: rows * BLOCK, : columns * BLOCK]
        total, lost = cv2.split(cv2.resize(both, (columns, rows), interpolation=cv2.INTER_AREA)[:-1, :-1])
        losses.append(np.where(total > 2 * FLAT, lost / np.maximum(total, FLAT), np.nan))
    known = np.minimum(*losses)
    known = known[np.isfinite(known)]
    return float(np.quantile(known, SHARPEST)) if len(known) >= 4 else None


def _judged(rgb: np.ndarray) -> np.ndarray:
    """(h, w) float32 grey levels of a frame at the size that is judged."""
    height, width = rgb.shape[:2]
    scale = SHORT_SIDE / min(height, width)
    size = (round(width * scale), round(height * scale))
    grey = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR).astype(np.float32)
