"""`shots: cascade`: a small network judges cheap similarities of frames, and what it finds is then made exact.

The network sees about twelve frames a second, which reference frames alone give; hard cuts between two of them are
placed by the largest change among all the frames there. Its weights (shots.npz) were trained on joined footage by
tests/benchmarks/train_shots.py; the footage of the accuracy benchmark was not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from pipeline.media.proxy import Proxy
from pipeline.shots import refine
from pipeline.shots.frame_features import REACH, features
from pipeline.shots.shot_cutter import Transition
from pipeline.shots.shot_weights import weights

RATE = 12.5  # moments a second that are judged, where there are as many frames
WIDTH = 48
DILATIONS = (1, 2, 4, 8)
CONTEXT = REACH + 1 + sum(DILATIONS)  # moments on either side that a judgement depends on
BLOCK = 64  # moments judged at once
CUT, SPAN = 0.3, 0.9  # probabilities that make a transition certain
EDGE = 0.05  # and the one down to which it is followed
TICK = 0.08  # seconds: what the network counts a transition's limits in
BACK = 4  # moments at most between a limit and what the network sees of the transition
MARGIN = 0.9  # limits are set so many times as far out as the network says: chosen on joined films
SURE = 0.95  # of a hard cut: on joined films 65 true ones had at least 0.991, false ones at most 0.893


def beats(times: np.ndarray) -> np.ndarray:
    """Indices of the frames that are judged: the first, and each that is first after a multiple of 1 / RATE."""
    cells = np.floor(times * RATE + 1e-6).astype(int)
    return np.flatnonzero(np.diff(cells, prepend=cells[0] - 1))


def judge(seen: np.ndarray) -> np.ndarray:
    """Features (n, FEATURES) -> (n, 4): the probability of a cut between this moment and the one before, that of this
    moment being inside a gradual transition, and if it is, the seconds since the transition began and until it ends,
    each no less than the true one in 9 of 10 training examples. The first and last moments lack context."""
    w = weights()
    x = np.maximum(seen @ w["first_weight"][:, :, 0].T + w["first_bias"], 0)
    for index, dilation in enumerate(DILATIONS):
        kernel, bias = w[f"blocks_{index}_weight"], w[f"blocks_{index}_bias"]
        padded = np.pad(x, ((dilation, dilation), (0, 0)))
        taps = [padded[k * dilation : k * dilation + len(x)] @ kernel[:, :, k].T for k in range(3)]
        x = x + np.maximum(taps[0] + taps[1] + taps[2] + bias, 0)
    logits = x @ w["last_weight"][:, :, 0].T + w["last_bias"]
    return np.concatenate([1 / (1 + np.exp(-logits[:, :2])), np.maximum(0, logits[:, 2:]) * TICK], axis=1)


@dataclass
class _Gaps:
    """Gaps in a row that are certain to hold a hard cut, each between two frames that are judged."""

    first: tuple[Proxy, Proxy]
    last: tuple[Proxy, Proxy]
    probability: float


@dataclass
class _Event:
    """What may turn out to be a transition: moments and gaps in a row that look like one."""

    before: float  # the time of the last frame that is certainly of the old shot
    leave: float  # the time from which frames may be of none
    span: float = 0.0  # the highest probability of a moment inside
    cuts: list[_Gaps] = field(default_factory=list)
    certain: bool = False  # whether the last gap was
    enter: float | None = None  # the time from which they are of the new shot, while the next gap is not known yet
    first: float | None = None  # what the first moment that is rather inside says of leave
    last: float | None = None  # and the last one of enter


class Cascade:
    """The detector. Frames may be all of a source or only its reference frames; `between` gives all frames after one
    time and before another, and is asked only around hard cuts. Without it, the frames that came have to do."""

    def __init__(self, fps: float, between: Callable[[float, float], Sequence[Proxy]] | None = None) -> None:
        self.reach = (CONTEXT + BACK + 2) * 2 / min(RATE, max(fps, 0.1))
        self._between = between
        self._frame = 1 / max(fps, 0.1)  # seconds, left out more at the end: the last mixed frame is the faintest
        self._frames: list[Proxy] = []  # all that came, from the first that is still needed
        self._beats: list[Proxy] = []  # of those, the ones that are judged
        self._judged = 0  # how many of those have been
        self._seen: np.ndarray | None = None  # features of the last moments that were judged, and of their context
        self._event: _Event | None = None
        self._span = 0.0  # the last moment's probability of being inside a gradual transition
        self._cell: int | None = None
        self._entered = float("-inf")  # where the last transition ended
        self.settled = float("-inf")

    def push(self, proxy: Proxy) -> list[Transition]:
        last, self._cell = self._cell, math.floor(proxy.time * RATE + 1e-6)
        if last != self._cell:
            self._beats.append(proxy)
        self._frames.append(proxy)
        return self._judge(BLOCK) if len(self._beats) >= self._judged + BLOCK + CONTEXT else []

    def finish(self) -> list[Transition]:
        """Judges what is left, its last frame repeated as context."""
        found = self._judge(len(self._beats) - self._judged) if len(self._beats) > self._judged else []
        if self._event is not None and self._event.enter is not None:
            found += self._close(self._event, self._beats[-1].time)
        return found

    def _judge(self, count: int) -> list[Transition]:
        """Takes the next `count` moments; forgets those that are no context to what comes."""
        begin, end, margin = self._judged, self._judged + count, CONTEXT - REACH
        first = begin - CONTEXT if self._seen is None else begin + margin - REACH
        rows = np.clip(np.arange(first, end + CONTEXT), 0, len(self._beats) - 1)
        chosen = [self._beats[i] for i in rows]
        seen = features(np.stack([p.colour for p in chosen]), np.array([p.time for p in chosen]))
        seen = seen if self._seen is None else np.concatenate([self._seen, seen])
        self._seen = seen[-2 * margin :]
        found: list[Transition] = []
        for beat, row in zip(range(begin, end), judge(seen)[margin : margin + count].tolist(), strict=True):
            cut, span, since, until = row
            found += self._moment(beat, cut if beat else 0.0, span, (since, until))
        needed = self._beats[max(0, end - 1 - BACK)].time if self._event is None else self._event.before
        self.settled = math.nextafter(needed, math.inf)
        forget = max(0, end - CONTEXT)
        del self._beats[:forget]
        self._judged = end - forget
        self._frames = [p for p in self._frames if p.time >= needed - refine.REACH]
        return found

    def _moment(self, beat: int, cut: float, span: float, away: tuple[float, float]) -> list[Transition]:
        """One more moment with the gap before it: an event begins, goes on or ends."""
        event, found = self._event, []
        if event is not None and event.enter is not None and cut < EDGE:
            found, event = self._close(event, self._beats[beat].time), None
        last, self._span = self._span, span
        before, after = self._beats[max(0, beat - 1)], self._beats[beat]
        edge = before.time + _crossing(last, span) * (after.time - before.time)
        if event is None and max(cut, span) >= EDGE:
            first = self._beats[max(0, beat - 1 - BACK)].time
            event = _Event(first, math.nextafter(edge if cut < EDGE and span < 0.5 else before.time, math.inf))
        if event is not None:
            if cut >= CUT and event.certain:
                event.cuts[-1] = _Gaps(event.cuts[-1].first, (before, after), max(cut, event.cuts[-1].probability))
            elif cut >= CUT:
                event.cuts.append(_Gaps((before, after), (before, after), cut))
            event.certain = cut >= CUT
            event.span = max(event.span, span)
            if span >= 0.5:
                event.first = after.time - MARGIN * away[0] if event.first is None else event.first
                event.last = after.time + MARGIN * away[1]
            enter = min(after.time, edge + self._frame) if cut < EDGE and last < 0.5 else after.time
            event.enter = None if span >= EDGE else enter
        self._event = event
        return found

    def _close(self, event: _Event, now: float) -> list[Transition]:
        assert event.enter is not None
        if event.span < SPAN:
            return [self._cut(gaps) for gaps in event.cuts]
        leave, enter = event.leave, event.enter
        if event.first is not None and event.last is not None:
            leave, enter = event.first, event.last
        leave, enter = max(leave, event.before), min(enter, now)
        earlier = [self._cut(gaps) for gaps in event.cuts if gaps.last[1].time <= leave]
        gradual = self._gradual(event, leave, enter)
        return [*earlier, gradual, *(self._cut(gaps) for gaps in event.cuts if gaps.first[0].time >= gradual.enter)]

    def _cut(self, gaps: _Gaps) -> Transition:
        """The hard cut in a gap. Of several gaps, what lies between the first cut and the last is in no shot."""
        exact = []
        for first, last in (gaps.first, gaps.last):
            before, after = _largest([p for p in self._frames if first.time <= p.time <= last.time])
            if self._between is not None:
                before, after = _largest([before, *self._between(before.time, after.time), after])
            exact.append(after.time)
        leave, enter = (max(time, self._entered) for time in exact)
        self._entered = enter
        return Transition(leave, enter, doubtful=gaps.probability < SURE and leave == enter)

    def _gradual(self, event: _Event, leave: float, enter: float) -> Transition:
        """The transition at about `leave` to `enter`, from frames on both sides of it."""
        times, colour = np.array([p.time for p in self._frames]), np.stack([p.colour for p in self._frames])
        leave, enter = refine.refine(times, colour, leave, enter)
        leave = max(leave, math.nextafter(event.before, math.inf), self._entered)
        self._entered = max(leave, min(enter, self._frames[-1].time))  # a shot has a frame
        return Transition(min(leave, self._entered), self._entered)


def _crossing(p: float, q: float) -> float:
    """How far from a moment with probability p to one with q the probability passes EDGE; 0 to 1, even in log odds."""
    edge, first, second = (math.log(max(x, 1e-4) / (1 - min(x, 0.9999))) for x in (EDGE, p, q))
    return min(1.0, max(0.0, (edge - first) / (second - first))) if first != second else 0.0


def _largest(row: Sequence[Proxy]) -> tuple[Proxy, Proxy]:
    """The two neighbours in a row that differ most."""
    return max(pairwise(row), key=lambda pair: float(np.abs(pair[1].colour.astype(int) - pair[0].colour).mean()))
