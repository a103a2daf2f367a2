"""The measured motion of a clip as phases: when something moves, where, and in which direction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

START_SPEED = 0.04  # picture heights a second: a phase begins above this ...
START_SHARE = 0.12  # ... and above this share of the clip's fast motion: leaves beside a passing car do not count
STOP = 0.7  # fraction of the speed that begins a phase, under which it ends
SHORTEST = 0.35  # seconds: shorter phases and pauses are measurement noise
TRAVEL = 0.15  # fraction of the picture's side: a region that travels less has no direction
REACH = 3.0  # factor on speed times duration: a region that travels further is probably several, one after another
STEADY = 0.7  # correlation of position with time under which the region has no direction


@dataclass(frozen=True)
class Phase:
    """A period in which part of the picture moves independently of the camera; seconds from the clip's start."""

    start: float
    end: float
    speed: float  # median, picture heights a second
    begin: tuple[float, float]  # centre of the moving region at the start: fractions of width and height
    finish: tuple[float, float]  # and at the end
    steady: bool  # the region travels one way instead of wandering

    @property
    def travel(self) -> tuple[float, float]:
        """Right and down, fractions of width and height."""
        return self.finish[0] - self.begin[0], self.finish[1] - self.begin[1]

    @property
    def direction(self) -> str:
        """right, left, up or down; empty when the region stays, wanders, or travels further than its content moves."""
        dx, dy = self.travel
        furthest = REACH * self.speed * (self.end - self.start)
        if not self.steady or not TRAVEL <= max(abs(dx), abs(dy)) <= furthest:
            return ""
        if abs(dx) >= abs(dy):
            return "right" if dx > 0 else "left"
        return "down" if dy > 0 else "up"


def motion_phases(scores: Mapping[str, Any], duration: float) -> list[Phase] | None:
    """Return the phases in order of time, from the columns motion_times, motion_speed, motion_x and motion_y; empty if
    nothing moves, None if motion was not measured."""
    columns = [scores.get(f"motion_{name}") for name in ("times", "speed", "x", "y")]
    if any(column is None for column in columns):
        return None
    times, speed, x, y = (np.asarray(column, np.float64) for column in columns)
    if not times.size or not (times.size == speed.size == x.size == y.size):
        return None
    middle = (times[1:] + times[:-1]) / 2
    edges = np.concatenate([[0.0], middle, [max(duration, float(times[-1]))]])
    moving = _moving(np.where(np.isfinite(x) & np.isfinite(y), np.nan_to_num(speed), 0.0))
    spans = _join([(float(edges[a]), float(edges[b])) for a, b in _runs(moving)])
    return [_phase(start, end, times, speed, x, y) for start, end in spans if end - start >= SHORTEST]


def camera_spans(scores: Mapping[str, Any], duration: float, confidence: float = 0.5) -> list[tuple[str, float, float]]:
    """Return (label, start, end) of the camera's moves, in order of time; empty under a confidence of `confidence`."""
    label = scores.get("camera_label")
    sure = scores.get("camera_confidence")
    if not label or (sure is not None and sure < confidence):
        return []
    spans: list[tuple[str, float, float]] = []
    for span in json.loads(scores.get("camera_spans") or "[]"):
        start, end = float(span["start"]), min(float(span["end"]), duration)
        if end - start < SHORTEST or not span["label"]:
            continue
        if spans and spans[-1][0] == span["label"]:
            start = spans.pop()[1]
        spans.append((span["label"], start, end))
    return spans or [(label, 0.0, duration)]


def motion_peaks(scores: Mapping[str, Any], duration: float) -> list[float]:
    """Return the time, seconds, of the fastest motion in each phase, for which a caption should have an action."""
    times = np.asarray(scores.get("motion_times") or [], np.float64)
    speed = np.nan_to_num(np.asarray(scores.get("motion_speed") or [], np.float64))
    peaks = []
    for phase in motion_phases(scores, duration) or []:
        inside = np.flatnonzero((times >= phase.start) & (times <= phase.end))
        if inside.size:
            peaks.append(float(times[inside[np.argmax(speed[inside])]]))
    return peaks


def _moving(speed: np.ndarray) -> np.ndarray:
    """(n,) bool with hysteresis: on above the speed that begins a phase, off under STOP of it."""
    start = max(START_SPEED, START_SHARE * float(np.quantile(speed, 0.9)))
    moving = np.zeros(speed.size, bool)
    on = False
    for i, value in enumerate(speed):
        on = value > (STOP * start if on else start)
        moving[i] = on
    return moving


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    steps = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(steps[::2], steps[1::2], strict=True)]


def _join(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for start, end in spans:
        if joined and start - joined[-1][1] < SHORTEST:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _phase(start: float, end: float, times: np.ndarray, speed: np.ndarray, x: np.ndarray, y: np.ndarray) -> Phase:
    inside = (times >= start) & (times <= end) & np.isfinite(x) & np.isfinite(y)
    t, px, py = times[inside], x[inside], y[inside]
    few = max(1, min(3, t.size // 3))
    begin = float(np.median(px[:few])), float(np.median(py[:few]))
    finish = float(np.median(px[-few:])), float(np.median(py[-few:]))
    along = px if abs(finish[0] - begin[0]) >= abs(finish[1] - begin[1]) else py
    steady = t.size >= 3 and float(np.std(along)) > 1e-6 and abs(float(np.corrcoef(t, along)[0, 1])) >= STEADY
    return Phase(start, end, float(np.median(speed[inside])), begin, finish, steady)
