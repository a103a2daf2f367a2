"""Gradients over time: how strong the edges of a clip are, and how far they keep their position."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from filters.base import evenly

SAMPLES = 24  # frames that are analysed, evenly spread


@dataclass(frozen=True)
class Gradients:
    """Gradients of a clip's luma over time; (h, w) float32 each."""

    strength: np.ndarray  # mean length, grey levels per pixel
    kept: np.ndarray  # length of the mean gradient over the mean length, 0 to 1: near 1 for static edges
    upright: np.ndarray  # share of the horizontal part in the mean, 0 to 1


def gradients(luma: np.ndarray) -> Gradients | None:
    """Measure the gradients of (n, h, w) uint8 frames; None for fewer than five frames or a side under 32 pixels."""
    if len(luma) < 5 or min(luma.shape[1:]) < 32:
        return None
    picks = evenly(len(luma), SAMPLES)
    strength, right, down = (np.zeros(luma.shape[1:], np.float32) for _ in range(3))
    for k in picks:
        x, y = (part.astype(np.float32) / 8 for part in cv2.spatialGradient(luma[k]))  # Sobel's kernel sums to 8
        right += x
        down += y
        strength += cv2.magnitude(x, y)
    mean = cv2.magnitude(right, down)
    return Gradients(strength / len(picks), mean / (strength + 1e-6), np.abs(right) / (mean + 1e-6))
