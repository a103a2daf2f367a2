"""Motion: speed and place of object motion over the whole clip, after subtracting the camera's motion."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown
from filters.movement.global_motion import NOISE, GlobalMotion, global_motion, grid, why_unseen

BELIEVED = 0.35  # smallest belief of a cell whose residual counts
SLOWEST = 0.015  # picture heights per second: residual speed below which nothing moves
PARALLAX = 0.15  # fraction of the camera's speed that depth and lens distortion add to the residual of static objects
MISFIT = 0.4  # fraction of the residual that differences of brightness must confirm
FAR = 0.014  # picture heights: largest misfit that is required, because differences of brightness saturate
GRAIN = 2.0  # grey levels of difference due to noise and compression
FASTER = 0.8  # quantile of a moving region's speeds used as its speed: flow smears slower motion around it
NEIGHBOURS = 3  # moving cells in 3x3, including the cell itself, that confirm a cell's motion


class Motion:
    """Speeds are unsigned, so that opposite motions add up instead of cancelling."""

    name = "motion"
    version = 2
    needs = frozenset({Track.LUMA, Track.FLOW})
    columns: Mapping[str, pa.DataType] = {
        "motion_object": pa.float32(),  # mean over time of the moving region's speed, picture heights/s; 0: still
        "motion_camera": pa.float32(),  # median over time of the camera's speed, picture heights/s
        "motion_area": pa.float32(),  # mean share of the picture that moves by itself, 0 to 1
        "motion_times": pa.list_(pa.float32()),  # middle of each analysed interval, seconds from the clip's start
        "motion_speed": pa.list_(pa.float32()),  # in each: the moving region's speed; 0 when nothing moves
        "motion_x": pa.list_(pa.float32()),  # its centre of mass as a fraction of the width; NaN when nothing moves
        "motion_y": pa.list_(pa.float32()),  # and of the height
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        whole = global_motion(clip)
        if whole is None:
            return unknown(self, why_unseen(clip))
        valid = whole.valid
        speed, moving = object_motion(clip, whole)
        times = whole.times.mean(axis=1) - clip.start
        region, centre_x, centre_y = _regions(speed, moving)
        seconds = whole.seconds[valid]
        return {
            "motion_object": float(np.average(region[valid], weights=seconds)),
            "motion_camera": float(np.median(whole.speed[valid])),
            "motion_area": float(np.average(moving[valid].mean(axis=(1, 2)), weights=seconds)),
            "motion_times": times[valid].tolist(),
            "motion_speed": region[valid].tolist(),
            "motion_x": centre_x[valid].tolist(),
            "motion_y": centre_y[valid].tolist(),
        }


def object_motion(clip: ClipView, whole: GlobalMotion) -> tuple[np.ndarray, np.ndarray]:
    """Return the motion that the camera does not explain: (m, gh, gw) float32 residual speed in picture heights per
    second, and (m, gh, gw) bool where it is object motion rather than parallax or an error of the flow.

    An error of the flow is detected by warping: then the first picture, moved by the camera's motion, fits the second.
    """
    speed = np.sqrt((whole.residual**2).sum(axis=-1))
    seconds = np.maximum(whole.seconds, 1e-3)
    slowest = np.maximum(SLOWEST, 1.25 * NOISE / seconds + PARALLAX * whole.speed)
    moving = (speed > slowest[:, None, None]) & (whole.belief > BELIEVED)
    moving[~whole.valid] = False
    for k, cells in enumerate(moving):
        if not cells.any():
            continue
        pair = [np.flatnonzero(np.abs(clip.luma_times - t) < 1e-3) for t in whole.times[k]]
        if len(pair[0]) and len(pair[1]):
            unexplained = misfit(clip.luma[pair[0][0]], clip.luma[pair[1][0]], whole, k)
            cells &= unexplained > MISFIT * np.minimum(speed[k] * seconds[k], FAR)
        around = cv2.boxFilter(cells.astype(np.uint8), -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
        cells &= around >= NEIGHBOURS
    return speed, moving


def misfit(a: np.ndarray, b: np.ndarray, whole: GlobalMotion, k: int) -> np.ndarray:
    """(gh, gw) float32: the shift, in picture heights, that the difference between luma frame `a` and `b`, taken back
    by interval `k`'s global motion, would amount to, judged by the gradient there; right for shifts of a pixel or two.
    """
    (height, width), (rows, columns), dt = a.shape, whole.belief.shape[1:], whole.seconds[k]
    turn = np.array([[1 + whole.zoom[k] * dt, -whole.roll[k] * dt], [whole.roll[k] * dt, 1 + whole.zoom[k] * dt]])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = centre - turn @ centre + np.array([whole.pan[k], whole.tilt[k]]) * dt * height
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    back = cv2.warpAffine(
        b, np.column_stack([turn, shift]), (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    apart: np.ndarray = np.subtract(a, back, dtype=np.float32)
    apart = np.maximum(np.abs(apart - apart.mean()) - np.float32(GRAIN), 0)
    right, down = cv2.spatialGradient(a)
    slope = cv2.magnitude(right.astype(np.float32), down.astype(np.float32)) / 8
    both = cv2.resize(cv2.merge([apart, slope]), (columns, rows), interpolation=cv2.INTER_AREA)
    difference, gradient = cv2.split(cv2.blur(both, (3, 3)))
    return difference / (gradient + 1) / height


def _regions(speed: np.ndarray, moving: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the moving cells' speed, and their centre of mass as fractions of width and height; (m,) each."""
    x, y = grid(moving.shape[1], moving.shape[2], 1.0)
    region, centre_x, centre_y = np.zeros(len(moving)), np.full(len(moving), np.nan), np.full(len(moving), np.nan)
    for k, cells in enumerate(moving):
        if cells.any():
            region[k] = _quantile(speed[k][cells], FASTER)
            centre_x[k], centre_y[k] = x[cells].mean() + 0.5, y[cells].mean() + 0.5
    return region, centre_x, centre_y


def _quantile(values: np.ndarray, share: float) -> float:
    """Return the quantile of (n,) values with linear interpolation, as np.quantile does in four times the time."""
    ordered = np.sort(values)
    place = share * (len(ordered) - 1)
    lower = int(place)
    upper = min(lower + 1, len(ordered) - 1)
    return float(ordered[lower] + (place - lower) * (ordered[upper] - ordered[lower]))
