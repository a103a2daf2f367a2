"""The schedule is a function: it gives the samples of step s without running the steps before.

A stream is the samples of one shape from one dataset, repeated for ever, in a new permutation each epoch. Each stream
has a rate, its events are evenly spaced in time, and step s is the s-th event of all streams together. So the mixture
is even at every point, nothing is padded or dropped, and the state of the loader is one number. A step's samples do not
depend on ranks or workers: rank r of w takes its micro-batches r, r + w, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Shape:
    """Shape of a sample as the trainer sees it: frames, height and width in pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Stream:
    """Samples of one shape. members: ids of samples, (n,) int64. groups: (n,) shard of each. weight: samples a unit of
    time, relative to the other streams. batch: samples a micro-batch."""

    shape: Shape
    members: np.ndarray
    groups: np.ndarray
    weight: float
    batch: int


@dataclass(frozen=True)
class SampleRef:
    """One sample of a step: slot counts over all micro-batches of the step."""

    step: int
    slot: int
    sample: int
    shape: Shape
    stream: int
    position: int  # in the stream's endless sequence


class BatchSchedule:
    """Which samples make up each step. seed: of every permutation. micro_batches: a step. window: 0 shuffles a stream
    as a whole, n shuffles shards and then the samples of n shards at a time, so that few shards are open at once."""

    def __init__(self, streams: Sequence[Stream], seed: int, micro_batches: int, window: int = 0) -> None:
        if not streams or any(len(s.members) == 0 or s.weight <= 0 for s in streams):
            raise ValueError("every stream needs samples and a positive weight")
        self.streams, self.seed, self.micro_batches, self.window = list(streams), seed, micro_batches, window
        rates = [Fraction(s.weight).limit_denominator(10**6) / self.samples_per_step(s) for s in self.streams]
        self._rates = [rate / sum(rates) for rate in rates]
        self._permutation = lru_cache(maxsize=2 * len(self.streams) + 2)(self._permute)

    def samples_per_step(self, stream: Stream) -> int:
        """Return the samples a step, over all micro-batches and ranks."""
        return stream.batch * self.micro_batches

    def event(self, step: int) -> tuple[int, int]:
        """Return the stream that step `step` draws from, and how many earlier steps drew from it.

        Stream i fires for the k-th time at (k + 1/2) / rate_i, in exact fractions; ties go to the lower i.
        """
        start = max(0, step - len(self.streams) - 1)
        counts = [int(start * rate + Fraction(1, 2)) for rate in self._rates]
        for _ in range(step - sum(counts) + 1):
            due = [(2 * count + 1) / (2 * rate) for count, rate in zip(counts, self._rates, strict=True)]
            chosen = due.index(min(due))
            counts[chosen] += 1
        return chosen, counts[chosen] - 1

    def step(self, step: int) -> list[list[SampleRef]]:
        """Return the micro-batches of a step, all of one shape."""
        which, fired = self.event(step)
        stream = self.streams[which]
        size = self.samples_per_step(stream)
        refs = [self._ref(step, slot, which, fired * size + slot) for slot in range(size)]
        return [refs[i : i + stream.batch] for i in range(0, size, stream.batch)]

    def substitute(self, ref: SampleRef, attempt: int) -> SampleRef:
        """Return a replacement for a sample that cannot be read: the one `attempt` places later in its stream."""
        return self._ref(ref.step, ref.slot, ref.stream, ref.position + attempt)

    def _ref(self, step: int, slot: int, which: int, position: int) -> SampleRef:
        stream = self.streams[which]
        epoch, index = divmod(position, len(stream.members))
        sample = int(stream.members[self._permutation(which, epoch)[index]])
        return SampleRef(step, slot, sample, stream.shape, which, position)

    def _permute(self, which: int, epoch: int) -> np.ndarray:
        stream, rng = self.streams[which], np.random.default_rng((self.seed, which, epoch))
        if self.window == 0:
            return rng.permutation(len(stream.members))
        shards = rng.permutation(np.unique(stream.groups))
        block = np.empty(int(shards.max()) + 1, np.int64)
        block[shards] = np.arange(len(shards)) // self.window
        return np.lexsort((rng.random(len(stream.members)), block[stream.groups]))
