"""Borders: detection of letterbox, pillarbox and padding, so that they are cropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, evenly, unknown

TOLERANCE = 8  # grey levels by which compression changes a flat border
STRAY = 0.03  # share of a border line's samples that may differ (ringing, a speck)
SUBTITLED = 0.5  # the same, for a side whose opposite is a clear border of the same thickness
STEP_PAIR = 0.3  # share of columns that must differ just inside the border, if both sides agree ...
STEP_ALONE = 0.9  # ... and if only one side has a border: a night sky has a ragged edge, padding a straight one
SMALLEST = 0.2  # fraction of the frame: a smaller picture is a dark scene, not a picture in a border
GROUND = 0.5  # share of the picture inside that may have the border's grey level: more is the flat ground of a title
DARK = 30  # grey level of a border below which that is not asked: dark scenes inside black bars are as dark
SAMPLES = 24  # frames that are analysed
CHANGES = 12  # grey levels between a pixel's minimum and maximum over time, above which it moves
FILLED = 0.85  # share of a framed picture, and of its outermost lines, that must move
FRAMED = 0.9  # largest share of the frame that may move around and inside a framed picture

WHOLE = (0.0, 0.0, 1.0, 1.0)


def content_box(luma: np.ndarray) -> tuple[float, float, float, float]:
    """Return the picture inside flat borders, (x0, y0, x1, y1) as fractions of the frame, from (n, h, w) uint8 small
    luma frames of one clip or source.

    A border is a band of lines along an edge that have one grey level in every frame and end in a straight step. Both
    must hold over the whole clip; in doubt (dark scenes, flat backgrounds) the result is the whole frame. A line that
    is half border is cropped too, so the box errs inwards by at most one proxy pixel. A static frame around a picture
    (picture in picture) may have any pattern, if it never changes while the picture inside moves everywhere.
    """
    if luma.ndim != 3 or min(luma.shape) < 1 or min(luma.shape[1:]) < 16:
        return WHOLE
    frames = luma[evenly(len(luma), SAMPLES)]
    top_lines, bottom_lines = _bands(frames)
    inner = frames[:, top_lines : frames.shape[1] - bottom_lines]
    left_lines, right_lines = _bands(inner.transpose(0, 2, 1))
    if (left_lines or right_lines) and not (
        top_lines or bottom_lines
    ):  # lines of a pillarbox look like content until its sides are gone
        top_lines, bottom_lines = _bands(frames[:, :, left_lines : frames.shape[2] - right_lines])
    height, width = frames.shape[1:]
    box = (left_lines / width, top_lines / height, 1 - right_lines / width, 1 - bottom_lines / height)
    if box == WHOLE:
        box = _framed(frames)
    elif _is_ground(frames, top_lines, bottom_lines, left_lines, right_lines):
        return WHOLE
    return box if (box[2] - box[0]) * (box[3] - box[1]) >= SMALLEST else WHOLE


def _is_ground(frames: np.ndarray, top: int, bottom: int, left: int, right: int) -> bool:
    """Return whether the borders of these thicknesses are the ground of a title, which goes on between its letters."""
    height, width = frames.shape[1:]
    inside = np.zeros((height, width), bool)
    inside[top : height - bottom, left : width - right] = True
    level = float(np.median(frames[:, ~inside]))
    alike = np.abs(frames[:, inside].astype(np.int16) - np.int16(level)) <= TOLERANCE
    return level > DARK and bool(alike.mean() > GROUND)


def _framed(frames: np.ndarray) -> tuple[float, float, float, float]:
    """Return the rectangle that moves while everything around it is static; WHOLE if there is none: with a static
    camera the moving region is not a rectangle."""
    moves = (np.ptp(frames, axis=0) > CHANGES).astype(np.uint8)
    share = moves.mean()
    if not 0 < share < FRAMED:
        return WHOLE
    rows, columns = (np.flatnonzero(moves.mean(axis=axis) > STRAY) for axis in (1, 0))
    if len(rows) == 0 or len(columns) == 0:
        return WHOLE
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = moves[y0:y1, x0:x1]
    sides = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
    if (
        inside.mean() < FILLED
        or min(side.mean() for side in sides) < FILLED
        or inside.sum() < (1 - STRAY) * moves.sum()
    ):
        return WHOLE
    height, width = moves.shape
    return (float(x0 / width), float(y0 / height), float(x1 / width), float(y1 / height))


@dataclass(frozen=True)
class Edge:
    """The border in the first lines of (n, h, w) frames."""

    level: float  # grey
    lines: int  # thickness
    step: float  # share of columns that differ from the level just inside the border
    stray: np.ndarray  # (h // 2,) share of each line's samples that differ from the level


def _bands(frames: np.ndarray) -> tuple[int, int]:
    """Return the numbers of border lines at the top and bottom of (n, h, w) frames."""
    near, far = _edge(frames), _edge(frames[:, ::-1])
    if abs(near.level - far.level) <= TOLERANCE:
        alike = abs(near.lines - far.lines) <= max(2, 0.15 * max(near.lines, far.lines))
        if min(near.lines, far.lines) > 0 and alike and max(near.step, far.step) >= STEP_PAIR:
            return near.lines, far.lines
        for side, other in ((near, far), (far, near)):
            if side.lines >= 4 and side.step >= STEP_PAIR and (other.stray[: side.lines - 1] <= SUBTITLED).all():
                return side.lines, side.lines
    if near.step >= STEP_ALONE:
        return near.lines, 0
    if far.step >= STEP_ALONE:
        return 0, far.lines
    return 0, 0


def _edge(frames: np.ndarray) -> Edge:
    level = float(np.median(frames[:, 0]))
    away = np.abs(frames[:, : frames.shape[1] // 2].astype(np.int16) - np.int16(level))
    off = away > TOLERANCE
    stray = off.mean(axis=(0, 2))
    lit = (off.mean(axis=0) > 0.1).mean(axis=1)  # share of columns that are ever clearly something else
    flat = stray <= STRAY
    lines = len(flat) if flat.all() else int(np.argmin(flat))
    if lines in (0, len(flat)):
        return Edge(level, 0, 0.0, stray)
    inside = min(lines + 1, len(lit) - 1)
    step = float(lit[inside] - lit[:lines].max())
    if away[:, lines].mean() < 0.8 * away[:, inside].mean():
        lines += 1  # half border, half picture
    return Edge(level, lines, step, stray)


class Borders:
    name = "borders"
    version = 4
    needs = frozenset({Track.LUMA})
    columns: Mapping[str, pa.DataType] = {"borders_area": pa.float32()}  # share of the frame inside its borders, 0 to 1

    def score(self, clip: ClipView) -> dict[str, Score]:
        x0, y0, x1, y1 = clip.box
        area = float((x1 - x0) * (y1 - y0))
        return {"borders_area": area} if 0 < area <= 1 else unknown(self, "no frame, or only border")
