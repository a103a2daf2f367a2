"""The worker of the pass `embed`: compute embeddings, hashes and the expensive scores from sampled frames.

Filters run one after the other. A clip that fails a threshold skips the remaining filters, unless `score_all` is set.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filters.base import ClipView, Filter, Track, score
from filters.encoders.base import EncoderOutput, TextVideoEncoder, load_encoder
from pipeline.config.recipe import Bounds, Recipe
from pipeline.media.faults import is_machine_fault
from pipeline.selection.duplicates import frame_hashes
from pipeline.state import fingerprints
from pipeline.state.error_log import LoggedError, logged_error, unforeseen, write_errors
from pipeline.state.units import UnitClips, UnitResult
from pipeline.storage.store import Store
from pipeline.tables.fragments import Fragment, fingerprint, frames_of, read_sampled_frames, table_from, write_fragment

CHUNK = 16  # clips whose frames are in memory at once
DECODING_THREADS = 4  # of a worker that processes several units concurrently


class Embed:
    """Embeds and scores the clips of a unit on one core and writes a fragment. The encoder runs before the first filter
    that needs the embedding, one clip at a time. Clips in `by_hand` get all scores."""

    def __init__(self, store: Store, recipe: Recipe, by_hand: Collection[str] = ()) -> None:
        limit_threads()
        self._store, self._recipe, self._by_hand = store, recipe, by_hand
        self._encoder = load_encoder(recipe.encoder.name, recipe.encoder.model, recipe.encoder.pretrained)
        filters = list(fingerprints.filters_of(recipe, "embed", self._encoder).values())
        first = next((i for i, clip_filter in enumerate(filters) if Track.EMBEDDING in clip_filter.needs), len(filters))
        self._before, self._after = filters[:first], filters[first:]

    def __call__(self, unit: UnitClips) -> UnitResult:
        costs, errors = Costs(), list[LoggedError]()
        rows = []
        wanted = wanted_rows(self._store, self._recipe, unit, self._by_hand)
        for chunk, frames in chunks(self._store, unit.unit, wanted):
            states = [ClipState(row, frames[row["clip_id"]]) for row in chunk]
            admitted = apply_filters(states, self._before, self._recipe, self._by_hand, costs, errors)
            with costs.measure("encoder", len(admitted)):
                for state in admitted:
                    embed_clip(state, self._encoder, errors)
            apply_filters(admitted, self._after, self._recipe, self._by_hand, costs, errors)
            rows += [state.out for state in states]
        return commit(self._store, self._recipe, unit, rows, costs, errors)


def wanted_rows(store: Store, recipe: Recipe, unit: UnitClips, by_hand: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return the scan's rows of the clips of `unit` that pass the scan's thresholds or are in `by_hand`."""
    bounds = fingerprints.scan_bounds(recipe)
    return [
        row
        for row in rows_in(store, unit).to_pylist()
        if fingerprints.passes_scan_thresholds(row, bounds) or (row["clip_id"] in by_hand and row["dropped"] != "error")
    ]


def apply_filters(
    states: list[ClipState],
    filters: Sequence[Filter],
    recipe: Recipe,
    by_hand: Collection[str],
    costs: Costs,
    errors: list[LoggedError],
) -> list[ClipState]:
    """Score clips filter by filter; return the clips that no threshold rejected. A rejected clip skips later filters,
    unless it is in `by_hand`, the ids of clips that a person keeps.

    A score whose filter raises an exception is null; the exception is appended to `errors`.
    """
    for clip_filter in filters:
        with costs.measure(clip_filter.name, len(states)):
            sources = {state.row["clip_id"]: state.row["source_uri"] for state in states}

            def on_error(step: str, clip: ClipView, error: Exception, uris: Mapping[str, str] = sources) -> None:
                errors.append(logged_error(uris[clip.clip_id], error, clip.clip_id, step))

            answers = score(clip_filter, [state.view() for state in states], on_error)
        for state, answer in zip(states, answers, strict=True):
            state.out.update(answer)
            state.out["scored"].append(clip_filter.name)
        before = len(states)
        if not recipe.score_all:
            bounds = fingerprints.thresholds_of(recipe, clip_filter.columns)
            states = [s for s in states if s.row["clip_id"] in by_hand or admitted(s.out, bounds)]
        costs.rejected(clip_filter.name, before - len(states))
    return states


def embed_clip(state: ClipState, encoder: TextVideoEncoder, errors: list[LoggedError]) -> None:
    """Embed one clip's frames, in one call per clip, so that the result does not depend on the unit's other clips."""
    if not state.frames.pictures:
        return
    try:
        state.take(encoder.look(state.frames.pictures))
    except Exception as error:
        if isinstance(error, OSError) or is_machine_fault(error):
            raise
        errors.append(logged_error(state.row["source_uri"], error, state.row["clip_id"], "encoder"))


def commit(
    store: Store,
    recipe: Recipe,
    unit: UnitClips,
    rows: Sequence[Mapping[str, Any]],
    costs: Costs,
    errors: Sequence[LoggedError],
) -> UnitResult:
    """Write the rows of a unit's clips as a fragment of the embed pass, if there are any."""
    name = ""
    if rows:
        pass_fingerprint = fingerprints.embed_fingerprint(recipe)
        key = fingerprint(pass_fingerprint, unit.unit, [row["clip_id"] for row in rows])
        name = f"state/embed/{key}.parquet"
        table = table_from(rows, fingerprints.embed_schema(recipe)).sort_by("clip_id")
        write_errors(store, "embed", key, errors)
        write_fragment(store, name, table, {"fingerprint": pass_fingerprint})
    return UnitResult(
        "embed",
        len(rows),
        counts={"clips": len(rows)},
        seconds={"total": costs.total},
        filters=costs.filters,
        fragment=name,
        unforeseen=unforeseen(errors),
    )


@dataclass(frozen=True)
class Frames:
    """The sampled frames of a clip: (h, w, 3) uint8 RGB each, and their times in seconds of the source."""

    pictures: list[np.ndarray]
    times: np.ndarray


class Costs:
    """Seconds, clips and rejections by filter, added to the `seconds` and sums of an earlier stage."""

    def __init__(self, seconds: float = 0.0, filters: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self._started = time.perf_counter() - seconds
        self.filters: dict[str, dict[str, float]] = {name: dict(sums) for name, sums in (filters or {}).items()}

    @contextlib.contextmanager
    def measure(self, name: str, clips: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.took(name, time.perf_counter() - began, clips)

    def took(self, name: str, seconds: float, clips: int) -> None:
        self._add(name, "seconds", seconds)
        self._add(name, "clips", clips)

    def rejected(self, name: str, clips: int) -> None:
        self._add(name, "rejected", clips)

    @property
    def total(self) -> float:
        return time.perf_counter() - self._started

    def _add(self, name: str, quantity: str, value: float) -> None:
        sums = self.filters.setdefault(name, {})
        sums[quantity] = sums.get(quantity, 0) + value


@dataclass
class ClipState:
    """State of a clip between filters: its row of the scan, its frames, and its columns of the embed pass so far."""

    row: dict[str, Any]
    frames: Frames
    out: dict[str, Any] = field(default_factory=dict)
    tags: Sequence[Sequence[tuple[str, float]]] = ()
    embedding: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    appearance: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __post_init__(self) -> None:
        if not self.out:
            ids = {name: self.row[name] for name in ("clip_id", "source_id")}
            self.out = {**ids, "scored": [], "phash": frame_hashes(self.frames.pictures)}

    def take(self, output: EncoderOutput) -> None:
        embedding, appearance, tags = output
        mean = appearance.mean(axis=0)
        self.out["embedding"] = (mean / max(float(np.linalg.norm(mean)), 1e-9)).astype(np.float32)
        self.out["frame_embeddings"] = embedding.astype(np.float16).tobytes()
        self.embedding, self.appearance, self.tags = embedding, appearance, tags

    def view(self) -> ClipView:
        tracks = {"tags": self.tags, "embedding": self.embedding, "appearance": self.appearance}
        return clip_view(self.row, self.frames, {**self.row, **self.out}, **tracks)


def clip_view(row: Mapping[str, Any], frames: Frames, scores: Mapping[str, Any], **tracks: Any) -> ClipView:
    """Return a ClipView of sampled frames, for the passes after the scan."""
    return ClipView(
        clip_id=row["clip_id"],
        start=row["start"],
        end=row["end"],
        fps=row["fps"] or 0.0,
        width=row["width"],
        height=row["height"],
        frames=frames.pictures,
        frame_times=frames.times,
        scores=scores,
        **tracks,
    )


def rows_in(store: Store, clips: UnitClips) -> pa.Table:
    """Return the scan's rows of `clips`."""
    fragment = Fragment(clips.fragment, {})
    if clips.clip_ids is None:
        return fragment.rows(store)
    rows = fragment.rows(store, ids=clips.sources)
    return rows.filter(pc.is_in(rows["clip_id"], pa.array(clips.clip_ids)))


Batch = tuple[list[dict[str, Any]], dict[str, Frames]]


def chunks(
    store: Store, unit: str, rows: Sequence[dict[str, Any]], size: int = CHUNK, threads: int = 1
) -> Iterator[Batch]:
    """Yield `rows` of a scan unit in chunks of `size`, with their sampled frames by clip_id, decoded in `threads`."""
    if not rows:
        return
    with store.open(frames_of(unit)) as file, ThreadPoolExecutor(threads) as pool:
        stored = pq.ParquetFile(file)
        for first in range(0, len(rows), size):
            chunk = list(rows[first : first + size])
            jpegs: dict[str, list[dict[str, Any]]] = {row["clip_id"]: [] for row in chunk}
            for frame in read_sampled_frames(stored, jpegs).to_pylist():
                jpegs[frame["clip_id"]].append(frame)
            yield chunk, dict(zip(jpegs, pool.map(decode_frames, jpegs.values()), strict=True))


def decode_frames(stored: Sequence[Mapping[str, Any]]) -> Frames:
    ordered = sorted(stored, key=lambda frame: frame["index"])
    pictures = [_rgb(frame["jpeg"]) for frame in ordered]
    return Frames(pictures, np.array([frame["time"] for frame in ordered], dtype=np.float64))


def _rgb(jpeg: bytes) -> np.ndarray:
    """Decode a JPEG to (h, w, 3) uint8 RGB."""
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None, "a sampled frame is not a JPEG"
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def admitted(scores: Mapping[str, Any], bounds: Mapping[str, Bounds]) -> bool:
    return all(bound.admit(scores.get(column)) for column, bound in bounds.items())


def limit_threads() -> None:
    """Limit OpenCV and torch to one thread for the life of the process: there is one worker per core, and sums are
    computed in a fixed order."""
    import torch  # takes seconds to import

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
