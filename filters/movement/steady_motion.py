"""Steady motion: motion of a clip's background over a second, independent of what moves in front of it.

Camera motion is common to the whole background and lasts longer than a gesture. So each cell's flow is replaced by its
median over a second, the camera's motion is fitted to those medians, and the common deviation of the background's cells
from it is shake.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from filters.base import ClipView
from filters.movement.global_motion import GlobalMotion, aspect, fit_similarity, grid, moves_along, similarity_flow
from filters.movement.global_motion import weighted_median as median

EVERY = 2  # intervals between the centres of neighbouring windows
HALF_WINDOW = 0.5  # seconds before and after an interval's middle that its median covers
NOISE = 0.0012  # picture heights in an interval: usual error of a median
AGREES = 0.35  # fraction of the shake by which a cell's deviation may differ from it; at least LEAST_AGREES
LEAST_AGREES = 0.002  # picture heights in an interval
APART = 0.5  # seconds between the two pictures in which a static cell must look the same
SLOW = 0.015  # picture heights per second: median flow below which a cell may be static
TEXTURED = 2.5  # grey levels per proxy pixel: mean gradient from which a cell would change if it moved
UNCHANGED = (1.0, 0.12)  # grey levels, and proxy pixels times the gradient, by which a static cell may differ
LEAST_CELLS = 12  # textured cells that the static share needs


@dataclass(frozen=True)
class SteadyMotion:
    """Of each of m intervals; units as in GlobalMotion."""

    theta: np.ndarray  # (m, 4): pan, tilt, zoom and roll of the background
    support: np.ndarray  # (m,) 0 to 1: share of the belief that follows them
    shake: np.ndarray  # (m,) picture heights per second: how fast the background deviates from them as a whole
    agreement: np.ndarray  # (m,) 0 to 1: share of the belief whose deviation is that shake
    standing: np.ndarray  # (m,) 0 to 1: share of the textured cells that stand still; NaN where too few have texture


def steady_motion(clip: ClipView, whole: GlobalMotion) -> SteadyMotion:
    """Return the motion of the background around each interval of the clip's global motion."""
    rows, columns = whole.belief.shape[1:]
    x, y = grid(rows, columns, aspect(clip))
    flow = whole.residual + similarity_flow(whole.theta, x, y)
    centres = np.arange(0, len(flow), EVERY)
    nearest = np.arange(len(flow)) // EVERY  # the window of each interval
    medians, belief = _window_medians(flow, whole, centres)
    dt = np.where(whole.seconds > 0, whole.seconds, 1.0).astype(np.float32)[:, None, None]
    theta = fit_similarity(medians, belief, x, y, dt[centres], NOISE)
    along = belief * moves_along(medians - similarity_flow(theta, x, y), theta, dt[centres], NOISE)
    support = along.sum(axis=(1, 2)) / np.maximum(belief.sum(axis=(1, 2)), 1e-6)
    deviation, weight = flow - medians[nearest], along.reshape(len(centres), -1)[nearest]
    shift = np.stack([median(deviation[..., axis].reshape(len(flow), -1), weight) for axis in (0, 1)], axis=1)
    shake = np.linalg.norm(shift, axis=1)
    apart = np.linalg.norm(deviation - shift[:, None, None], axis=-1)
    agrees = apart < np.maximum(LEAST_AGREES / dt, AGREES * shake[:, None, None])
    agreement = (whole.belief * agrees).sum(axis=(1, 2)) / np.maximum(whole.belief.sum(axis=(1, 2)), 1e-6)
    standing = _standing(clip, whole, medians, centres)
    return SteadyMotion(theta[nearest], support[nearest], shake, agreement, standing[nearest])


def _window_medians(flow: np.ndarray, whole: GlobalMotion, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over the valid intervals of the window around each of the c centres: medians of the flow, (c, gh, gw, 2), and
    means of the belief, (c, gh, gw)."""
    middle = whole.times.mean(axis=1)
    medians = np.zeros((len(centres), *flow.shape[1:]), np.float32)
    belief = np.zeros((len(centres), *flow.shape[1:3]), np.float32)
    for row, time in enumerate(middle[centres]):
        near = (np.abs(middle - time) <= HALF_WINDOW + 1e-6) & whole.valid
        if near.any():
            medians[row], belief[row] = np.median(flow[near], axis=0), whole.belief[near].mean(axis=0)
    return medians, belief


def _standing(clip: ClipView, whole: GlobalMotion, medians: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the share of textured cells that look the same half a second later and have no flow: (c,)."""
    rows, columns = medians.shape[1:3]
    result = np.full(len(centres), np.nan)
    if len(clip.luma) < 2:
        return result
    slow = np.linalg.norm(medians, axis=-1) < SLOW
    for row, time in enumerate(whole.times[centres, 0]):
        first = int(np.abs(clip.luma_times - time).argmin())
        last = min(int(np.searchsorted(clip.luma_times, clip.luma_times[first] + APART - 1e-6)), len(clip.luma) - 1)
        first = min(first, max(0, int(np.searchsorted(clip.luma_times, clip.luma_times[last] - APART + 1e-6)) - 1))
        gradient = cv2.magnitude(*(g.astype(np.float32) for g in cv2.spatialGradient(clip.luma[first]))) / 8
        change = cv2.absdiff(clip.luma[first], clip.luma[last]).astype(np.float32)
        both = cv2.resize(cv2.merge([gradient, change]), (columns, rows), interpolation=cv2.INTER_AREA)
        textured = both[..., 0] > TEXTURED
        same = both[..., 1] < UNCHANGED[0] + UNCHANGED[1] * both[..., 0]
        if textured.sum() >= LEAST_CELLS:
            result[row] = (textured & same & slow[row]).sum() / textured.sum()
    return result
