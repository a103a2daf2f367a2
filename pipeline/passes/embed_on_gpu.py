"""The embed pass where the encoder runs on a GPU: two stages, so that a CPU filter never holds a GPU.

The first scores clips by the filters that need no GPU, on as many cores as there are; its rows go to the second, which
takes several units at once: while some wait for their frames to be read and decoded, the frames of others are embedded
together. Then it runs the filters that need the embedding. The thresholds of the first stage are applied before those
of the second, whatever the recipe's order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
    ClipState,
    Costs,
    apply_filters,
    chunks,
    commit,
    encode_clip,
    one_thread,
    stop_on_fault,
    wanted_rows,
)
from pipeline.state import fingerprints
from pipeline.state.error_log import LoggedError
from pipeline.state.units import Handoff, UnitClips, UnitResult
from pipeline.storage.store import Store

BATCH = 32  # clips of a unit whose frames are in memory at once
PICTURES = 512  # that the encoder gets at once, of several units
AT_ONCE = 8  # units in the second stage at the same time
THREADS = 4  # that decode the frames of a unit


@dataclass(frozen=True)
class EncodeUnit:
    """Clips that the first stage has scored: rows of the scan, and columns so far of the embed pass; of them the
    `admitted` ones are encoded."""

    clips: UnitClips
    rows: tuple[dict[str, Any], ...]
    columns: tuple[dict[str, Any], ...]
    admitted: frozenset[str]  # clip ids
    seconds: float
    filters: Mapping[str, Mapping[str, float]]
    errors: tuple[LoggedError, ...]


class ScoreFrames:
    """Clips of the scan -> their scores by the filters that need neither a GPU nor the embedding."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        cv2.setNumThreads(1)  # there is a worker a core
        self._store, self._recipe = store, recipe
        self._filters = cpu_filters(fingerprints.filters_of(recipe, "embed"))

    def __call__(self, unit: UnitClips) -> Handoff | UnitResult:
        return stop_on_fault(self._unit, unit)

    def _unit(self, unit: UnitClips) -> Handoff:
        costs, errors, admitted = Costs(), list[LoggedError](), set[str]()
        rows, columns = [], []
        for chunk, frames in chunks(self._store, unit.unit, wanted_rows(self._store, self._recipe, unit)):
            states = [ClipState(row, frames[row["clip_id"]]) for row in chunk]
            remaining = apply_filters(states, self._filters, self._recipe, costs, errors)
            admitted |= {state.row["clip_id"] for state in remaining}
            rows += chunk
            columns += [state.out for state in states]
        scored = (tuple(rows), tuple(columns), frozenset(admitted), costs.total, costs.filters, tuple(errors))
        return Handoff(EncodeUnit(unit, *scored))


class EncodeClips:
    """Scored clips -> a fragment of the embed pass, with embeddings and the scores that need them. Thread-safe."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        one_thread()
        self._store, self._recipe = store, recipe
        self._encoder = load_encoder(recipe.encoder.name, recipe.encoder.model, recipe.encoder.pretrained)
        self._look = JoinedCalls(self._encoder.look, PICTURES)
        filters = fingerprints.filters_of(recipe, "embed", self._encoder)
        on_cpu = cpu_filters(filters)
        self._filters = [clip_filter for clip_filter in filters.values() if clip_filter not in on_cpu]
        self._filtering = threading.Lock()

    def __call__(self, unit: EncodeUnit) -> UnitResult:
        return stop_on_fault(self._unit, unit)

    def _unit(self, unit: EncodeUnit) -> UnitResult:
        costs, errors = Costs(unit.seconds, unit.filters), list(unit.errors)
        columns = {out["clip_id"]: out for out in unit.columns}
        rows = [row for row in unit.rows if row["clip_id"] in unit.admitted]
        for chunk, frames in chunks(self._store, unit.clips.unit, rows, BATCH, THREADS):
            states = [ClipState(row, frames[row["clip_id"]], columns[row["clip_id"]]) for row in chunk]
            costs.took("encoder", self._encode(states, errors), len(states))
            with self._filtering:
                apply_filters(states, self._filters, self._recipe, costs, errors)
        return commit(self._store, self._recipe, unit.clips, unit.columns, costs, errors)

    def _encode(self, states: Sequence[ClipState], errors: list[LoggedError]) -> float:
        """Embed the frames of all clips in one call; clip by clip where that fails, to know which one is at fault.
        Return the encoder's seconds."""
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
                    encode_clip(state, self._encoder, errors)
                return time.perf_counter() - started
        first = 0
        for state in states:
            if count := len(state.frames.pictures):
                state.take(part_of(output, first, count))
                first += count
        return seconds


class JoinedCalls:
    """An encoder's `look` for several threads: the pictures of all that wait go through it together, up to `most` of
    them unless one thread has more."""

    def __init__(self, look: Callable[[Sequence[np.ndarray]], EncoderOutput], most: int) -> None:
        self._look, self._most = look, most
        self._waiting = deque[tuple[Sequence[np.ndarray], Future[tuple[EncoderOutput, float]]]]()
        self.turn = threading.Lock()  # of the thread that calls the encoder

    def __call__(self, pictures: Sequence[np.ndarray]) -> tuple[EncoderOutput, float]:
        """Return the output for `pictures`, and the seconds that it took, by their share of the call. Raises what the
        encoder raises for them or for those beside them."""
        answer = Future[tuple[EncoderOutput, float]]()
        self._waiting.append((pictures, answer))
        while not answer.done():
            with self.turn:
                if not answer.done():
                    self._answer_some()
        return answer.result()

    def _answer_some(self) -> None:
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
    """The output for `count` pictures, the first of which has the index `first`."""
    span = slice(first, first + count)
    return EncoderOutput(output.embedding[span], output.appearance[span], output.tags[span])


def cpu_filters(filters: Mapping[str, Filter]) -> list[Filter]:
    """Those that need neither a GPU nor the embedding, in the recipe's order."""
    return [
        clip_filter
        for clip_filter in filters.values()
        if not uses_gpu(clip_filter) and Track.EMBEDDING not in clip_filter.needs
    ]
