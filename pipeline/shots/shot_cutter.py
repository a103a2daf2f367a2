"""From transitions to shots, and from shots to clips, in presentation time; the same for any segmentation."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_CELLS = 1440  # cells of the grid visited one by one between two frames: a day
ROUNDING = 1e-6  # seconds by which presentation times may be off
LONGEST = 60.0  # seconds: side of a grid cell; a shot is cut at the end of a cell that has no transition


@dataclass(frozen=True)
class Transition:
    """A boundary between two shots: frames with leave <= time < enter belong to neither. Seconds of presentation time;
    for a hard cut both are the time of the new shot's first frame."""

    leave: float
    enter: float
    doubtful: bool = field(default=False, compare=False)  # a hard cut that may be none


@dataclass(frozen=True)
class Shot:
    """Frames with start <= time < end, seconds. `end` is infinite where the source ended before the shot did."""

    start: float
    end: float


class ShotCutter:
    """Turn transitions, in order of time, into the shots that start inside a segment.

    A long shot is cut at a multiple of `LONGEST` seconds if the preceding cell has no transition. The rule looks at one
    cell only, so the cuts do not depend on where decoding began. Decoding has to begin at `decode_from` or earlier.
    """

    def __init__(self, segment: tuple[float, float] = (-math.inf, math.inf)):
        self._segment = segment
        self._start: float | None = None  # of the shot in progress; None while it belongs to an earlier segment
        self._cell: int | None = None
        self._busy = False  # whether a transition ended in the current cell
        self.done = False  # no further shot can start inside the segment

    @staticmethod
    def decode_from(start: float) -> float:
        """Return the time from which frames are needed for exact shots from `start` on: the beginning of its cell, or
        of the previous cell if `start` is on the grid, because a cut there depends on that cell."""
        return (math.ceil(start / LONGEST) - 1) * LONGEST

    def begin(self, time: float, first: bool) -> None:
        """Note the time of the first decoded frame, and whether it is the source's first, where a shot starts."""
        self._cell = math.floor(time / LONGEST)
        if first and self._segment[0] <= time:
            self._start = time

    def push(self, transitions: Sequence[Transition], emitted_until: float) -> list[Shot]:
        """Return the shots that end. Together with earlier calls, `transitions` are all those that leave a shot before
        `emitted_until` seconds."""
        shots: list[Shot] = []
        for transition in transitions:
            shots += self._grid(transition.enter, transition)
            shots += self._cut(transition)
            self._busy = True
        return shots + self._grid(emitted_until)

    def finish(self) -> list[Shot]:
        """Return the shot that the end of the source cuts off, if it starts inside the segment."""
        return [] if self._start is None or self.done else [Shot(self._start, math.inf)]

    def _grid(self, until: float, inside: Transition | None = None) -> list[Shot]:
        assert self._cell is not None
        shots: list[Shot] = []
        while (point := (self._cell + 1) * LONGEST) <= until and not self.done:
            if inside is not None and inside.leave <= point:  # so are all later points up to its end
                self._cell = math.floor(until / LONGEST)
                self._busy = False
                break
            if not self._busy:
                shots += self._cut(Transition(point, point))
            self._cell += 1
            self._busy = False
            ahead = math.floor((until if inside is None else inside.leave) / LONGEST) - self._cell
            if ahead > MOST_CELLS:  # the timestamps jump: these cells have no frames
                shots += self._cut(Transition((self._cell + 1) * LONGEST, (self._cell + ahead - 1) * LONGEST))
                self._cell += ahead - 1
        return shots

    def _cut(self, transition: Transition) -> list[Shot]:
        ended = [] if self._start is None or self.done else [Shot(self._start, transition.leave)]
        self._start = None
        if transition.enter >= self._segment[1]:
            self.done = True
        elif transition.enter >= self._segment[0]:
            self._start = transition.enter
        return [shot for shot in ended if shot.end > shot.start]


def equal_parts(times: Sequence[float], end: float, longest: float) -> list[tuple[int, int]]:
    """Split a shot with frames at `times`, ascending, the last of which ends at `end`, into the fewest parts of nearly
    equal length and at most about `longest` seconds: index ranges [first, last), cut at the frames nearest to equal
    shares.
    """
    start = times[0]
    count = max(1, min(len(times), math.ceil((end - start) / longest - 1e-6)))
    edges = [0]
    for part in range(1, count):
        wanted, least, most = start + (end - start) * part / count, edges[-1] + 1, len(times) - (count - part)
        after = min(bisect_left(times, wanted, least, most + 1), most)
        nearer = after > least and wanted - times[after - 1] <= abs(times[after] - wanted)
        edges.append(after - 1 if nearer else after)
    return list(zip(edges, [*edges[1:], len(times)], strict=True))


def full_parts(times: Sequence[float], end: float, seconds: float) -> list[tuple[int, int]]:
    """Split a shot with frames at `times`, ascending, the last of which ends at `end`, into parts of `seconds`, each up
    to a frame longer, and the rest: index ranges [first, last)."""
    edges = [0]
    while (edge := bisect_left(times, times[edges[-1]] + seconds - ROUNDING, edges[-1] + 1)) < len(times):
        edges.append(edge)
    return list(zip(edges, [*edges[1:], len(times)], strict=True))
