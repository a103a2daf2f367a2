"""Naturalness: distance of the picture's fine structure from that of undistorted photographs.

A no-reference quality measure like NIQE: statistics of contrast-normalised luma at two scales, compared with a model of
good pictures (naturalness.npz, made by tests/benchmarks/filters/fit_naturalness.py). Blur and blocks give large
distances. White noise does not: contrast normalisation removes it, and fine texture has the same statistics; use
`noise` instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown

PATCH_SIZE = 64  # pixels: side of the squares that statistics are computed on
SHAPES = np.arange(0.2, 10, 0.005)  # candidate shapes of the generalised Gaussian
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # offsets, down and across, of the pixels that products are taken with
LIVELIEST = 0.5  # share of a picture's squares that are used: those with the most contrast


class Naturalness:
    name = "naturalness"
    version = 1
    needs = frozenset({Track.DETAIL})
    columns: Mapping[str, pa.DataType] = {
        "naturalness_distance": pa.float32(),  # Mahalanobis, 0 like a good photograph; blur and blocks are far
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        value = distance(clip.detail)
        return unknown(self, "no texture") if value is None else {"naturalness_distance": value}


def distance(patches: Sequence[np.ndarray]) -> float | None:
    """Distance of the mean features of (h, w) uint8 luma patches, source pixels, from those of good photographs
    (after Mittal et al., IEEE Signal Processing Letters 20, 2013); None where no square has texture."""
    features = [row for patch in patches for row in square_features(patch)]
    if not features:
        return None
    centre, spread = _model()
    away = np.mean(features, axis=0) - centre
    return float(np.sqrt(away @ np.linalg.solve(spread, away) / len(away)))


def square_features(patch: np.ndarray) -> list[np.ndarray]:
    """Return the features, (36,) each, of the squares of a (h, w) uint8 patch with the most contrast."""
    if min(patch.shape) < PATCH_SIZE:
        return []
    grey = patch.astype(np.float32)
    half = cv2.resize(grey, (grey.shape[1] // 2, grey.shape[0] // 2), interpolation=cv2.INTER_AREA)
    (normal, contrast), (small, _) = normalised(grey), normalised(half)
    rows, columns = grey.shape[0] // PATCH_SIZE, grey.shape[1] // PATCH_SIZE
    squares = [(y, x) for y in range(rows) for x in range(columns)]
    size = (columns * PATCH_SIZE, rows * PATCH_SIZE)
    means = cv2.resize(contrast[: size[1], : size[0]], (columns, rows), interpolation=cv2.INTER_AREA)
    life = {(y, x): float(means[y, x]) for y, x in squares}
    kept = sorted(squares, key=lambda s: -life[s])[: max(1, round(LIVELIEST * len(squares)))]
    kept = [square for square in kept if life[square] > 1]
    if not kept:
        return []
    scales = ((normal, PATCH_SIZE), (small, PATCH_SIZE // 2))
    return list(
        np.hstack([_statistics(np.stack([_cut(picture, y, x, side) for y, x in kept])) for picture, side in scales])
    )


def normalised(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (luma - local mean) / (local deviation + 1), and that deviation; (h, w) float32 each."""
    mean = cv2.GaussianBlur(grey, (7, 7), 7 / 6)
    deviation = np.sqrt(np.abs(cv2.GaussianBlur(grey * grey, (7, 7), 7 / 6) - mean * mean))
    return (grey - mean) / (deviation + 1), deviation


def _cut(picture: np.ndarray, y: int, x: int, side: int) -> np.ndarray:
    return picture[y * side : (y + 1) * side, x * side : (x + 1) * side]


def _statistics(normal: np.ndarray) -> np.ndarray:
    """(k, side, side) squares -> (k, 18): shape and spread of the values; shape, mean and both spreads of products with
    four neighbours."""
    shape, lower, upper, _ = asymmetric_gaussian(normal)
    columns = [shape, (lower + upper) / 2]
    for down, across in NEIGHBOURS:
        shape, lower, upper, mean = asymmetric_gaussian(normal * np.roll(normal, (down, across), (1, 2)))
        columns += [shape, mean, lower, upper]
    return np.stack(columns, axis=1)


def asymmetric_gaussian(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit asymmetric generalised Gaussians to each of (k, h, w) pictures by moments: shapes, left and right scales, and
    means, (k,) float64 each (Lasmar et al., ICIP 2009)."""
    flat = values.reshape(len(values), -1)
    negative, positive = np.minimum(flat, 0), np.maximum(flat, 0)
    below, above = (np.einsum("ij,ij->i", side, side).astype(np.float64) for side in (negative, positive))
    lower, upper = (
        np.sqrt(square / np.maximum(np.count_nonzero(side, axis=1), 1)) + 1e-6
        for square, side in ((below, negative), (above, positive))
    )
    ratio = lower / upper
    absolute = positive.sum(axis=1).astype(np.float64) - negative.sum(axis=1)
    moment = absolute**2 / np.maximum((below + above) * flat.shape[1], 1e-9)
    wanted = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    moments, scales, means = _tables()
    index = np.minimum(np.searchsorted(moments, wanted), len(SHAPES) - 1)
    lower, upper = lower * scales[index], upper * scales[index]
    return SHAPES[index], lower, upper, (upper - lower) * means[index]


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each of `SHAPES` the squared mean of the absolute value over the mean square, which rises; the scale
    over the deviation; and the mean over the difference of the scales."""
    first, second, third = (np.array([math.lgamma(k / shape) for shape in SHAPES]) for k in (1, 2, 3))
    return np.exp(2 * second - first - third), np.exp((first - third) / 2), np.exp(second - first)


@functools.cache
def _model() -> tuple[np.ndarray, np.ndarray]:
    with np.load(Path(__file__).with_suffix(".npz")) as stored:
        return stored["mean"], stored["covariance"]
