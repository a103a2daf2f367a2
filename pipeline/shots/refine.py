"""Refinement of a transition's boundaries: frames near a boundary are compared with the two adjacent shots.

The network of cascade.py sees one frame in two or three, so its boundaries are no more precise than that. A second,
smaller network sees how much each frame near the boundary resembles the other shot: as a whole (dissolves), in its most
changed places (wipes), how its contrast and light change (fades), how well the frame before predicts it, and how well
each time fits as the point at which the drift of the picture changes slope (fades and dissolves are linear in time). It
says for each time whether the transition has started. The end of a transition is its start with time reversed.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.shots.frame_features import NOISE, mean_cells
from pipeline.shots.shot_weights import logits

STEP = 0.04  # seconds between the network's input times
AROUND = np.arange(-10, 17) * STEP  # seconds: the input times, relative to the boundary
REACH = 0.8  # seconds before and after the boundaries that are analysed
FRAMES_PER_SHOT = 3  # frames at most that represent an adjacent shot
NEAR = 0.4  # seconds: largest distance of those frames from the boundary
FEW = (24, 78, 390)  # numbers of most changed values, out of 3,888 in a small picture, that are averaged
PIXELS = 65  # number of least predictable pixels, out of 1,296, that are averaged
INPUTS = 27  # channels of the network's input
WIDTH, DILATIONS = 32, (1, 2, 4)  # channels of the network, and steps between the taps of each convolution


def refine(
    times: np.ndarray, colour: np.ndarray, leave: float, enter: float, probability: float
) -> tuple[float, float]:
    """Return corrected boundaries of a transition that lies near `leave` to `enter`, seconds: where the transition has
    started, and not yet ended, with the given probability. `times` (n,) rise, `colour` is (n, 27, 48, 3) uint8. A
    boundary without a frame of a shot next to it is returned unchanged."""
    out = features(times, colour, leave, enter)
    back = features(-times[::-1], colour[::-1], -enter, -leave)
    first = leave if out is None else leave + shift(out, probability)
    last = enter if back is None else enter - shift(back, probability)
    return (first, last) if first < last else (leave, enter)


def shift(inputs: np.ndarray, probability: float) -> float:
    """Return the seconds from a boundary to where the transition has started with the given probability."""
    started = 1 / (1 + np.exp(-logits("limits_", inputs, DILATIONS)[:, 0]))
    return float(np.interp(probability, np.maximum.accumulate(started), AROUND))


def features(times: np.ndarray, colour: np.ndarray, leave: float, enter: float) -> np.ndarray | None:
    """Return the network's input for the boundary `leave`, (len(AROUND), INPUTS) float32; None without frames on both
    sides."""
    old = np.flatnonzero((times < leave - 0.01) & (times > leave - NEAR))[-FRAMES_PER_SHOT:]
    new = np.flatnonzero((times > enter + 0.01) & (times < enter + NEAR))[:FRAMES_PER_SHOT]
    near = np.flatnonzero((times >= leave - REACH) & (times <= min(leave + REACH, enter + 0.2)))
    if not len(old) or not len(new) or len(near) < 4:
        return None
    x, t = colour[near], times[near]
    ends = np.stack([colour[i].mean(axis=0).round().astype(np.uint8) for i in (old, new)])
    grid, (a, b) = mean_cells(x), mean_cells(ends)
    step, gone = b - a, grid - a
    length = float((step * step).sum()) + NOISE * step.shape[1]
    place = (gone * step).sum(axis=(1, 2)) / length
    off_line = gone - place[:, None, None] * step
    places = np.sort((gone * step).sum(axis=1) / ((step * step).sum(axis=0) + 12 * NOISE), axis=1)
    apart = [_apart(x, end) for end in ends]
    most = np.partition(apart[0].astype(np.int16) - apart[1], [-few for few in FEW], axis=1)
    tones, sides = _tones(x), [_tones(colour[i]).mean(axis=1) for i in (old, new)]
    changes = np.log((tones + 2) / (sides[0][:, None] + 2)).clip(-2, 2)
    rows = [
        place.clip(-0.5, 1.5),
        np.sqrt((off_line * off_line).sum(axis=(1, 2)) / length).clip(0, 3),
        places[:, -6:].mean(axis=1).clip(-1, 2),
        places[:, :6].mean(axis=1).clip(-1, 2),
        *((most[:, -few:].mean(axis=1) / 32).clip(-2, 4) for few in FEW),
        (apart[0].mean(axis=1) / 16).clip(0, 4),
        *changes,
        *_unpredicted(x),
        *_shares(grid.reshape(len(x), -1), a.reshape(-1), b.reshape(-1)),
    ]
    line = (t >= leave - 0.5) & (t <= leave + 0.6 * min(1.0, enter - leave))
    bends, share = _bends(t[line], grid[line].reshape(int(line.sum()), -1), leave + AROUND)
    tone_bends, tone_share = _bends(t[line], 20 * changes[:, line].T, leave + AROUND)
    context = [share, tone_share, min(2.0, enter - leave), np.log(length / step.shape[1] + 1) / 4]
    context += [10 * float(np.median(np.diff(t))), 10 * (float(t[np.abs(t - leave).argmin()]) - leave)]
    context += np.log((sides[1] + 2) / (sides[0] + 2)).clip(-2, 2).tolist()
    resampled = [np.interp(leave + AROUND, t, row) for row in rows]
    constant = [np.full(len(AROUND), value) for value in context]
    return np.stack([*resampled, bends, tone_bends, *constant, AROUND], axis=1).astype(np.float32)


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


def _grey(pictures: np.ndarray) -> np.ndarray:
    """(n, 27, 48, 3) uint8 RGB -> (n, 27, 48) uint8."""
    count, rows, columns = pictures.shape[:3]
    stacked = np.ascontiguousarray(pictures).reshape(count * rows, columns, 3)
    return cv2.cvtColor(stacked, cv2.COLOR_RGB2GRAY).reshape(count, rows, columns)


def _tones(pictures: np.ndarray) -> np.ndarray:
    """Return (3, n): mean gradient, mean and deviation of each picture's luma, all of which are linear in a fade."""
    grey = _grey(pictures).astype(np.float32)
    gradient = np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2)) + np.abs(np.diff(grey, axis=1)).mean(axis=(1, 2))
    return np.stack([gradient, grey.mean(axis=(1, 2)), grey.std(axis=(1, 2))])


def _unpredicted(pictures: np.ndarray) -> list[np.ndarray]:
    """Return how much the luma of each picture differs from the one before within a shift of two pixels, (n,) each: on
    average, and where it differs most."""
    grey = _grey(pictures)
    now, wide = grey[1:], np.pad(grey[:-1], ((0, 0), (2, 2), (2, 2)), mode="edge")
    best = np.full_like(now, 255)
    for dy in range(5):
        for dx in range(5):
            shifted = wide[:, dy : dy + 27, dx : dx + 48]
            np.minimum(best, np.maximum(now, shifted) - np.minimum(now, shifted), out=best)
    flat = best.reshape(len(best), -1)
    most = np.partition(flat, -PIXELS, axis=1)[:, -PIXELS:]
    both = [(flat.mean(axis=1) / 8).clip(0, 4), (most.mean(axis=1) / 32).clip(0, 4)]
    return [np.concatenate([row[:1], row]) for row in both]


def _shares(grid: np.ndarray, old: np.ndarray, new: np.ndarray) -> list[np.ndarray]:
    """Return the coefficients, (n,) each, of pictures (n, k) as sums of shares of both shots, light apart."""
    sides = np.stack([old - old.mean(), new - new.mean()], axis=1)
    square = sides.T @ sides + NOISE * 0.3 * len(old) * np.eye(2)
    shares = np.linalg.solve(square, sides.T @ (grid - grid.mean(axis=1, keepdims=True)).T)
    return list(shares.clip(-1, 2))


def _bends(times: np.ndarray, values: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit a bent line to all the values, (n, k), with the bend at each of `moments`. Return (m,) log ratios of the
    squared residuals to the smallest, and the log of the share of the variance that the best fit leaves."""
    if len(times) < 6:
        return np.zeros(len(moments)), 0.0
    values = values - values.mean(axis=0)
    line = (times - times.mean()) / np.linalg.norm(times - times.mean())
    base = values - np.outer(line, line @ values)
    ramps = np.maximum(0, times[:, None] - moments)  # (n, m)
    ramps = ramps - ramps.mean(axis=0)
    ramps = ramps - np.outer(line, line @ ramps)
    square = (ramps * ramps).sum(axis=0)
    gain = ((ramps.T @ base) ** 2).sum(axis=1) / np.maximum(square, 1e-9)
    whole = float((base * base).sum())
    residual = np.maximum(whole - np.where(square > 1e-9, gain, 0.0), 1e-3)
    best = float(residual.min())
    share = float(np.log(best / (float((values * values).sum()) + 1e-3) + 1e-3))
    return np.log(residual / best).clip(0, 3), share
