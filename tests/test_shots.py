"""Transitions become shots and parts of shots by rules that do not depend on how a source was segmented."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.spans import LONGEST, Shot, ShotCutter, Transition, equal_parts

END = 400.0


def shots_of(transitions, segment, step):
    """The shots of a source of END seconds that starts at 0, its transitions known with a delay of about `step`."""
    cutter = ShotCutter(segment)
    begin = max(0.0, ShotCutter.decode_from(segment[0])) if math.isfinite(segment[0]) else 0.0
    cutter.begin(begin, begin == 0.0)
    shots, left = [], [t for t in transitions if t.leave >= begin]
    for now in np.arange(begin + step, END, step):
        known = [t for t in left if t.enter < now]
        left = left[len(known) :]
        settled = min([now] + [t.leave for t in left])
        shots += cutter.push(known, settled)
        if cutter.done:
            return shots
    return shots + cutter.push(left, END) + cutter.finish()


transitions_of = st.lists(st.tuples(st.integers(1, 3990), st.sampled_from([0, 0, 5, 20])), max_size=25).map(
    lambda items: [
        Transition(a / 10, (a + w) / 10)
        for (a, w), (b, _) in pairwise([*sorted(dict(items).items()), (4100, 0)])
        if a + w < b and a + w < 4000
    ]
)


@settings(deadline=None, max_examples=150)
@given(transitions_of, st.lists(st.floats(1, END - 1), max_size=5), st.sampled_from([0.7, 3.0, 50.0]))
def test_shots_over_any_segmentation_are_those_of_one_piece(transitions, cuts, step):
    whole = shots_of(transitions, (-math.inf, math.inf), 1.0)
    edges = [-math.inf, *sorted(set(cuts)), math.inf]
    parts = [shot for segment in pairwise(edges) for shot in shots_of(transitions, segment, step)]
    assert parts == whole


@settings(deadline=None, max_examples=100)
@given(transitions_of)
def test_shots_and_transitions_tile_the_source(transitions):
    shots = shots_of(transitions, (-math.inf, math.inf), 1.0)
    edges = {t.leave: t.enter for t in transitions}
    assert shots[0].start == 0.0
    assert shots[-1].end == math.inf
    for shot, following in pairwise(shots):
        assert following.start == edges.get(shot.end, shot.end)
        assert shot.end <= shot.start + 2 * LONGEST
    assert set(edges) <= {shot.end for shot in shots} | {0.0}


def test_a_shot_without_transition_is_cut_on_a_grid():
    assert [s.start for s in shots_of([], (-math.inf, math.inf), 1.0)] == [0, 60, 120, 180, 240, 300, 360]
    with_one = shots_of([Transition(70, 72)], (-math.inf, math.inf), 1.0)
    assert with_one[:3] == [Shot(0, 60.0), Shot(60.0, 70), Shot(72, 180.0)]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0.01, 0.5), min_size=1, max_size=80), st.floats(0.3, 20))
def test_parts_of_a_shot_are_nearly_equal_and_lose_nothing(gaps, longest):
    times = np.cumsum([0.0, *gaps]).tolist()
    end = times[-1] + 0.04
    parts = equal_parts(times, end, longest)
    assert [i for first, last in parts for i in range(first, last)] == list(range(len(times)))
    assert len(parts) == min(len(times), max(1, math.ceil((end - times[0]) / longest - 1e-6)))
    if len(parts) <= len(times) // 25:
        lengths = [(times[last] if last < len(times) else end) - times[first] for first, last in parts]
        assert max(lengths) - min(lengths) <= 2 * max(gaps) + 0.1


def test_equal_parts_of_one_frame():
    assert equal_parts([3.0], 3.04, 10.0) == [(0, 1)]
    assert equal_parts([0.0, 1.0, 2.0, 3.0], 4.0, 2.0) == [(0, 2), (2, 4)]
    assert len(equal_parts([0.0, 1.0], 2.0, 0.1)) == pytest.approx(2)
