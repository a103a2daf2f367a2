"""Where exactly a gradual transition begins and ends: frames around a limit against the two shots beside it.

The network of cascade.py sees one frame in two or three and knows a limit to about that. Here a second, smaller one
sees how much each frame near the limit is of the other shot: as a whole (a dissolve), in its most changed places (a
wipe), and how well each moment would do as the one from which the picture's drift bends (fades and dissolves are even
in time). Both limits are the same question with time turned round.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.shots.frame_features import NOISE, mean_cells
from pipeline.shots.shot_weights import weights

STEP = 0.04  # seconds between the moments around a limit that the network is told of
AROUND = np.arange(-10, 17) * STEP
REACH = 0.8  # seconds before and after the limits: frames there are looked at
SIDE = 3  # frames at most that stand for the shot beside
NEAR = 0.4  # seconds: they are no further away
FEW = (24, 78, 390)  # of the 3,888 values of a small picture: how many most changed ones are averaged
INPUTS = 9 * len(AROUND) + 5
FURTHEST = 0.6  # seconds that a limit may be moved
GUARD = 0.02  # and that it is set further out than the network says


def refine(times: np.ndarray, colour: np.ndarray, leave: float, enter: float) -> tuple[float, float]:
    """Better limits of a transition that is known to lie at about `leave` to `enter`, seconds. `times` (n,) rise,
    `colour` (n, 27, 48, 3) uint8. A limit beside which there is no frame of a shot stays as it is."""
    out = features(times, colour, leave, enter)
    back = features(-times[::-1], colour[::-1], -enter, -leave)
    first = leave if out is None else leave + _shift(out)
    last = enter if back is None else enter - _shift(back)
    return (first, last) if first < last else (leave, enter)


def features(times: np.ndarray, colour: np.ndarray, leave: float, enter: float) -> np.ndarray | None:
    """(INPUTS,) float32: what the network is told of the limit `leave`; None where no frame is near on either side."""
    old = np.flatnonzero((times < leave - 0.01) & (times > leave - NEAR))[-SIDE:]
    new = np.flatnonzero((times > enter + 0.01) & (times < enter + NEAR))[:SIDE]
    near = np.flatnonzero((times >= leave - REACH) & (times <= min(leave + REACH, enter + 0.2)))
    if not len(old) or not len(new) or len(near) < 4:
        return None
    x, t, ends = colour[near], times[near], np.stack([colour[i].mean(axis=0) for i in (old, new)])
    grid, (a, b) = mean_cells(x), mean_cells(ends.round().astype(np.uint8))
    step, gone = b - a, grid - a
    length = float((step * step).sum()) + NOISE * step.shape[1]
    place = (gone * step).sum(axis=(1, 2)) / length
    left = gone - place[:, None, None] * step
    places = np.sort((gone * step).sum(axis=1) / ((step * step).sum(axis=0) + 12 * NOISE), axis=1)
    apart = [_apart(x, end.round().astype(np.uint8)) for end in ends]
    most = np.sort(apart[0].astype(np.int16) - apart[1], axis=1)
    rows = [
        place.clip(-0.5, 1.5),
        np.sqrt((left * left).sum(axis=(1, 2)) / length).clip(0, 3),
        places[:, -6:].mean(axis=1).clip(-1, 2),
        places[:, :6].mean(axis=1).clip(-1, 2),
        *((most[:, -few:].mean(axis=1) / 32).clip(-2, 4) for few in FEW),
        (apart[0].mean(axis=1) / 16).clip(0, 4),
    ]
    line = (t >= leave - 0.5) & (t <= leave + 0.6 * min(1.0, enter - leave))
    bends, share = _bends(t[line], grid[line].reshape(int(line.sum()), -1), leave + AROUND)
    nearest = float(t[np.abs(t - leave).argmin()]) - leave
    known = [share, min(2.0, enter - leave), np.log(length / step.shape[1] + 1) / 4]
    known += [10 * float(np.median(np.diff(t))), 10 * nearest]
    told = [np.interp(leave + AROUND, t, row) for row in rows]
    return np.concatenate([*told, bends, known]).astype(np.float32)


def _apart(pictures: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(n, 27 * 48 * 3) uint8: how far each value is from the same of `end`, up to a pixel beside."""
    count, rows, columns = pictures.shape[:3]
    flat = pictures.reshape(count, rows, columns * 3)
    wide = cv2.copyMakeBorder(end, 1, 1, 1, 1, cv2.BORDER_REPLICATE).reshape(rows + 2, -1)
    best = np.full_like(flat, 255)
    for dy in range(3):
        for dx in range(3):
            shifted = np.ascontiguousarray(wide[dy : dy + rows, 3 * dx : 3 * (dx + columns)])
            np.minimum(best, np.maximum(flat, shifted) - np.minimum(flat, shifted), out=best)
    return best.reshape(count, -1)


def _bends(times: np.ndarray, values: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, float]:
    """How much worse than the best each moment is as the one where all the values, (n, k), bend from one line into
    another: log ratios of squared residuals, (m,); and the log of what the best leaves of the variance."""
    if len(times) < 6:
        return np.zeros(len(moments)), 0.0
    values = values - values.mean(axis=0)
    lines = np.stack([np.ones_like(times), times - times.mean()], axis=1)
    base = values - lines @ np.linalg.lstsq(lines, values, rcond=None)[0]
    ramps = np.maximum(0, times[:, None] - moments)  # (n, m)
    ramps = ramps - lines @ np.linalg.lstsq(lines, ramps, rcond=None)[0]
    square = (ramps * ramps).sum(axis=0)
    gain = ((ramps.T @ base) ** 2).sum(axis=1) / np.maximum(square, 1e-9)
    whole = float((base * base).sum())
    residual = np.maximum(whole - np.where(square > 1e-9, gain, 0.0), 1e-3)
    best = float(residual.min())
    share = float(np.log(best / (float((values * values).sum()) + 1e-3) + 1e-3))
    return np.log(residual / best).clip(0, 3), share


def _shift(told: np.ndarray) -> float:
    """Seconds from a limit to the better one: a network of two hidden layers on standardised inputs."""
    w = weights()
    x = ((told - w["limits_mean"]) / w["limits_deviation"]).clip(-5, 5)
    for layer in (0, 1):
        x = np.maximum(w[f"limits_weight{layer}"] @ x + w[f"limits_bias{layer}"], 0)
    return float((w["limits_weight2"] @ x + w["limits_bias2"])[0].clip(-FURTHEST, FURTHEST)) - GUARD
