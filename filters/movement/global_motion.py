"""Camera motion: the one similarity that most of the picture follows, fitted to the flow of each interval."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from filters.base import ClipView

TEXTURE = 1.5  # grey levels per proxy pixel: gradient along the weaker direction at which belief is 0.5
EVIDENCE = 0.06  # smallest mean belief of a valid interval
NOISE = 0.002  # picture heights: usual error of the flow of one pair of frames
DISTORTION = 0.04  # fraction of the camera's speed that perspective, lens and search add to that error
RIM = 1.5  # weight of the outer third of the picture relative to the middle, where the subject is
ROUNDS = 6  # iterations of reweighting


@dataclass(frozen=True)
class GlobalMotion:
    """Motion of the picture's content as a whole in each of m intervals; the camera's motion is the opposite.

    At (x, y) in picture heights from the centre, right and down, content moves by
    dx = pan + zoom * x - roll * y, dy = tilt + zoom * y + roll * x, in picture heights per second.
    """

    times: np.ndarray  # (m, 2) float64, seconds of presentation time: from, to
    pan: np.ndarray  # (m,) picture heights per second, content to the right is positive
    tilt: np.ndarray  # (m,) content downwards is positive
    zoom: np.ndarray  # (m,) per second, content growing is positive
    roll: np.ndarray  # (m,) radians per second, content turning clockwise is positive
    speed: np.ndarray  # (m,) root mean square of all four over the picture, picture heights per second
    residual: np.ndarray  # (m, gh, gw, 2) float32, what is left of the flow, picture heights per second
    belief: np.ndarray  # (m, gh, gw) float32, 0 to 1: how far a cell's flow is known
    support: np.ndarray  # (m,) 0 to 1: share of the belief that moves along with the whole
    valid: np.ndarray  # (m,) bool: enough of the picture has texture to tell

    @property
    def seconds(self) -> np.ndarray:
        """(m,) float64: each interval's length."""
        return self.times[:, 1] - self.times[:, 0]

    @property
    def theta(self) -> np.ndarray:
        """(m, 4): pan, tilt, zoom and roll."""
        return np.stack([self.pan, self.tilt, self.zoom, self.roll], axis=1)


@functools.lru_cache(maxsize=1)
def global_motion(clip: ClipView) -> GlobalMotion | None:
    """Return the clip's global motion; None if no interval of its flow is usable. The result for the last clip is
    cached for the filters that use it."""
    m, times = len(clip.flow), np.asarray(clip.flow_times, np.float64)
    if m == 0 or times.shape != (m, 2) or min(clip.flow.shape[1:3]) < 3:
        return None
    seconds = times[:, 1] - times[:, 0]
    flow = np.nan_to_num(clip.flow, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32, copy=False)
    x, y = grid(flow.shape[1], flow.shape[2], aspect(clip))
    dt = np.where(seconds > 0, seconds, 1.0).astype(np.float32)[:, None, None]
    belief = _texture(clip, times)
    belief *= np.isfinite(clip.flow).all(axis=-1)
    belief *= (np.abs(x + flow[..., 0] * dt) < x.max()) & (np.abs(y + flow[..., 1] * dt) < y.max())  # stays in sight
    belief[:, [0, -1]] *= 0.25
    belief[:, :, [0, -1]] *= 0.25
    valid = (seconds > 0) & (belief.mean(axis=(1, 2)) >= EVIDENCE)
    if not valid.any():
        return None
    theta = fit_similarity(flow, belief, x, y, dt, NOISE)
    theta[~valid] = 0
    pan, tilt, zoom, roll = theta.T
    fitted = similarity_flow(theta, x, y)
    speed = np.sqrt((fitted**2).sum(axis=-1).mean(axis=(1, 2)))
    residual = flow - fitted
    along = moves_along(residual, theta, dt, NOISE)
    support = (belief * along).sum(axis=(1, 2)) / np.maximum(belief.sum(axis=(1, 2)), 1e-6)
    return GlobalMotion(times, pan, tilt, zoom, roll, speed, residual, belief, support, valid)


def why_unseen(clip: ClipView) -> str:
    """Return the reason, for users, why `global_motion` is None."""
    return "too little texture to measure motion" if len(clip.flow) else "fewer than two frames"


def grid(rows: int, columns: int, aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the centres of the cells, (rows, columns) float32 each: x and y in picture heights from the centre."""
    x = ((np.arange(columns, dtype=np.float32) + 0.5) / columns - 0.5) * np.float32(aspect)
    y = (np.arange(rows, dtype=np.float32) + 0.5) / rows - 0.5
    return np.broadcast_to(x, (rows, columns)), np.broadcast_to(y[:, None], (rows, columns))


def fit_similarity(
    flow: np.ndarray, belief: np.ndarray, x: np.ndarray, y: np.ndarray, dt: np.ndarray, noise: float
) -> np.ndarray:
    """Fit pan, tilt, zoom and roll, (m, 4) float32, to (m, gh, gw, 2) flow: iteratively reweighted least squares with
    Cauchy weights, from the best of three starts: no motion, the picture's median and the rim's median. `noise` is the
    usual error of a cell's flow, picture heights over `dt` seconds, (m, 1, 1)."""
    m = len(flow)
    rim = (np.abs(x) > x.max() * 2 / 3) | (np.abs(y) > y.max() * 2 / 3)
    weight = (belief * np.where(rim, np.float32(RIM), np.float32(1))).reshape(m, -1)
    u, v = flow[..., 0].reshape(m, -1), flow[..., 1].reshape(m, -1)
    x, y, inside, dt = x.ravel(), y.ravel(), ~rim.ravel(), dt.reshape(m, 1)
    starts = np.zeros((3, m, 4), np.float32)
    for k, left_out in ((1, np.zeros_like(inside)), (2, inside)):
        starts[k, :, 0] = weighted_median(u, weight * ~left_out)
        starts[k, :, 1] = weighted_median(v, weight * ~left_out)
    costs = [(weight * np.log1p(_squares(u, v, s, x, y) / _scale(s, dt, noise) ** 2)).sum(axis=1) for s in starts]
    theta = starts[np.argmin(costs, axis=0), np.arange(m)]
    for turn in range(ROUNDS):
        scale = _scale(theta, dt, noise) * np.float32(1 + 7 * 0.5**turn)
        theta = _least_squares(u, v, weight / (1 + _squares(u, v, theta, x, y) / scale**2), x, y)
    return theta


def weighted_median(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the weighted median of each row: (m, cells) -> (m,)."""
    order = values.argsort(axis=1)
    below = np.take_along_axis(weight, order, axis=1).cumsum(axis=1)
    middle = (below >= below[:, -1:] / 2).argmax(axis=1)
    rows = np.arange(len(values))
    return values[rows, order[rows, middle]]


def moves_along(residual: np.ndarray, theta: np.ndarray, dt: np.ndarray, noise: float) -> np.ndarray:
    """Return where the residual of the similarities `theta` is within its usual error: (m, gh, gw) bool; `dt` and
    `noise` as for the fit."""
    return (residual**2).sum(axis=-1) < (3 * _scale(theta, dt[:, 0], noise)[:, :, None]) ** 2


def _scale(theta: np.ndarray, dt: np.ndarray, noise: float) -> np.ndarray:
    """Return the usual residual speed, picture heights per second: (m, 1)."""
    speed = np.hypot(theta[:, 0], theta[:, 1]) + 0.5 * np.hypot(theta[:, 2], theta[:, 3])
    return np.float32(noise) / dt + np.float32(DISTORTION) * speed[:, None]


def _squares(u: np.ndarray, v: np.ndarray, theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the squared residual speed: (m, cells)."""
    pan, tilt, zoom, roll = (theta[:, k, None] for k in range(4))
    across = u - pan - zoom * x + roll * y
    across *= across
    down = v - tilt - zoom * y - roll * x
    down *= down
    across += down
    return across


def _least_squares(u: np.ndarray, v: np.ndarray, weight: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fit the similarity by weighted least squares, in closed form around the weighted centre: (m, 4)."""
    ones = np.ones_like(x)
    place = np.stack([ones, x, y], axis=1)
    total, sx, sy, size = (weight @ np.stack([ones, x, y, x * x + y * y], axis=1)).T
    total = np.maximum(total, np.float32(1e-6))
    (su, sxu, syu), (sv, sxv, syv) = ((weight * u) @ place).T, ((weight * v) @ place).T
    size = np.maximum(size - (sx * sx + sy * sy) / total, np.float32(1e-6))
    zoom = (sxu + syv - (sx * su + sy * sv) / total) / size
    roll = (sxv - syu - (sx * sv - sy * su) / total) / size
    pan, tilt = (su - zoom * sx + roll * sy) / total, (sv - zoom * sy - roll * sx) / total
    return np.stack([pan, tilt, zoom, roll], axis=1)


def similarity_flow(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the flow of the similarities `theta`, (m, 4): (m, gh, gw, 2)."""
    pan, tilt, zoom, roll = (theta[:, k, None, None] for k in range(4))
    return np.stack([pan + zoom * x - roll * y, tilt + zoom * y + roll * x], axis=-1)


def _texture(clip: ClipView, times: np.ndarray) -> np.ndarray:
    """Return the belief in each cell's flow from its texture, (m, gh, gw) float32; 1 without luma."""
    m, rows, columns = clip.flow.shape[:3]
    if len(clip.luma) == 0:
        return np.ones((m, rows, columns), np.float32)
    nearest = np.abs(clip.luma_times[None] - times[:, :1]).argmin(axis=1)
    belief = np.empty((m, rows, columns), np.float32)
    for k in np.unique(nearest):
        belief[nearest == k] = _corners(clip.luma[k], rows, columns)
    return belief


def _corners(luma: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return (rows, columns) float32, 0 to 1, from the structure tensor's smaller eigenvalue (Shi and Tomasi, CVPR
    1994): even a strong edge does not show motion along itself."""
    right, down = (g.astype(np.float32) / 8 for g in cv2.spatialGradient(luma))  # Sobel's kernel sums to 8
    tensor = cv2.merge([right * right, down * down, right * down])
    xx, yy, xy = cv2.split(cv2.blur(cv2.resize(tensor, (columns, rows), interpolation=cv2.INTER_AREA), (3, 3)))
    smaller = (xx + yy) / 2 - cv2.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    return smaller / (smaller + np.float32(TEXTURE**2))


def aspect(clip: ClipView) -> float:
    """Return width over height of the tracks' pictures."""
    shape = clip.luma.shape if len(clip.luma) else clip.flow.shape
    return shape[2] / shape[1]
