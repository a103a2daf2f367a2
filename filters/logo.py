"""Logo: static sharp detail in a corner of a moving picture: station logos, watermarks, clocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, evenly, unknown

SAMPLES = 24  # frames that are analysed, evenly spread
EDGE = 6.0  # grey levels per proxy pixel: mean gradient of an edge
STANDS = 0.94  # share of its strength that a static edge keeps when gradients are averaged over time
CORNER = (0.3, 0.3)  # fractions of the height and width that a corner covers
MOVES = 0.5  # largest median of that share outside the corners for a picture with enough motion
JOINS = 5  # proxy pixels: static edges at most this far apart are one cluster
SEEN = 0.02  # smallest share of edges among the pixels outside the corners


class Logo:
    name = "logo"
    version = 2
    needs = frozenset({Track.LUMA})
    columns: Mapping[str, pa.DataType] = {
        "logo_area": pa.float32(),  # share of the worst corner that standing edges cover; null when too little moves
        "logo_corner": pa.string(),  # top_left, top_right, bottom_left or bottom_right; null where there is none
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        edges = gradients(clip.luma)
        if edges is None:
            return unknown(self, "fewer than five frames, or a sliver")
        rows, columns = round(edges.strength.shape[0] * CORNER[0]), round(edges.strength.shape[1] * CORNER[1])
        middle = edges.strength > EDGE
        areas = {}
        for name, corner in {
            "top_left": np.s_[:rows, :columns],
            "top_right": np.s_[:rows, -columns:],
            "bottom_left": np.s_[-rows:, :columns],
            "bottom_right": np.s_[-rows:, -columns:],
        }.items():
            middle[corner] = False
            areas[name] = _covered(edges, corner)
        if middle.sum() < SEEN * middle.size or np.median(edges.kept[middle]) > MOVES:
            return unknown(self, "too little moves to tell")
        worst = max(areas, key=lambda name: areas[name])
        return {"logo_area": areas[worst], "logo_corner": worst if areas[worst] > 0 else None}


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


def _covered(edges: Gradients, corner: tuple[slice, slice]) -> float:
    """Return the share of a corner in the largest cluster of static edges of both directions. Lines of the scene along
    its motion are static too, but have one direction; texture that is static by chance forms many small clusters."""
    standing = ((edges.strength > EDGE) & (edges.kept > STANDS))[corner]
    around = cv2.boxFilter(standing.astype(np.uint8), -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    standing &= around >= 4
    upright = edges.upright[corner] > np.sqrt(0.5)
    joined = cv2.dilate(standing.astype(np.uint8), np.ones((JOINS, JOINS), np.uint8))
    count, labels = cv2.connectedComponents(joined)
    shares = [0.0]
    for label in range(1, count):
        cluster = standing & (labels == label)
        shares.append(2 * float(min((cluster & upright).mean(), (cluster & ~upright).mean())))
    return max(shares)
