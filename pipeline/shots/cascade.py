"""`shots: cascade`: a small network classifies cheap frame similarities, then the transitions are located exactly.

The network sees about 12 frames a second, which reference frames alone provide. A hard cut between two of them is
placed at the largest change among all frames of that gap. The weights (shots.npz) were trained on concatenated footage
by tests/benchmarks/shots/train_shots.py, which excludes the footage of the accuracy benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from pipeline.media.proxy import Proxy
from pipeline.shots import refine
from pipeline.shots.blend import POSSIBLE, blend, is_transition
from pipeline.shots.frame_features import REACH, features
from pipeline.shots.shot_cutter import Transition
from pipeline.shots.shot_weights import weights

RATE = 12.5  # largest number of samples per second that the network classifies
WIDTH = 48  # channels of the network
DILATIONS = (1, 2, 4, 8)  # samples between the taps of each convolution
CONTEXT = REACH + 1 + sum(DILATIONS)  # samples on each side that a prediction depends on
BATCH = 64  # samples classified at once
CUT = 0.3  # lowest probability of a hard cut; the thresholds of gradual transitions are in blend.py
EDGE = 0.05  # probability at which an event begins and ends
TICK = 0.08  # seconds; unit of the network's predicted distances to a transition's boundaries
BACK = 4  # largest number of samples between a transition's start and the first sample above EDGE
MARGIN = 0.9  # factor by which predicted distances to boundaries are scaled; chosen on concatenated films
SURE = 0.95  # probability of a certain hard cut; on such films 65 true cuts had >= 0.991, false ones <= 0.893


def sample_indices(times: np.ndarray) -> np.ndarray:
    """Return the indices of the classified frames: the first, and the first after each multiple of 1 / RATE seconds."""
    cells = np.floor(times * RATE + 1e-6).astype(int)
    return np.flatnonzero(np.diff(cells, prepend=cells[0] - 1))


def judge(inputs: np.ndarray) -> np.ndarray:
    """Classify features (n, FEATURES) float32; return (n, 4) float32.

    Columns: the probability of a cut between this sample and the previous one; the probability that this sample lies in
    a gradual transition; and, if it does, the seconds since its start and until its end, predicted as the 90th
    percentile. The first and last samples lack context.
    """
    w = weights()
    x = np.maximum(inputs @ w["first_weight"][:, :, 0].T + w["first_bias"], 0)
    for index, dilation in enumerate(DILATIONS):
        kernel, bias = w[f"blocks_{index}_weight"], w[f"blocks_{index}_bias"]
        padded = np.pad(x, ((dilation, dilation), (0, 0)))
        taps = [padded[k * dilation : k * dilation + len(x)] @ kernel[:, :, k].T for k in range(3)]
        x = x + np.maximum(taps[0] + taps[1] + taps[2] + bias, 0)
    logits = x @ w["last_weight"][:, :, 0].T + w["last_bias"]
    return np.concatenate([1 / (1 + np.exp(-logits[:, :2])), np.maximum(0, logits[:, 2:]) * TICK], axis=1)


@dataclass
class _Gaps:
    """Consecutive gaps, each between two classified frames, that certainly contain a hard cut."""

    first: tuple[Proxy, Proxy]
    last: tuple[Proxy, Proxy]
    probability: float


@dataclass
class _Event:
    """A candidate transition: consecutive samples and gaps with a probability of at least EDGE. Times in seconds."""

    last_old_time: float  # time of the last frame that certainly belongs to the old shot
    leave: float  # time from which frames may belong to neither shot
    peak: float = 0.0  # highest probability of a gradual transition among the samples
    cuts: list[_Gaps] = field(default_factory=list)
    in_cut_run: bool = False  # whether the last gap certainly contains a hard cut
    enter: float | None = None  # time from which frames belong to the new shot; None while the event goes on
    predicted_leave: float | None = None  # the start predicted by the first sample with a probability of 0.5
    predicted_enter: float | None = None  # the end predicted by the last such sample
    first_inside: float = float("inf")  # time of the first such sample
    last_inside: float = float("-inf")  # and of the last


class Cascade:
    """The detector. The pushed frames are all frames of a source or only its reference frames. `between(a, b)` returns
    all frames with a < time < b and is called only around hard cuts; without it cuts are placed among pushed frames."""

    def __init__(self, fps: float, between: Callable[[float, float], Sequence[Proxy]] | None = None) -> None:
        self.reach = (CONTEXT + BACK + 2) * 2 / min(RATE, max(fps, 0.1))
        self._between = between
        self._frame = 1 / max(fps, 0.1)  # seconds trimmed at the end: the last blended frame is too faint to detect
        self._frames: list[Proxy] = []  # all pushed frames from the first that is still needed
        self._samples: list[Proxy] = []  # those of them that are classified
        self._judged = 0  # number of samples already classified
        self._inputs: np.ndarray | None = None  # features of the last classified samples and their context
        self._event: _Event | None = None
        self._last_gradual = 0.0  # the last sample's probability of lying in a gradual transition
        self._cell: int | None = None
        self._last_enter = float("-inf")  # time at which the last transition ended
        self.emitted_until = float("-inf")

    def push(self, proxy: Proxy) -> list[Transition]:
        last, self._cell = self._cell, math.floor(proxy.time * RATE + 1e-6)
        if last != self._cell:
            self._samples.append(proxy)
        self._frames.append(proxy)
        return self._judge(BATCH) if len(self._samples) >= self._judged + BATCH + CONTEXT else []

    def finish(self) -> list[Transition]:
        """Classify the remaining samples; the last frame is repeated as context."""
        transitions = self._judge(len(self._samples) - self._judged) if len(self._samples) > self._judged else []
        if self._event is not None and self._event.enter is not None:
            transitions += self._close(self._event, self._samples[-1].time)
        return transitions

    def _judge(self, count: int) -> list[Transition]:
        """Classify the next `count` samples and drop those that no later sample needs as context."""
        begin, end, margin = self._judged, self._judged + count, CONTEXT - REACH
        first = begin - CONTEXT if self._inputs is None else begin + margin - REACH
        rows = np.clip(np.arange(first, end + CONTEXT), 0, len(self._samples) - 1)
        chosen = [self._samples[i] for i in rows]
        inputs = features(np.stack([p.colour for p in chosen]), np.array([p.time for p in chosen]))
        inputs = inputs if self._inputs is None else np.concatenate([self._inputs, inputs])
        self._inputs = inputs[-2 * margin :]
        transitions: list[Transition] = []
        for sample, row in zip(range(begin, end), judge(inputs)[margin : margin + count].tolist(), strict=True):
            cut, span, since, until = row
            transitions += self._moment(sample, cut if sample else 0.0, span, (since, until))
        needed = self._samples[max(0, end - 1 - BACK)].time if self._event is None else self._event.last_old_time
        self.emitted_until = math.nextafter(needed, math.inf)
        forget = max(0, end - CONTEXT)
        del self._samples[:forget]
        self._judged = end - forget
        self._frames = [p for p in self._frames if p.time >= needed - refine.REACH]
        return transitions

    def _moment(self, sample: int, cut: float, span: float, away: tuple[float, float]) -> list[Transition]:
        """Update the event with one sample and the gap before it: an event begins, continues or ends."""
        event, transitions = self._event, []
        if event is not None and event.enter is not None and cut < EDGE:
            transitions, event = self._close(event, self._samples[sample].time), None
        last, self._last_gradual = self._last_gradual, span
        before, after = self._samples[max(0, sample - 1)], self._samples[sample]
        edge = before.time + _crossing(last, span) * (after.time - before.time)
        if event is None and max(cut, span) >= EDGE:
            first = self._samples[max(0, sample - 1 - BACK)].time
            event = _Event(first, math.nextafter(edge if cut < EDGE and span < 0.5 else before.time, math.inf))
        if event is not None:
            if cut >= CUT and event.in_cut_run:
                event.cuts[-1] = _Gaps(event.cuts[-1].first, (before, after), max(cut, event.cuts[-1].probability))
            elif cut >= CUT:
                gap = (before, after)
                event.cuts.append(_Gaps(gap, gap, cut))
            event.in_cut_run = cut >= CUT
            event.peak = max(event.peak, span)
            if span >= 0.5:
                if event.predicted_leave is None:
                    event.predicted_leave, event.first_inside = after.time - MARGIN * away[0], after.time
                event.predicted_enter, event.last_inside = after.time + MARGIN * away[1], after.time
            enter = min(after.time, edge + self._frame) if cut < EDGE and last < 0.5 else after.time
            event.enter = None if span >= EDGE else enter
        self._event = event
        return transitions

    def _close(self, event: _Event, now: float) -> list[Transition]:
        assert event.enter is not None
        if event.peak < POSSIBLE:
            return [self._cut(gaps) for gaps in event.cuts]
        leave, enter = event.leave, event.enter
        if event.predicted_leave is not None and event.predicted_enter is not None:
            leave, enter = event.predicted_leave, event.predicted_enter
        leave, enter = max(leave, event.last_old_time), min(enter, now)
        # A certain cut shortly before or after the gradual transition bounds it: between them is a very short shot.
        certain = [gaps for gaps in event.cuts if gaps.probability >= SURE]
        begin = max((c.last[1].time for c in certain if c.last[1].time < event.first_inside), default=-math.inf)
        end = min((c.first[0].time for c in certain if c.first[0].time > event.last_inside), default=math.inf)
        last_enter = self._last_enter
        earlier = [self._cut(gaps) for gaps in event.cuts if gaps.last[1].time <= max(leave, begin)]
        gradual = self._gradual(event, leave, enter, (begin, end))
        if gradual is None:
            self._last_enter = last_enter
            return [self._cut(gaps) for gaps in event.cuts]
        self._last_enter = gradual.enter
        return [*earlier, gradual, *(self._cut(gaps) for gaps in event.cuts if gaps.first[0].time >= gradual.enter)]

    def _cut(self, gaps: _Gaps) -> Transition:
        """Return the hard cut in a gap. With several gaps, frames between the first and the last cut are in no shot."""
        first = self._exact(gaps.first)
        last = first if gaps.last is gaps.first else self._exact(gaps.last)
        leave, enter = (max(time, self._last_enter) for time in (first, last))
        self._last_enter = enter
        return Transition(leave, enter, doubtful=gaps.probability < SURE and leave == enter)

    def _exact(self, gap: tuple[Proxy, Proxy]) -> float:
        """Return the time of the first frame after the hard cut in a gap."""
        before, after = _largest([p for p in self._frames if gap[0].time <= p.time <= gap[1].time])
        if self._between is not None:
            before, after = _largest([before, *self._between(before.time, after.time), after])
        return after.time

    def _gradual(self, event: _Event, leave: float, enter: float, bounds: tuple[float, float]) -> Transition | None:
        """Return the transition near `leave` to `enter` and within `bounds`, its boundaries refined with the frames on
        both sides; None if `is_transition` rejects it."""
        times, colour = np.array([p.time for p in self._frames]), np.stack([p.colour for p in self._frames])
        leave, enter = refine.refine(times, colour, max(leave, bounds[0]), min(enter, bounds[1]))
        leave = max(leave, math.nextafter(event.last_old_time, math.inf), self._last_enter, bounds[0])
        enter = max(leave, min(enter, self._frames[-1].time, bounds[1]))  # the new shot has at least one frame
        if not is_transition(event.peak, enter - leave, blend(times, colour, leave, enter)):
            return None
        return Transition(min(leave, enter), enter)


def _crossing(p: float, q: float) -> float:
    """Return the fraction, 0 to 1, of the way from a sample of probability p to one of q at which the probability
    crosses EDGE, interpolated linearly in log odds."""
    edge, first, second = (math.log(max(x, 1e-4) / (1 - min(x, 0.9999))) for x in (EDGE, p, q))
    return min(1.0, max(0.0, (edge - first) / (second - first))) if first != second else 0.0


def _largest(row: Sequence[Proxy]) -> tuple[Proxy, Proxy]:
    """Return the two neighbouring frames that differ most."""
    return max(pairwise(row), key=lambda pair: float(np.abs(pair[1].colour.astype(int) - pair[0].colour).mean()))
