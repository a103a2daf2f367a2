"""From transitions to shots and from shots to clips: bookkeeping in presentation time, equal for any segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_CELLS = 1440  # of the grid of LONGEST seconds that are gone through between two frames: a day
LONGEST = 60.0  # seconds: without a transition for a whole cell of this grid, a shot is cut at the cell's end


@dataclass(frozen=True)
class Transition:
    """What lies between two shots: frames from `leave` up to, not including, `enter` belong to neither (seconds of
    presentation time; equal for a hard cut, where both are the time of the new shot's first frame)."""

    leave: float
    enter: float
    doubtful: bool = field(default=False, compare=False)  # a hard cut that may be none


@dataclass(frozen=True)
class Shot:
    """Frames with start <= time < end, seconds. `end` is infinite where the source ended before the shot did."""

    start: float
    end: float


class ShotCutter:
    """Turns transitions, in order of time, into the shots that start inside a segment.

    A shot without transition is cut at multiples of `LONGEST` seconds if nothing happened in the cell before: a rule
    that looks at one cell only, so that it gives the same cuts wherever decoding began. Decoding has to begin at
    `decode_from` seconds at the latest.
    """

    def __init__(self, segment: tuple[float, float] = (-math.inf, math.inf)):
        self._segment = segment
        self._start: float | None = None  # of the shot in progress; None while it belongs to an earlier segment
        self._cell: int | None = None
        self._busy = False  # whether a transition ended in the current cell
        self.done = False  # no further shot can start inside the segment

    @staticmethod
    def decode_from(start: float) -> float:
        """Where frames are needed from, so that shots from `start` on are right: the beginning of its cell, or of the
        cell before where `start` is on the grid, since a cut there looks at that cell."""
        return (math.ceil(start / LONGEST) - 1) * LONGEST

    def begin(self, time: float, first: bool) -> None:
        """The time of the first decoded frame, and whether it is the source's first, where a shot starts."""
        self._cell = math.floor(time / LONGEST)
        if first and self._segment[0] <= time:
            self._start = time

    def push(self, transitions: Sequence[Transition], settled: float) -> list[Shot]:
        """Shots that end, given all transitions that leave a shot before `settled`, those of earlier calls left out."""
        shots: list[Shot] = []
        for transition in transitions:
            shots += self._grid(transition.enter, transition)
            shots += self._cut(transition)
            self._busy = True
        return shots + self._grid(settled)

    def finish(self) -> list[Shot]:
        """The shot that the source's end cuts off, if it is ours."""
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
            if ahead > MOST_CELLS:  # a jump of the timestamps: no frame lies in these cells
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
    """Cuts a shot with frames at `times`, the last of which ends at `end`, into the fewest parts of nearly equal length
    of at most about `longest` seconds: index ranges [first, last). A cut goes to the frame nearest to the equal share.
    """
    start = times[0]
    count = max(1, min(len(times), math.ceil((end - start) / longest - 1e-6)))
    edges = [0]
    for part in range(1, count):
        wanted = start + (end - start) * part / count
        edges.append(min(range(edges[-1] + 1, len(times) - (count - part) + 1), key=lambda i: abs(times[i] - wanted)))
    return list(zip(edges, [*edges[1:], len(times)], strict=True))
