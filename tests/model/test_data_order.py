"""The order of samples: a property of (seed, step) alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.schedule import BatchSchedule, Shape, Stream

streams = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 5), st.floats(0.1, 10)), min_size=1, max_size=4
)  # members, batch, weight


def order_of(sizes: list[tuple[int, int, float]], seed: int, micro: int, window: int = 0) -> BatchSchedule:
    first, streams = 0, []
    for number, (count, batch, weight) in enumerate(sizes):
        members = np.arange(first, first + count)
        streams.append(Stream(Shape(1 + 4 * number, 16, 16), members, members // 7, weight, batch))
        first += count
    return BatchSchedule(streams, seed, micro, window)


@settings(max_examples=60, deadline=None)
@given(streams, st.integers(0, 9), st.sampled_from([1, 2, 4]), st.sampled_from([0, 1, 3]))
def test_every_sample_comes_exactly_once_in_each_epoch_of_its_stream(sizes, seed, micro, window):
    order = order_of(sizes, seed, micro, window)
    counts: Counter[tuple[int, int, int]] = Counter()
    drawn = Counter[int]()
    for step in range(80):
        for draw in (d for batch in order.step(step) for d in batch):
            epoch = draw.position // len(order.streams[draw.stream].members)
            counts[draw.stream, epoch, draw.sample] += 1
            drawn[draw.stream] += 1
    assert max(counts.values()) == 1
    for number, stream in enumerate(order.streams):
        for epoch in range(drawn[number] // len(stream.members)):
            assert {s for n, e, s in counts if (n, e) == (number, epoch)} == set(stream.members.tolist())


@settings(max_examples=60, deadline=None)
@given(streams, st.integers(0, 9), st.lists(st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 4])), max_size=5))
def test_any_series_of_stops_and_world_sizes_draws_the_same_samples(sizes, seed, pieces):
    straight = [order_of(sizes, seed, 4).step(s) for s in range(50)]
    at = 0
    for steps, world in [*pieces, (5, 1)]:
        order = order_of(sizes, seed, 4)  # a new process knows nothing but the step
        for step in range(at, at + steps):
            ranks = [order.step(step)[rank::world] for rank in range(world)]
            together = [ranks[i % world][i // world] for i in range(4)]
            assert together == straight[step]
            assert len({draw.shape for batch in together for draw in batch}) == 1
        at += steps


@settings(max_examples=40, deadline=None)
@given(streams, st.integers(1, 10_000))
def test_streams_are_mixed_by_weight_at_every_point(sizes, step):
    order = order_of(sizes, 0, 1)
    which, fired = order.event(step)
    total = sum(weight / batch for _, batch, weight in sizes)
    share = sizes[which][2] / sizes[which][1] / total
    assert abs(fired - share * step) <= len(sizes)


def test_event_numbers_are_those_of_a_walk_from_the_start():
    order = order_of([(5, 1, 3.0), (5, 2, 1.0), (5, 3, 0.7)], 0, 2)
    counts = [0, 0, 0]
    for step in range(500):
        which, fired = order.event(step)
        assert fired == counts[which]
        counts[which] += 1


def test_epochs_differ_and_a_window_opens_few_shards_at_a_time():
    order = order_of([(70, 1, 1.0)], 3, 1, window=2)
    epochs = [[order.step(e * 70 + s)[0][0].sample for s in range(70)] for e in range(2)]
    assert epochs[0] != epochs[1]
    assert all(len({sample // 7 for sample in epochs[0][i : i + 14]}) == 2 for i in range(0, 70, 14))


def test_a_far_step_of_ten_million_samples_is_found_without_walking_there():
    members = np.arange(10_000_000)
    order = BatchSchedule([Stream(Shape(1, 16, 16), members, members // 1000, 1.0, 8)], 0, 4)
    first = order.step(3_000_000)
    assert first == order.step(3_000_000)
    assert first[0][0].position == 3_000_000 * 32


def test_streams_without_samples_are_refused():
    with pytest.raises(ValueError, match="samples"):
        order_of([(0, 1, 1.0)], 0, 1)
