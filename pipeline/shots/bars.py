"""Bars: flat lines at the edges that no picture of the last and next second reaches.

Where bars fill a third of the frame, a cut changes only the rest of it, and the networks of this package take it for
motion. The bars around a frame depend only on the frames within `reach` of it, not on where decoding began.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from pipeline.shots.frame_features import REACH, features

FLAT = 12  # largest difference of a value in a bar from the bar's colour
FEWEST = 2  # lines of a bar that is worth cropping
ALIKE = 2  # lines by which the bars of two opposite sides may differ
LIT = 0.6  # share of the pixels beside a bar that differ from it at some time: a dark scene has a ragged edge
SMALLEST = 0.3  # fraction of rows or of columns: what is smaller is an object before a flat background

Box = tuple[int, int, int, int]  # rows top <= y < bottom and columns left <= x < right of the picture inside the bars


def inner_features(colour: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return `frame_features.features` of the picture inside the bars: (n, 27, 48, 3) uint8 RGB frames at `times` (n,)
    seconds -> (n - 2 * REACH, FEATURES) float32."""
    of = boxes(colour, REACH)
    edges = [0, *(i for i in range(1, len(of)) if of[i] != of[i - 1]), len(of)]
    parts = []
    for first, last in pairwise(edges):
        near = slice(first, last + 2 * REACH)
        parts.append(features(cropped(colour[near], of[first]), times[near]))
    return np.concatenate(parts)


def boxes(colour: np.ndarray, reach: int) -> list[Box]:
    """Return the boxes of frames `reach` up to n - reach of (n, 27, 48, 3) uint8 RGB frames."""
    rows, columns = colour.shape[1:3]
    whole, width = (0, rows, 0, columns), 2 * reach + 1
    flat = _is_flat(colour[:, 0], width) | _is_flat(colour[:, :, 0], width)
    if not flat.any():  # nearly all films: what follows would cost a fifth of the features
        return [whole] * len(flat)
    high, low = _highest(colour, width).astype(np.int16), 255 - _highest(255 - colour, width).astype(np.int16)
    lit = np.maximum(high - low[:, :1, :1], high[:, :1, :1] - low).max(axis=3) > FLAT
    return [_inside(picture) if bars else whole for picture, bars in zip(lit, flat, strict=True)]


def _is_flat(lines: np.ndarray, width: int) -> np.ndarray:
    """Return for each `width` consecutive (n, k, 3) lines whether they have one colour."""
    high, low = _highest(lines.max(axis=1), width), 255 - _highest(255 - lines.min(axis=1), width)
    flat: np.ndarray = (high.astype(np.int16) - low).max(axis=1) <= FLAT
    return flat


def _inside(lit: np.ndarray) -> Box:
    """Return the box of (27, 48) bool: what differs from the corner at some time."""
    top, bottom = _pair(lit)
    left, right = _pair(lit[top:bottom].T)
    return top, bottom, left, right


def _pair(lit: np.ndarray) -> tuple[int, int]:
    """Return the limits of the rows inside a pair of bars, of (rows, columns) bool."""
    total = len(lit)
    inside = np.flatnonzero(lit.any(axis=1))
    if not len(inside):
        return 0, total
    first, last = int(inside[0]), int(inside[-1]) + 1
    if min(first, total - last) < FEWEST or abs(first - total + last) > ALIKE or last - first < SMALLEST * total:
        return 0, total
    across = np.flatnonzero(lit.any(axis=0))
    edges = min(first + 1, last - 1), max(last - 2, first)  # lines that are half bar may differ less
    lowest = min(int(lit[row].sum()) for row in edges)
    return (first, last) if lowest >= LIT * (across[-1] + 1 - across[0]) else (0, total)


def _highest(pictures: np.ndarray, width: int) -> np.ndarray:
    """Return the greatest values of `width` consecutive pictures: (n, ...) -> (n - width + 1, ...)."""
    covered = 1
    while covered < width:  # double the window; the last step joins two overlapping windows
        step = min(covered, width - covered)
        pictures = np.maximum(pictures[:-step], pictures[step:])
        covered += step
    return pictures


def cropped(colour: np.ndarray, box: Box) -> np.ndarray:
    """Return (n, 27, 48, 3) frames whose picture inside `box` fills the frame."""
    rows, columns = colour.shape[1:3]
    top, bottom, left, right = box
    if box == (0, rows, 0, columns):
        return colour
    inner = colour[:, top:bottom, left:right]
    return np.stack([cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_LINEAR) for picture in inner])
