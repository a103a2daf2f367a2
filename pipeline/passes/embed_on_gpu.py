"""The embed pass where the encoder runs on a GPU: two stages, so that a CPU filter never holds a GPU.

The first scores clips by the filters that need no GPU, on as many cores as there are; its rows go to the second, which
embeds the frames of many clips at a time while it decodes the next ones, and runs the filters that need the embedding.
The thresholds of the first stage are applied before those of the second, whatever the recipe's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from filters.base import Filter, Track, uses_gpu
from filters.encoders.base import EncoderOutput, load_encoder
from pipeline.config.recipe import Recipe
from pipeline.media.faults import is_machine_fault
from pipeline.passes.embed_worker import (
    ClipState,
    Costs,
    Frames,
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

BATCH = 32  # clips that are encoded at once: of eight frames each, 256 pictures


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
        one_thread()
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
    """Scored clips -> a fragment of the embed pass, with embeddings and the scores that need them."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        one_thread()
        self._store, self._recipe = store, recipe
        self._encoder = load_encoder(recipe.encoder.name, recipe.encoder.model, recipe.encoder.pretrained)
        filters = fingerprints.filters_of(recipe, "embed", self._encoder)
        on_cpu = cpu_filters(filters)
        self._filters = [clip_filter for clip_filter in filters.values() if clip_filter not in on_cpu]

    def __call__(self, unit: EncodeUnit) -> UnitResult:
        return stop_on_fault(self._unit, unit)

    def _unit(self, unit: EncodeUnit) -> UnitResult:
        costs, errors = Costs(unit.seconds, unit.filters), list(unit.errors)
        columns = {out["clip_id"]: out for out in unit.columns}
        rows = [row for row in unit.rows if row["clip_id"] in unit.admitted]
        for chunk, frames in ahead(chunks(self._store, unit.clips.unit, rows, BATCH)):
            states = [ClipState(row, frames[row["clip_id"]], columns[row["clip_id"]]) for row in chunk]
            with costs.measure("encoder", len(states)):
                self._encode(states, errors)
            apply_filters(states, self._filters, self._recipe, costs, errors)
        return commit(self._store, self._recipe, unit.clips, unit.columns, costs, errors)

    def _encode(self, states: Sequence[ClipState], errors: list[LoggedError]) -> None:
        """Embed the frames of all clips in one call; clip by clip where that fails, to know which one is at fault."""
        pictures = [picture for state in states for picture in state.frames.pictures]
        if not pictures:
            return
        try:
            embedding, appearance, tags = self._encoder.look(pictures)
        except Exception as error:
            if isinstance(error, OSError) or is_machine_fault(error):
                raise
            for state in states:
                encode_clip(state, self._encoder, errors)
            return
        first = 0
        for state in states:
            if count := len(state.frames.pictures):
                span = slice(first, first + count)
                state.take(EncoderOutput(embedding[span], appearance[span], tags[span]))
                first += count


def cpu_filters(filters: Mapping[str, Filter]) -> list[Filter]:
    """Those that need neither a GPU nor the embedding, in the recipe's order."""
    return [
        clip_filter
        for clip_filter in filters.values()
        if not uses_gpu(clip_filter) and Track.EMBEDDING not in clip_filter.needs
    ]


Batch = tuple[list[dict[str, Any]], dict[str, Frames]]


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """`batches`, the next of which is read while one is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, batches, None)
        while batch := following.result():
            following = thread.submit(next, batches, None)
            yield batch
