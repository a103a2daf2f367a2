"""Queries and changes that the page requests: description, clips, distributions, searches and manual decisions."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters import filter_of
from filters.base import why_null
from pipeline.config.recipe import from_dict
from pipeline.dataset.finish import read_whole
from pipeline.explore.catalog import SIMILARITY, Catalog, ExpressionError, Query
from pipeline.explore.media import NEEDED, Media
from pipeline.explore.pictures import Pictures
from pipeline.explore.vectors import SearchError, Vectors
from pipeline.report.histogram import histogram, number
from pipeline.report.page import funnel
from pipeline.sources.names import printable
from pipeline.state.fingerprints import embed_fingerprint
from pipeline.storage.store import Store
from pipeline.tables.decisions import DecisionLog
from pipeline.tables.fragments import CLIPS, fingerprint, floats

CARD = (*NEEDED, "keep", "rejected_by", "caption", "fps", "bucket", "split")  # columns needed for a clip's card
TEXTS = ("caption", "caption_short", "caption_dense", "caption_json", "caption_error", "caption_by", "metadata")
MOST_BARS = 40  # largest number of labels in a distribution
RECHECK_SECONDS = 2.0  # interval of checks whether the dataset was rebuilt
SEARCHES = 8  # searches whose similarities are cached in memory, 4 bytes per clip each
UPLOADS = 16  # uploaded pictures kept in memory
LONGEST_CAPTION = 20_000  # largest number of characters


class UnknownClip(KeyError):
    """A clip_id that the dataset does not have."""


class Explorer:
    """A dataset that is open for a session. Safe for use from several threads.

    `reference` are (h, w, 3) uint8 RGB pictures to compare clips with. Raises DatasetError if the dataset is missing or
    unfinished.
    """

    def __init__(self, store: Store, reference: Sequence[np.ndarray] = ()) -> None:
        self.store, self._reference = store, reference
        self._log = DecisionLog(store)
        self._uploads: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._open()

    def _open(self) -> None:
        """Open the current state of the dataset."""
        self._stamp, self._checked = self.store.info("dataset.json"), time.monotonic()
        self.info = read_whole(self.store)
        self.recipe = from_dict(self.info.get("recipe", {}))
        self._stack.close()
        near = self._stack.enter_context(self.store.fetched("tables/clips"))
        self._catalog = Catalog(near, self.info)
        version = fingerprint(self.info.get("tables"), self.info.get("rows"), self.recipe.encoder.name)
        embedded = self.info["passes"].get("embed", {}).get("fingerprint") or embed_fingerprint(self.recipe)
        self._vectors = Vectors(self.store, self._catalog, self.recipe, version, embedded)
        self._stack.callback(self._vectors.close)
        self.pictures, self.media = Pictures(self.store, self._catalog), Media(self.store, self.recipe)
        self._stack.callback(self.media.close)
        self._keep = pc.fill_null(self._catalog.column("keep"), False).to_numpy()
        self._seconds = floats(self._catalog.column("end")) - floats(self._catalog.column("start"))
        self._similarities = functools.lru_cache(SEARCHES)(self._similarity)

    def close(self) -> None:
        self._stack.close()

    def describe(self) -> dict[str, Any]:
        """Return name, totals, columns and capabilities of the dataset, and the decisions whose clip has vanished."""
        decisions = self._refreshed()
        active = [d for d in decisions.values() if d["decision"] or d["caption"] is not None]
        rows = self._catalog.rows_of([decision["clip_id"] for decision in active])
        vanished = [_plain(decision) for decision, row in zip(active, rows, strict=True) if row < 0]
        return {
            "name": PurePosixPath(self.store.uri.partition("?")[0]).name,
            "recipe": self.recipe.name,
            "clips": len(self._catalog),
            "kept": int(self._keep.sum()),
            "columns": [self._describe_column(field) for field in self._catalog.schema],
            "text_search": bool(self.store.list("state/embed", ".parquet")),
            "picture_search": self._catalog.has_embeddings,
            "reference": len(self._reference),
            "vanished": vanished[:MOST_BARS],
        }

    def _describe_column(self, field: pa.Field) -> dict[str, Any]:
        bounds = self.recipe.select.thresholds.get(field.name)
        limits = {} if bounds is None else {"min": bounds.min, "max": bounds.max}
        return {"name": field.name, "type": _type_name(field.type), "score": self._is_score(field), **limits}

    def clips(self, query: Query, offset: int, limit: int) -> dict[str, Any]:
        """Return a page of a query's clips, with totals of the whole result. Raises ExpressionError or SearchError."""
        decisions = self._refreshed()
        query = self._with_similarity(query)
        rows = self._catalog.rows(query)
        page = rows[offset : offset + limit]
        extra = [query.sort] if query.sort in self._catalog.schema.names else []
        stored = self._catalog.read(page, [*dict.fromkeys((*CARD, *extra))])
        return {
            "total": len(rows),
            "kept": int(self._keep[rows].sum()),
            "hours": float(self._seconds[rows].sum()) / 3600,
            "clips": [self._card(row, clip, decisions, query) for row, clip in zip(page, stored, strict=True)],
        }

    def clip(self, clip_id: str) -> dict[str, Any]:
        """Return a clip's card and scores. Raises UnknownClip."""
        decisions = self._refreshed()
        row = self.row(clip_id)
        stored: dict[str, Any] = {**dict.fromkeys(CARD), **self._catalog.read([row])[0]}
        names = [field.name for field in self._catalog.schema if self._is_score(field)]
        numbers = {name: float(stored[name]) for name in names if _is_number(stored[name])}
        scores = []
        for name in names:
            value, bounds = stored[name], self.recipe.select.thresholds.get(name)
            if value is None and bounds is None:
                continue
            text = number(numbers[name]) if name in numbers else value
            if isinstance(value, list):
                text = ", ".join(number(item) if _is_number(item) else str(item) for item in value)
            why = stored.get(why_null(filter_of(name)))
            scores.append(
                {
                    "name": name,
                    "text": str(text) if value is not None else f"no score: {why or 'not computed'}",
                    "fails": name in (stored["rejected_by"] or ()),
                    "bounds": {} if bounds is None else {"min": bounds.min, "max": bounds.max},
                }
            )
        scores.sort(key=lambda score: (not score["fails"], not score["bounds"]))
        return {**self._card(row, stored, decisions, Query()), "scores": scores}

    def media_row(self, clip_id: str) -> dict[str, Any]:
        """Return the columns of a clip that `Media` reads. Raises UnknownClip."""
        return self._catalog.read([self.row(clip_id)], NEEDED)[0]

    def row(self, clip_id: str) -> int:
        """Return the row number of a clip. Raises UnknownClip."""
        (row,) = self._catalog.rows_of([clip_id])
        if row < 0:
            raise UnknownClip(clip_id)
        return row

    def distribution(self, column: str, query: Query) -> dict[str, Any]:
        """Return the distribution of a column over a query's clips. Raises ExpressionError or SearchError.

        It is a histogram for numbers, counts for labels, and the funnel of reasons for `rejected_by`.
        """
        self._refreshed()
        query = self._with_similarity(query)
        if column != SIMILARITY and column not in self._catalog.columns:
            raise ExpressionError(f"no column {column!r}")
        if column == "rejected_by":
            groups = self._catalog.values(query, [column], group=True)
            reasons = {tuple(row[column] or ()): row["count"] for row in groups.to_pylist()}
            steps = [{"label": s.reason, "removed": s.removed, "remaining": s.remaining} for s in funnel(reasons)]
            return {"type": "funnel", "total": sum(reasons.values()), "steps": steps}
        data_type = pa.float32() if column == SIMILARITY else self._type_of(column)
        if _type_name(data_type) == "number":
            table = self._catalog.values(query, [column, "keep"])
            keep = pc.fill_null(table["keep"], False).to_numpy()
            bounds = self.recipe.select.thresholds.get(column)
            limits = None if bounds is None else {"min": bounds.min, "max": bounds.max}
            chart = histogram(column, floats(table[column]), keep, limits)
            lines = [{"side": line.side, "value": line.value, "x": line.x} for line in chart.lines]
            bars = {"kept": chart.kept, "rejected": chart.rejected, "lines": lines, "missing": chart.missing}
            return _plain({"type": "histogram", "low": chart.low, "high": chart.high, "median": chart.median, **bars})
        counts: dict[str, int] = {}
        for row in self._catalog.values(query, [column], group=True).to_pylist():
            for label in row[column] if isinstance(row[column], list) else [row[column]]:
                counts[str(label)] = counts.get(str(label), 0) + row["count"]
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return {"type": "labels", "bars": ordered[:MOST_BARS], "values": len(ordered)}

    def decide(self, clip_ids: Sequence[str], decision: str | None) -> list[dict[str, Any]]:
        """Keep or reject clips, or remove their decisions (None); return their cards. Raises UnknownClip or OSError."""
        if decision not in ("keep", "reject", None):
            raise ExpressionError(f"decision: expected keep, reject or null, got {decision!r}")
        return self._decide(clip_ids, {"decision": decision})

    def edit_caption(self, clip_id: str, caption: str | None) -> list[dict[str, Any]]:
        """Set the caption of a clip, or restore the captioner's; return its card. Raises UnknownClip or OSError."""
        text = " ".join((caption or "").split())
        if len(text) > LONGEST_CAPTION:
            raise ExpressionError(f"caption: longer than {LONGEST_CAPTION:,} characters")
        return self._decide([clip_id], {"caption": text or None})

    def _decide(self, clip_ids: Sequence[str], change: Mapping[str, Any]) -> list[dict[str, Any]]:
        decisions, new = self._refreshed(), []
        rows = [self.row(clip_id) for clip_id in clip_ids]
        stored = self._catalog.read(rows, CARD)
        for clip in stored:
            base = {"base_reasons": clip.get("rejected_by"), "base_caption": clip.get("caption")}
            before = decisions.get(clip["clip_id"]) or {"decision": None, "caption": None, **base}
            where = {name: clip[name] for name in ("clip_id", "source_uri", "start", "end")}
            new.append({**before, **where, **change})
        self._log.add(new)
        decisions = self._refreshed()
        return [self._card(row, clip, decisions, Query()) for row, clip in zip(rows, stored, strict=True)]

    def _refreshed(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the current decisions by clip_id. Reopens the dataset first if it was rebuilt."""
        with self._lock:
            if time.monotonic() - self._checked > RECHECK_SECONDS:
                self._checked = time.monotonic()
                if self.store.info("dataset.json") != self._stamp:
                    self._open()
        decisions, version = self._log.current()
        self._catalog.decide(decisions, version)
        return decisions

    def prepare_search(self) -> None:
        """Begin what the first text search needs and what takes seconds. Raises SearchError."""
        self._vectors.prepare()

    def upload(self, picture: np.ndarray) -> str:
        """Store a picture, (h, w, 3) uint8 RGB, for searches; return its name in `Query.search`."""
        name = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
        with self._lock:
            self._uploads[name] = picture
            while len(self._uploads) > UPLOADS:
                self._uploads.popitem(last=False)
        return f"picture:{name}"

    def _with_similarity(self, query: Query) -> Query:
        return replace(query, similarity=self._similarities(query.search)) if query.search else query

    def _similarity(self, search: str) -> np.ndarray:
        """Return the similarity of every clip to a search: text:WORDS, clip:ID, picture:NAME or reference."""
        mode, _, target = search.partition(":")
        if mode == "text" and target.strip():
            return self._vectors.of_text(target.strip())
        if mode == "clip":
            return self._vectors.of_clip(self.row(target))
        if mode == "picture" and target in self._uploads:
            return self._vectors.of_pictures([self._uploads[target]])
        if mode == "reference" and len(self._reference):
            return self._vectors.of_pictures(self._reference)
        raise SearchError("the search is empty, or its picture is no longer stored: search again")

    def _card(
        self, row: int, clip: Mapping[str, Any], decisions: Mapping[str, Mapping[str, Any]], query: Query
    ) -> dict[str, Any]:
        decided = decisions.get(clip["clip_id"]) or {}
        edited = decided.get("caption")
        similarity = None if query.similarity is None else float(query.similarity[row])
        card = {
            "id": clip["clip_id"],
            "keep": bool(clip["keep"]),
            "reasons": clip["rejected_by"] or [],
            "decision": decided.get("decision"),
            "caption": edited if edited is not None else clip["caption"],
            "edited": edited is not None,
            "source": printable(clip["source_uri"]),
            "title": printable(clip["source_uri"].rstrip("/").rsplit("/", 1)[-1]),
            **{name: clip[name] for name in ("start", "end", "frames", "width", "height", "fps", "bucket", "split")},
            "packed": bool(clip["shard"]),
            "similarity": similarity,
            "value": clip.get(query.sort) if query.sort else None,
        }
        return {name: _plain(value) for name, value in card.items()}

    def _is_score(self, field: pa.Field) -> bool:
        described = {*CLIPS.names, *CARD, *TEXTS, "duplicates_of"}
        return field.name not in described and not field.name.endswith(why_null(""))

    def _type_of(self, column: str) -> pa.DataType:
        return self._catalog.schema.field(column).type if column in self._catalog.schema.names else pa.string()


def _type_name(data_type: pa.DataType) -> str:
    if pa.types.is_boolean(data_type):
        return "yes or no"
    if pa.types.is_integer(data_type) or pa.types.is_floating(data_type):
        return "number"
    return "list" if pa.types.is_list(data_type) else "text"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """Return `value` converted to JSON types; numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
