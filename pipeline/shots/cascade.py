"""`shots: cascade`: a small network classifies cheap frame similarities, then the transitions are located exactly.

The network sees about 12 frames a second, which reference frames alone provide, of the picture inside bars (bars.py).
A hard cut is what it says or what stands out from the motion around (jumps.py). It is placed at the largest change
among all frames of the gap between two samples. It is a short gradual transition if other frames beside it belong to
one, and a frame that is a mixture of both shots belongs to neither. All frames near the boundaries of gradual
transitions are decoded too (refine.py). The weights (shots.npz) were trained on films joined from real footage;
tests/benchmarks/shots/train_shots.py says which, and which network is of an earlier form of that script.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from pipeline.media.proxy import Proxy
from pipeline.shots import refine
from pipeline.shots.bars import inner_features
from pipeline.shots.blend import LIKELY, POSSIBLE, blend, is_mixed, is_transition
from pipeline.shots.frame_features import REACH
from pipeline.shots.jumps import AROUND, jumps
from pipeline.shots.shot_cutter import Transition
from pipeline.shots.shot_weights import logits

RATE = 12.5  # largest number of samples per second that the network classifies
DILATIONS = (1, 2, 4, 8)  # samples between the taps of each convolution
CONTEXT = REACH + 1 + sum(DILATIONS)  # samples on each side that a prediction depends on
BATCH = 64  # samples classified at once
CUT = 0.3  # lowest probability of a hard cut; the thresholds of gradual transitions are in blend.py
EDGE = 0.05  # probability at which an event begins and ends
TICK = 0.08  # seconds; unit of the network's predicted distances to a transition's boundaries
BACK = 4  # largest number of samples between a transition's start and the first sample above EDGE
MARGIN = 0.9  # factor by which predicted distances to boundaries are scaled; chosen on concatenated films
APART = 0.3  # seconds between samples of two gradual transitions that follow one another
EXACT = 0.3  # seconds around both boundaries of a gradual transition in which all frames are decoded
BESIDE = 0.12  # seconds from a hard cut to the frames that represent both shots
ABRUPT = 0.7  # lowest ratio of the change at a hard cut to the difference of both shots; lower may be gradual
STARTED = 0.12  # probability that a transition has started, or has not ended, at which its boundaries are placed
WIDENED = 0.2  # such a probability, more than a frame away from a hard cut, above which the cut is gradual
SURE = 0.95  # probability of a certain hard cut; on such films 65 true cuts had >= 0.991, false ones <= 0.893


def judge(inputs: np.ndarray) -> np.ndarray:
    """Classify features (n, FEATURES) float32; return (n, 4) float32.

    Columns: the probability of a cut between this sample and the previous one; the probability that this sample lies in
    a gradual transition; and, if it does, the seconds since its start and until its end, predicted as the 90th
    percentile. The first and last samples lack context.
    """
    outputs = logits("", inputs, DILATIONS)
    return np.concatenate([1 / (1 + np.exp(-outputs[:, :2])), np.maximum(0, outputs[:, 2:]) * TICK], axis=1)


@dataclass
class _Gaps:
    """Consecutive gaps, each between two classified frames, that certainly contain a hard cut."""

    first: tuple[Proxy, Proxy]
    last: tuple[Proxy, Proxy]
    probability: float


@dataclass
class _Run:
    """Samples that probably lie in one gradual transition. Times in seconds."""

    leave: float  # the start predicted by the first sample
    enter: float  # the end predicted by the last sample
    first: float  # time of the first sample
    last: float  # and of the last
    peak: float  # highest probability


@dataclass
class _Event:
    """A candidate transition: consecutive samples and gaps with a probability of at least EDGE. Times in seconds."""

    last_old_time: float  # time of the last frame that certainly belongs to the old shot
    cuts: list[_Gaps] = field(default_factory=list)
    in_cut_run: bool = False  # whether the last gap certainly contains a hard cut
    over: bool = False  # whether the last sample's probability of a gradual transition is below EDGE
    runs: list[_Run] = field(default_factory=list)


class Cascade:
    """The detector. The pushed frames are all frames of a source or only its reference frames. `between(a, b)` returns
    all frames with a < time < b and is called only around hard cuts; without it cuts are placed among pushed frames."""

    def __init__(self, fps: float, between: Callable[[float, float], Sequence[Proxy]] | None = None) -> None:
        self.reach = (CONTEXT + BACK + 2) * 2 / min(RATE, max(fps, 0.1))
        self._between = between
        self._frame = 1 / max(fps, 0.1)  # seconds from one frame to the next
        self._frames: list[Proxy] = []  # all pushed frames from the first that is still needed
        self._samples: list[Proxy] = []  # those of them that are classified
        self._judged = 0  # number of samples already classified
        self._inputs: np.ndarray | None = None  # features of the last classified samples and their context
        self._event: _Event | None = None
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
        if self._event is not None and self._event.over:
            transitions += self._close(self._event, self._samples[-1].time)
        return transitions

    def _judge(self, count: int) -> list[Transition]:
        """Classify the next `count` samples and drop those that no later sample needs as context."""
        begin, end, margin = self._judged, self._judged + count, CONTEXT - REACH
        first = begin - CONTEXT if self._inputs is None else begin + margin - REACH
        places = np.clip(np.arange(first, end + CONTEXT), 0, len(self._samples) - 1)
        chosen = [self._samples[i] for i in places]
        inputs = inner_features(np.stack([p.colour for p in chosen]), np.array([p.time for p in chosen]))
        inputs = inputs if self._inputs is None else np.concatenate([self._inputs, inputs])
        self._inputs = inputs[-2 * margin :]
        transitions: list[Transition] = []
        rows = judge(inputs)[margin : margin + count]
        jumped = jumps(inputs[margin - AROUND : margin + count + AROUND])
        for sample, row, is_jump in zip(range(begin, end), rows.tolist(), jumped.tolist(), strict=True):
            cut, span, since, until = row
            if sample and is_jump and (cut >= CUT or self._is_sudden(sample)):
                cut = 1.0
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
        if event is not None and event.over and cut < EDGE:
            transitions, event = self._close(event, self._samples[sample].time), None
        before, after = self._samples[max(0, sample - 1)], self._samples[sample]
        if event is None and max(cut, span) >= EDGE:
            event = _Event(self._samples[max(0, sample - 1 - BACK)].time)
        if event is not None:
            if cut >= CUT and event.in_cut_run:
                event.cuts[-1] = _Gaps(event.cuts[-1].first, (before, after), max(cut, event.cuts[-1].probability))
            elif cut >= CUT:
                gap = (before, after)
                event.cuts.append(_Gaps(gap, gap, cut))
            event.in_cut_run = cut >= CUT
            if span >= 0.5:
                if not event.runs or after.time - event.runs[-1].last > APART:
                    leave = after.time - MARGIN * away[0]
                    event.runs.append(_Run(leave, after.time, after.time, after.time, span))
                run = event.runs[-1]
                run.enter, run.last, run.peak = after.time + MARGIN * away[1], after.time, max(run.peak, span)
            event.over = span < EDGE
        self._event = event
        return transitions

    def _close(self, event: _Event, now: float) -> list[Transition]:
        """Return the transitions of an event whose last sample is at `now` seconds."""
        runs = [run for run in _joined(event.runs) if run.peak >= POSSIBLE]
        cuts, transitions = list(event.cuts), list[Transition]()
        for run, following in zip(runs, [*runs, None][1:], strict=True):
            # A certain cut shortly before or after a gradual transition bounds it: between them is a very short shot.
            sure = [gaps for gaps in cuts if gaps.probability >= SURE]
            begin = max((c.last[1].time for c in sure if c.last[1].time < run.first), default=-math.inf)
            end = min((c.first[0].time for c in sure if c.first[0].time > run.last), default=math.inf)
            end = end if following is None else min(end, following.first)
            run.enter = min(run.enter, now)
            gradual = self._gradual(event, run, (max(begin, self._last_enter), end))
            if gradual is None:
                continue
            transitions += [self._cut(c, event) for c in cuts if c.last[1].time <= max(gradual.leave, begin)]
            cuts = [c for c in cuts if c.first[0].time >= gradual.enter]
            leave = max(gradual.leave, self._last_enter)
            self._last_enter = max(gradual.enter, leave)
            transitions.append(Transition(leave, self._last_enter))
        return transitions + [self._cut(gaps, event) for gaps in cuts]

    def _cut(self, gaps: _Gaps, event: _Event) -> Transition:
        """Return the hard cut in a gap, or the short gradual transition that looked like one, if no other cut is near.
        With several gaps, frames between the first and the last cut are in no shot."""
        before, after = self._exact(gaps.first)
        leave = enter = after.time
        if gaps.last is not gaps.first:
            enter = self._exact(gaps.last)[1].time
        else:
            if len(event.cuts) == 1 and not self._abrupt(before, after):
                leave, enter = self._widened(before.time, after.time)
            if leave == enter:
                leave, enter = self._without_mixed(before, after)
            leave, enter = max(leave, math.nextafter(event.last_old_time, math.inf)), min(enter, self._frames[-1].time)
        leave, enter = max(leave, self._last_enter), max(enter, self._last_enter)
        self._last_enter = enter
        return Transition(leave, enter, doubtful=gaps.probability < SURE and gaps.last is gaps.first)

    def _is_sudden(self, sample: int) -> bool:
        """Return whether the picture changes from one frame to the next in the gap before a sample, or by one mixed
        frame, and not by fast motion of a few frames."""
        before, after = self._exact((self._samples[sample - 1], self._samples[sample]))
        leave, enter = self._without_mixed(before, after)
        return leave < enter or self._abrupt(before, after)

    def _abrupt(self, before: Proxy, after: Proxy) -> bool:
        """Return whether two neighbouring frames differ nearly as much as the frames further away on both sides."""
        old = [p for p in self._frames if p.time <= before.time - BESIDE][-1:]
        new = [p for p in self._frames if p.time >= after.time + BESIDE][:1]
        return not old or not new or _difference(before, after) > ABRUPT * _difference(old[0], new[0])

    def _without_mixed(self, before: Proxy, after: Proxy) -> tuple[float, float]:
        """Return the boundaries of the hard cut between two frames: around one of them if it is a mixture."""
        earlier = [p for p in self._frames if p.time < before.time][-1:]
        later = [p for p in self._frames if p.time > after.time][:1]
        if earlier and is_mixed(earlier[0].colour, before.colour, after.colour):
            return before.time, after.time
        if later and is_mixed(before.colour, after.colour, later[0].colour):
            return after.time, later[0].time
        return after.time, after.time

    def _widened(self, before: float, after: float) -> tuple[float, float]:
        """Return the boundaries of the short gradual transition around the neighbouring frames at `before` and `after`
        seconds; those of the cut between them if no further frame clearly belongs to a transition."""
        times, colour = self._arrays(before - refine.REACH, after + refine.REACH)
        middle = (before + after) / 2
        sides = [
            refine.features(times, colour, middle, middle),
            refine.features(-times[::-1], colour[::-1], -middle, -middle),
        ]
        clear = [-refine.shift(side, WIDENED) for side in sides if side is not None]
        if len(clear) < 2 or max(clear) < 1.5 * self._frame:
            return after, after
        out, back = (-refine.shift(side, STARTED) for side in sides if side is not None)
        return min(middle - out, after), max(middle + back, after)

    def _arrays(self, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
        """Times and pictures of the pushed frames with first <= time <= last."""
        frames = [p for p in self._frames if first <= p.time <= last]
        return np.array([p.time for p in frames]), np.stack([p.colour for p in frames])

    def _exact(self, gap: tuple[Proxy, Proxy]) -> tuple[Proxy, Proxy]:
        """Return the frames before and after the hard cut in a gap."""
        before, after = _largest([p for p in self._frames if gap[0].time <= p.time <= gap[1].time])
        if self._between is not None:
            self._frames = _merged(self._frames, self._between(before.time, after.time))
            before, after = _largest([p for p in self._frames if before.time <= p.time <= after.time])
        return before, after

    def _gradual(self, event: _Event, run: _Run, bounds: tuple[float, float]) -> Transition | None:
        """Return the transition of a run of samples, within `bounds`, its boundaries refined with the frames on both
        sides; None if `is_transition` rejects it."""
        times, colour = self._arrays(-math.inf, math.inf)
        first, last = max(run.leave, event.last_old_time, bounds[0]), min(run.enter, bounds[1])
        leave, enter = refine.refine(times, colour, first, last, STARTED)
        if not is_transition(run.peak, enter - leave, blend(times, colour, leave, enter)):
            return None
        if self._between is not None:
            self._decode_edges(leave, enter)
            times, colour = self._arrays(-math.inf, math.inf)
            leave, enter = refine.refine(times, colour, leave, enter, STARTED)
            if blend(times, colour, leave, enter).flash:
                return None
        leave = max(leave, math.nextafter(event.last_old_time, math.inf), bounds[0])
        enter = max(leave, min(enter, self._frames[-1].time, bounds[1]))  # the new shot has at least one frame
        return Transition(min(leave, enter), enter)

    def _decode_edges(self, leave: float, enter: float) -> None:
        """Add all frames within EXACT seconds of both boundaries of a transition."""
        assert self._between is not None
        spans = [(leave - EXACT, leave + EXACT), (enter - EXACT, enter + EXACT)]
        for first, last in spans if spans[0][1] < spans[1][0] else [(spans[0][0], spans[1][1])]:
            self._frames = _merged(self._frames, self._between(first, min(last, self._frames[-1].time)))


def _joined(runs: Sequence[_Run]) -> list[_Run]:
    """Join a run with the one before it unless both are likely to be transitions."""
    joined: list[_Run] = []
    for run in runs:
        if joined and min(joined[-1].peak, run.peak) < LIKELY:
            before = joined.pop()
            run = _Run(before.leave, run.enter, before.first, run.last, max(before.peak, run.peak))
        joined.append(run)
    return joined


def _largest(row: Sequence[Proxy]) -> tuple[Proxy, Proxy]:
    """Return the two neighbouring frames that differ most."""
    return max(pairwise(row), key=lambda pair: _difference(*pair))


def _difference(first: Proxy, second: Proxy) -> float:
    return float(np.abs(first.colour.astype(int) - second.colour).mean())


def _merged(frames: Sequence[Proxy], others: Sequence[Proxy]) -> list[Proxy]:
    """Frames of both, each time once, in order of time."""
    return [frame for _, frame in sorted({p.time: p for p in (*others, *frames)}.items())]
