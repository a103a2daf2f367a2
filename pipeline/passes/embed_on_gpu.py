"""The workers of the pass `embed` with an encoder on a GPU: two stages, so that no CPU filter occupies a GPU.

The first stage scores clips with the filters that need neither a GPU nor the embedding, on all cores. The second stage
processes several units concurrently: while the frames of some units are read and decoded, the frames of others are
embedded together. It then runs the other filters. The thresholds of the first stage are applied before those of the
second, whatever the order in the recipe.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from filters.base import Filter, Track, uses_gpu
from filters.encoders.base import EncoderOutput, load_encoder
from pipeline.config.recipe import Recipe
from pipeline.media.faults import is_machine_fault
from pipeline.passes.embed_worker import (
    DECODING_THREADS,
    ClipState,
    Costs,
    apply_filters,
    chunks,
    commit,
    embed_clip,
    limit_threads,
    wanted_rows,
)
from pipeline.state import fingerprints
from pipeline.state.error_log import LoggedError
from pipeline.state.units import Handoff, UnitClips, UnitResult
from pipeline.storage.store import Store

GPU_CHUNK = 32  # clips of a unit whose frames are in memory at once in the second stage
PICTURES = 512  # largest number of frames, of several units, in one call of the encoder
UNITS_AT_ONCE = 8  # in a worker of the second stage


@dataclass(frozen=True)
class EncodeUnit:
    """Clips that the first stage has scored: rows of the scan, columns of the embed pass so far, and the ids of the
    `admitted` clips, which remain to be encoded."""

    clips: UnitClips
    rows: tuple[dict[str, Any], ...]
    columns: tuple[dict[str, Any], ...]
    admitted: frozenset[str]  # clip ids
    seconds: float
    filters: Mapping[str, Mapping[str, float]]
    errors: tuple[LoggedError, ...]


class ScoreFrames:
    """The first stage: scores clips with the filters that need neither a GPU nor the embedding."""

    def __init__(self, store: Store, recipe: Recipe, by_hand: Collection[str] = ()) -> None:
        cv2.setNumThreads(1)  # there is one worker per core
        self._store, self._recipe, self._by_hand = store, recipe, by_hand
        self._filters = cpu_filters(fingerprints.filters_of(recipe, "embed"))

    def __call__(self, unit: UnitClips) -> Handoff:
        costs, errors, admitted = Costs(), list[LoggedError](), set[str]()
        rows, columns = [], []
        wanted = wanted_rows(self._store, self._recipe, unit, self._by_hand)
        for chunk, frames in chunks(self._store, unit.unit, wanted):
            states = [ClipState(row, frames[row["clip_id"]]) for row in chunk]
            remaining = apply_filters(states, self._filters, self._recipe, self._by_hand, costs, errors)
            admitted |= {state.row["clip_id"] for state in remaining}
            rows += chunk
            columns += [state.out for state in states]
        scored = (tuple(rows), tuple(columns), frozenset(admitted), costs.total, costs.filters, tuple(errors))
        return Handoff(EncodeUnit(unit, *scored))


class EncodeClips:
    """The second stage: embeds clips, computes the remaining scores, and writes a fragment. Thread-safe."""

    def __init__(self, store: Store, recipe: Recipe, by_hand: Collection[str] = ()) -> None:
        limit_threads()
        self._store, self._recipe, self._by_hand = store, recipe, by_hand
        self._encoder = load_encoder(recipe.encoder.name, recipe.encoder.model, recipe.encoder.pretrained)
        self._look = JoinedCalls(self._encoder.look, PICTURES)
        filters = fingerprints.filters_of(recipe, "embed", self._encoder)
        on_cpu = cpu_filters(filters)
        self._filters = [clip_filter for clip_filter in filters.values() if clip_filter not in on_cpu]
        self._filtering = threading.Lock()

    def __call__(self, unit: EncodeUnit) -> UnitResult:
        costs, errors = Costs(unit.seconds, unit.filters), list(unit.errors)
        columns = {out["clip_id"]: out for out in unit.columns}
        rows = [row for row in unit.rows if row["clip_id"] in unit.admitted]
        for chunk, frames in chunks(self._store, unit.clips.unit, rows, GPU_CHUNK, DECODING_THREADS):
            states = [ClipState(row, frames[row["clip_id"]], columns[row["clip_id"]]) for row in chunk]
            costs.took("encoder", self._encode(states, errors), len(states))
            with self._filtering:
                apply_filters(states, self._filters, self._recipe, self._by_hand, costs, errors)
        return commit(self._store, self._recipe, unit.clips, unit.columns, costs, errors)

    def _encode(self, states: Sequence[ClipState], errors: list[LoggedError]) -> float:
        """Embed the frames of all clips in one call; return the encoder's seconds. If the call fails, embed clip by
        clip, so that only the failing clip is affected."""
        pictures = [picture for state in states for picture in state.frames.pictures]
        if not pictures:
            return 0.0
        try:
            output, seconds = self._look(pictures)
        except Exception as error:
            if isinstance(error, OSError) or is_machine_fault(error):
                raise
            with self._look.turn:
                started = time.perf_counter()
                for state in states:
                    embed_clip(state, self._encoder, errors)
                return time.perf_counter() - started
        first = 0
        for state in states:
            if count := len(state.frames.pictures):
                state.take(part_of(output, first, count))
                first += count
        return seconds


class JoinedCalls:
    """Combines calls of an encoder's `look` from several threads into one call with up to `most` pictures; a single
    call with more pictures is not divided."""

    def __init__(self, look: Callable[[Sequence[np.ndarray]], EncoderOutput], most: int) -> None:
        self._look, self._most = look, most
        self._waiting = deque[tuple[Sequence[np.ndarray], Future[tuple[EncoderOutput, float]]]]()
        self.turn = threading.Lock()  # of the thread that calls the encoder

    def __call__(self, pictures: Sequence[np.ndarray]) -> tuple[EncoderOutput, float]:
        """Return the output for `pictures` and their share of the call's seconds. Raises the encoder's exception for
        any picture of the combined call."""
        answer = Future[tuple[EncoderOutput, float]]()
        self._waiting.append((pictures, answer))
        while not answer.done():
            with self.turn:
                if not answer.done():
                    self._run_batch()
        return answer.result()

    def _run_batch(self) -> None:
        calls = [self._waiting.popleft()]
        count = len(calls[0][0])
        while self._waiting and count + len(self._waiting[0][0]) <= self._most:
            calls.append(self._waiting.popleft())
            count += len(calls[-1][0])
        started = time.perf_counter()
        try:
            output = self._look([picture for pictures, _ in calls for picture in pictures])
        except Exception as error:
            for _, answer in calls:
                answer.set_exception(error)
            return
        seconds, first = (time.perf_counter() - started) / count, 0
        for pictures, answer in calls:
            answer.set_result((part_of(output, first, len(pictures)), seconds * len(pictures)))
            first += len(pictures)


def part_of(output: EncoderOutput, first: int, count: int) -> EncoderOutput:
    """Return the output for the `count` pictures from index `first` on."""
    span = slice(first, first + count)
    return EncoderOutput(output.embedding[span], output.appearance[span], output.tags[span])


def cpu_filters(filters: Mapping[str, Filter]) -> list[Filter]:
    """Return the filters that need neither a GPU nor the embedding, in the recipe's order."""
    return [
        clip_filter
        for clip_filter in filters.values()
        if not uses_gpu(clip_filter) and Track.EMBEDDING not in clip_filter.needs
    ]
