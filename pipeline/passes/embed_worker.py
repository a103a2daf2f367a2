"""The embed pass: sampled frames of the clips that are still in -> embeddings, hashes and the dear scores.

A clip leaves as soon as a threshold that can be checked is not met, so a dear filter sees only what the cheap ones
before it let through (`score_all` sends every clip through everything).
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filters.base import ClipView, Track, score
from filters.encoders.base import load_encoder
from pipeline.config.recipe import Bounds, Recipe
from pipeline.selection.duplicates import frame_hashes
from pipeline.state import fingerprints
from pipeline.state.units import UnitClips, UnitResult
from pipeline.storage.store import Store
from pipeline.tables.fragments import Fragment, fingerprint, frames_of, read_frames, table_from, write_fragment

CHUNK = 16  # clips whose frames are in memory at once


class Embed:
    """A scan fragment -> a fragment of embeddings and scores."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        one_thread()
        self._store, self._recipe = store, recipe
        self._encoder = load_encoder(recipe.encoder.name, recipe.encoder.model, recipe.encoder.pretrained)
        self._filters = fingerprints.filters_of(recipe, "embed", self._encoder)
        self._bounds = fingerprints.scan_bounds(recipe)
        self._schema = fingerprints.embed_schema(recipe)
        self._fingerprint = fingerprints.embed_fingerprint(recipe)

    def __call__(self, message: tuple[UnitResult | None, UnitClips] | UnitClips) -> list[UnitResult]:
        """What the scan said of the unit, if it was scanned just now, and what there is to say here."""
        scanned, unit = (None, message) if isinstance(message, UnitClips) else message
        rows_found = rows_in(self._store, unit).to_pylist()
        wanted = [row for row in rows_found if fingerprints.passes_scan_thresholds(row, self._bounds)]
        costs = Costs()
        rows = []
        for chunk, frames in chunks(self._store, unit.unit, wanted):
            rows += self._score(chunk, frames, costs)
        done = UnitResult(
            "embed", len(rows), counts={"clips": len(rows)}, seconds={"total": costs.total}, filters=costs.filters()
        )
        if rows:
            name = fingerprint(self._fingerprint, unit.unit, [row["clip_id"] for row in rows])
            table = table_from(rows, self._schema).sort_by("clip_id")
            write_fragment(self._store, f"state/embed/{name}.parquet", table, {"fingerprint": self._fingerprint})
        return [scanned, done] if scanned else [done]

    def _score(
        self, rows: Sequence[dict[str, Any]], frames: Mapping[str, Frames], costs: Costs
    ) -> list[dict[str, Any]]:
        """The embed columns of `rows`. The encoder runs when the first filter needs it, at the latest at the end."""
        states = [_State(row, frames[row["clip_id"]]) for row in rows]
        left = states
        looked = False
        for name, made in [*self._filters.items(), ("", None)]:
            if not looked and (made is None or Track.EMBEDDING in made.needs or name == "tags"):
                with costs.measure("encoder", len(left)):
                    for state in left:
                        state.look(self._encoder)
                looked = True
            if made is None:
                break
            with costs.measure(name, len(left)):
                answers = score(made, [state.view() for state in left])
            for state, answer in zip(left, answers, strict=True):
                state.take(name, answer)
            before = len(left)
            if not self._recipe.score_all:
                bounds = fingerprints.thresholds_of(self._recipe, made.columns)
                left = [state for state in left if admitted(state.out, bounds)]
            costs.rejected(name, before - len(left))
        return [state.out for state in states]


@dataclass(frozen=True)
class Frames:
    """The sampled frames of one clip: (h, w, 3) uint8 RGB each, and seconds in the source."""

    pictures: list[np.ndarray]
    times: np.ndarray


class Costs:
    """Seconds, clips and rejections by filter."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._filters: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    @contextlib.contextmanager
    def measure(self, name: str, clips: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._filters[name]["seconds"] += time.perf_counter() - began
        self._filters[name]["clips"] += clips

    def rejected(self, name: str, clips: int) -> None:
        self._filters[name]["rejected"] += clips

    @property
    def total(self) -> float:
        return time.perf_counter() - self._started

    def filters(self) -> dict[str, dict[str, float]]:
        return {name: dict(values) for name, values in self._filters.items()}


@dataclass
class _State:
    """One clip on its way through the filters."""

    row: dict[str, Any]
    frames: Frames
    out: dict[str, Any] = field(default_factory=dict)
    tags: Sequence[Sequence[tuple[str, float]]] = ()
    embedding: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    appearance: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __post_init__(self) -> None:
        ids = {name: self.row[name] for name in ("clip_id", "source_id")}
        self.out = {**ids, "scored": [], "phash": frame_hashes(self.frames.pictures)}

    def look(self, encoder: Any) -> None:
        """One call a clip, so that what comes out does not depend on which clips share a unit."""
        if not self.frames.pictures:
            return
        looked = encoder.look(self.frames.pictures)
        self.embedding, self.appearance, self.tags = looked
        mean = self.appearance.mean(axis=0)
        self.out["embedding"] = (mean / max(float(np.linalg.norm(mean)), 1e-9)).astype(np.float32)
        self.out["frame_embeddings"] = self.embedding.astype(np.float16).tobytes()

    def view(self) -> ClipView:
        tracks = {"tags": self.tags, "embedding": self.embedding, "appearance": self.appearance}
        return clip_view(self.row, self.frames, {**self.row, **self.out}, **tracks)

    def take(self, name: str, answer: Mapping[str, Any]) -> None:
        self.out.update(answer)
        self.out["scored"].append(name)


def clip_view(row: Mapping[str, Any], frames: Frames, scores: Mapping[str, Any], **tracks: Any) -> ClipView:
    """A ClipView of sampled frames, for the passes after the scan."""
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
    """The scan's rows of `clips`."""
    fragment = Fragment(clips.fragment, {})
    if clips.clip_ids is None:
        return fragment.rows(store)
    rows = fragment.rows(store, span=clips.span)
    return rows.filter(pc.is_in(rows["clip_id"], pa.array(clips.clip_ids)))


def chunks(
    store: Store, unit: str, rows: Sequence[dict[str, Any]], size: int = CHUNK
) -> Iterator[tuple[list[dict[str, Any]], dict[str, Frames]]]:
    """`rows` of a unit of the scan a few at a time, with their sampled frames read and decoded."""
    if not rows:
        return
    with store.open(frames_of(unit)) as file:
        stored = pq.ParquetFile(file)
        for at in range(0, len(rows), size):
            chunk = list(rows[at : at + size])
            jpegs: dict[str, list[dict[str, Any]]] = {row["clip_id"]: [] for row in chunk}
            for frame in read_frames(stored, jpegs).to_pylist():
                jpegs[frame["clip_id"]].append(frame)
            yield chunk, {clip: _decode(frames) for clip, frames in jpegs.items()}


def _decode(stored: Sequence[Mapping[str, Any]]) -> Frames:
    ordered = sorted(stored, key=lambda frame: frame["index"])
    pictures = [_rgb(frame["jpeg"]) for frame in ordered]
    return Frames(pictures, np.array([frame["time"] for frame in ordered], dtype=np.float64))


def _rgb(jpeg: bytes) -> np.ndarray:
    """(h, w, 3) uint8."""
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None, "a sampled frame is not a JPEG"
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def admitted(scores: Mapping[str, Any], bounds: Mapping[str, Bounds]) -> bool:
    return all(bound.admit(scores.get(column)) for column, bound in bounds.items())


def one_thread() -> None:
    """One thread a worker: there is a worker a core, and sums come out in one order."""
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
