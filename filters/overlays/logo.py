"""Logo: static sharp detail in a corner of a moving picture: station logos, watermarks, clocks."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown
from filters.gradients import Gradients, gradients

EDGE = 6.0  # grey levels per proxy pixel: mean gradient of an edge
STATIC = 0.94  # share of its strength that a static edge keeps when gradients are averaged over time
CORNER = (0.3, 0.3)  # fractions of the height and width that a corner covers
MOVES = 0.6  # largest median of that share outside the corners for a picture with enough motion
LEAST_EDGES = 0.02  # smallest share of edges among the pixels outside the corners
JOINS = 5  # proxy pixels: static edges at most this far apart are one cluster
TALLEST = 0.75  # largest height of a mark, fraction of its corner's
FILLS = 0.38  # smallest share of a mark's bounding box that its edges fill
NEAR = 6  # proxy pixels: width of the ring around a mark that is compared with it
TEXTURED = 0.3  # smallest share of edges in that ring for a comparison
AROUND = 0.65  # largest median of the kept share in the ring
RICH = 0.25  # smallest share of edges outside the corners if the ring has none to compare: a scene that moves widely


class Logo:
    name = "logo"
    version = 3
    needs = frozenset({Track.LUMA})
    columns: Mapping[str, pa.DataType] = {
        "logo_area": pa.float32(),  # share of the worst corner that standing edges cover; null if too little moves
        "logo_corner": pa.string(),  # top_left, top_right, bottom_left or bottom_right; null where there is none
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        edges = gradients(clip.luma)
        if edges is None:
            return unknown(self, "fewer than five frames, or a side under 32 pixels")
        rows, columns = round(edges.strength.shape[0] * CORNER[0]), round(edges.strength.shape[1] * CORNER[1])
        middle = edges.strength > EDGE
        corners = {
            "top_left": np.s_[:rows, :columns],
            "top_right": np.s_[:rows, -columns:],
            "bottom_left": np.s_[-rows:, :columns],
            "bottom_right": np.s_[-rows:, -columns:],
        }
        for corner in corners.values():
            middle[corner] = False
        if middle.sum() < LEAST_EDGES * middle.size or np.median(edges.kept[middle]) > MOVES:
            return unknown(self, "too little motion outside the corners")
        areas = {name: _largest_mark(edges, corner, middle.mean() > RICH) for name, corner in corners.items()}
        worst = max(areas, key=lambda name: areas[name])
        return {"logo_area": areas[worst], "logo_corner": worst if areas[worst] > 0 else None}


def _largest_mark(edges: Gradients, corner: tuple[slice, slice], rich: bool) -> float:
    """Return the share of a corner in the largest cluster of static edges that is a mark; 0 without one. `rich` is
    whether the scene has so many edges that a mark may also stand on a flat ground.

    Lines of the scene along its motion are static too, but have one direction. Texture that stays while other parts of
    the scene move makes clusters with gaps, or as tall as the corner, or with more static edges around them.
    """
    static = (edges.strength > EDGE) & (edges.kept > STATIC)
    around = cv2.boxFilter(static.astype(np.uint8), -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    static = (static & (around >= 4))[corner]
    upright = edges.upright[corner] > np.sqrt(0.5)
    joined = cv2.dilate(static.astype(np.uint8), np.ones((JOINS, JOINS), np.uint8))
    count, labels = cv2.connectedComponents(joined)
    shares = [0.0]
    for label in range(1, count):
        cluster = static & (labels == label)
        share = 2 * float(min((cluster & upright).mean(), (cluster & ~upright).mean()))
        if share > max(shares) and _is_mark(edges, corner, cluster, rich):
            shares.append(share)
    return max(shares)


def _is_mark(edges: Gradients, corner: tuple[slice, slice], cluster: np.ndarray, rich: bool) -> bool:
    """Return whether a cluster of a corner's pixels is low and dense, and the edges around it move."""
    rows, columns = np.flatnonzero(cluster.any(axis=1)), np.flatnonzero(cluster.any(axis=0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    if height > TALLEST * len(cluster) or cluster.sum() < FILLS * height * width:
        return False
    outside = np.zeros(edges.strength.shape, np.uint8)
    outside[corner] = cluster
    top, left = (part.indices(edges.strength.shape[axis])[0] for axis, part in enumerate(corner))
    box = np.s_[
        max(0, top + rows[0] - NEAR) : top + rows[-1] + NEAR + 1,
        max(0, left + columns[0] - NEAR) : left + columns[-1] + NEAR + 1,
    ]
    ring = cv2.dilate(outside, np.ones((JOINS, JOINS), np.uint8))[box] == 0
    textured = ring & (edges.strength[box] > EDGE)
    if textured.sum() < TEXTURED * ring.sum():
        return rich
    return bool(np.median(edges.kept[box][textured]) < AROUND)
