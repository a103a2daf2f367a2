"""Refinement of a gradual transition's boundaries: frames near a boundary are compared with the two adjacent shots.

The network of cascade.py sees one frame in two or three, so its boundaries are no more precise than that. A second,
smaller network sees how much each frame near the boundary resembles the other shot: as a whole (dissolves), in its most
changed places (wipes), and how well each time fits as the point at which the drift of the picture changes slope (fades
and dissolves are linear in time). The end of a transition is its start with time reversed.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.shots.frame_features import NOISE, mean_cells
from pipeline.shots.shot_weights import weights

STEP = 0.04  # seconds between the network's input times
AROUND = np.arange(-10, 17) * STEP  # seconds: the input times, relative to the boundary
REACH = 0.8  # seconds before and after the boundaries that are analysed
FRAMES_PER_SHOT = 3  # frames at most that represent an adjacent shot
NEAR = 0.4  # seconds: largest distance of those frames from the boundary
FEW = (24, 78, 390)  # numbers of most changed values, out of 3,888 in a small picture, that are averaged
INPUTS = 9 * len(AROUND) + 5  # length of the network's input
FURTHEST = 0.6  # seconds: largest correction of a boundary
GUARD = 0.04  # seconds by which a boundary is moved outwards from the network's result


def refine(times: np.ndarray, colour: np.ndarray, leave: float, enter: float) -> tuple[float, float]:
    """Return corrected boundaries of a transition that lies near `leave` to `enter`, seconds. `times` (n,) rise,
    `colour` is (n, 27, 48, 3) uint8. A boundary without a frame of a shot next to it is returned unchanged."""
    out = features(times, colour, leave, enter)
    back = features(-times[::-1], colour[::-1], -enter, -leave)
    first = leave if out is None else leave + _shift(out)
    last = enter if back is None else enter - _shift(back)
    return (first, last) if first < last else (leave, enter)


def features(times: np.ndarray, colour: np.ndarray, leave: float, enter: float) -> np.ndarray | None:
    """Return the network's input for the boundary `leave`, (INPUTS,) float32; None without frames on both sides."""
    old = np.flatnonzero((times < leave - 0.01) & (times > leave - NEAR))[-FRAMES_PER_SHOT:]
    new = np.flatnonzero((times > enter + 0.01) & (times < enter + NEAR))[:FRAMES_PER_SHOT]
    near = np.flatnonzero((times >= leave - REACH) & (times <= min(leave + REACH, enter + 0.2)))
    if not len(old) or not len(new) or len(near) < 4:
        return None
    x, t, ends = colour[near], times[near], np.stack([colour[i].mean(axis=0) for i in (old, new)])
    grid, (a, b) = mean_cells(x), mean_cells(ends.round().astype(np.uint8))
    step, gone = b - a, grid - a
    length = float((step * step).sum()) + NOISE * step.shape[1]
    place = (gone * step).sum(axis=(1, 2)) / length
    off_line = gone - place[:, None, None] * step
    places = np.sort((gone * step).sum(axis=1) / ((step * step).sum(axis=0) + 12 * NOISE), axis=1)
    apart = [_apart(x, end.round().astype(np.uint8)) for end in ends]
    most = np.sort(apart[0].astype(np.int16) - apart[1], axis=1)
    rows = [
        place.clip(-0.5, 1.5),
        np.sqrt((off_line * off_line).sum(axis=(1, 2)) / length).clip(0, 3),
        places[:, -6:].mean(axis=1).clip(-1, 2),
        places[:, :6].mean(axis=1).clip(-1, 2),
        *((most[:, -few:].mean(axis=1) / 32).clip(-2, 4) for few in FEW),
        (apart[0].mean(axis=1) / 16).clip(0, 4),
    ]
    line = (t >= leave - 0.5) & (t <= leave + 0.6 * min(1.0, enter - leave))
    bends, share = _bends(t[line], grid[line].reshape(int(line.sum()), -1), leave + AROUND)
    nearest = float(t[np.abs(t - leave).argmin()]) - leave
    context = [share, min(2.0, enter - leave), np.log(length / step.shape[1] + 1) / 4]
    context += [10 * float(np.median(np.diff(t))), 10 * nearest]
    resampled = [np.interp(leave + AROUND, t, row) for row in rows]
    return np.concatenate([*resampled, bends, context]).astype(np.float32)


def _apart(pictures: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return (n, 27 * 48 * 3) uint8: the smallest difference of each value from `end` within a shift of one pixel."""
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
    """Fit a bent line to all the values, (n, k), with the bend at each of `moments`. Return (m,) log ratios of the
    squared residuals to the smallest, and the log of the share of the variance that the best fit leaves."""
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


def _shift(inputs: np.ndarray) -> float:
    """Return the correction of a boundary in seconds, from a network with two hidden layers on standardised inputs."""
    w = weights()
    x = ((inputs - w["limits_mean"]) / w["limits_deviation"]).clip(-5, 5)
    for layer in (0, 1):
        x = np.maximum(w[f"limits_weight{layer}"] @ x + w[f"limits_bias{layer}"], 0)
    return float((w["limits_weight2"] @ x + w["limits_bias2"])[0].clip(-FURTHEST, FURTHEST)) - GUARD
