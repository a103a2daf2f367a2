"""Decisions by hand: which clips a person keeps, rejects or writes another caption for.

They lie beside the tables of a dataset, in `decisions/`, and are an input of the next build. Every writer has a file of
its own, so that two of them lose nothing; of a clip in several files the latest row counts.
"""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage.store import Store
from pipeline.tables.fragments import fingerprint, replace_column, table_from, to_parquet

FOLDER = "decisions"
BY_HAND = "hand"  # in `rejected_by`: a clip rejected by a decision; in `caption_by`: an edited caption
REREAD_SECONDS = 2.0  # how old a writer's knowledge of other writers' files may be

DECISIONS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_uri", pa.string()),  # with start and end, the clip when it was decided: names one that has vanished
        ("start", pa.float64()),  # seconds of presentation time in the source
        ("end", pa.float64()),
        ("decision", pa.string()),  # keep, reject or null: as selection says
        ("caption", pa.string()),  # in place of the dataset's, or null
        ("base_reasons", pa.list_(pa.string())),  # `rejected_by` when it was decided
        ("base_caption", pa.string()),  # `caption` when it was decided
        ("time", pa.timestamp("us", "UTC")),
    ]
)


def read_decisions(store: Store) -> pa.Table:
    """Return the decisions on a dataset, one row of DECISIONS a clip, in order of clip_id; a decision that was undone
    is left out. Raises OSError or pa.ArrowInvalid for a file that cannot be read."""
    return _latest([_read(store, name) for name in store.list(FOLDER, ".parquet")])


def decisions_digest(decisions: pa.Table) -> str:
    """Return a fingerprint of what a build takes from `decisions`: not when or why they were made."""
    columns = (decisions[name].to_pylist() for name in ("clip_id", "decision", "caption"))
    return fingerprint(list(zip(*columns, strict=True)))


def with_decisions(clips: pa.Table, decisions: pa.Table) -> pa.Table:
    """Return `clips` with what selection reads of decisions: the column `decision`, the edited text in `caption`, and
    BY_HAND in `caption_by` where there is one. Without decisions, `clips` as it is."""
    if not decisions.num_rows:
        return clips
    at = pc.index_in(clips["clip_id"], decisions["clip_id"].combine_chunks())
    edited = decisions["caption"].take(at)
    clips = clips.append_column("decision", decisions["decision"].take(at))
    clips = clips.append_column("caption_by", pc.if_else(pc.is_valid(edited), BY_HAND, pa.scalar(None, pa.string())))
    return replace_column(clips, "caption", pc.coalesce(edited, clips["caption"].cast(pa.string())))


def with_edited_captions(rows: pa.Table, decisions: pa.Table) -> pa.Table:
    """Return `rows`, of all columns of a clip, with edited captions in the place of all texts of the captioner."""
    edited = decisions["caption"].take(pc.index_in(rows["clip_id"], decisions["clip_id"].combine_chunks()))
    is_edited = pc.is_valid(edited)
    if not pc.any(is_edited).as_py():
        return rows
    texts = {"caption": edited, "caption_dense": edited, "caption_by": pa.scalar(BY_HAND)}
    for name in ("caption", "caption_dense", "caption_by", "caption_short", "caption_json", "caption_error"):
        text = texts.get(name, pa.scalar(None, pa.string()))
        rows = replace_column(rows, name, pc.if_else(is_edited, text, rows[name]))
    if "caption_others" in rows.column_names:
        others = rows["caption_others"]
        none = pa.scalar([], others.type)
        rows = replace_column(rows, "caption_others", pc.if_else(is_edited, none, others))
    return rows


class DecisionLog:
    """The decisions on a dataset, and the file to which this process adds its own. May be used from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._name = f"{FOLDER}/{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.parquet"
        self._own: dict[str, dict[str, Any]] = {}
        self._files: dict[str, str] = {}  # stamps of the files that `_merged` is made from
        self._merged: dict[str, dict[str, Any]] = {}
        self._read_at = -REREAD_SECONDS
        self._lock = threading.Lock()
        self._version = 0

    def current(self) -> tuple[Mapping[str, dict[str, Any]], int]:
        """Return the decisions of all writers by clip_id, a row of DECISIONS each, and a number that grows whenever
        they change. Undone ones have neither a decision nor a caption."""
        with self._lock:
            if time.monotonic() - self._read_at >= REREAD_SECONDS:
                self._reread()
            return self._merged, self._version

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write decisions, rows of DECISIONS without `time`: on return they are in the dataset. Raises OSError."""
        with self._lock:
            self._reread()
            own, now = dict(self._own), time.time_ns() // 1000
            for row in rows:
                earlier = self._merged.get(row["clip_id"])  # later than now where another writer's clock is ahead
                own[row["clip_id"]] = {**row, "time": max(now, _microseconds(earlier["time"]) + 1 if earlier else 0)}
            self._store.write(self._name, to_parquet(table_from([own[clip] for clip in sorted(own)], DECISIONS)))
            self._own = own
            self._files.pop(self._name, None)  # an object store's stamps are of whole seconds
            self._reread()

    def _reread(self) -> None:
        files = {name: stamp for name, _, stamp in self._store.stat(FOLDER) if name.endswith(".parquet")}
        if files != self._files:
            rows = _latest([_read(self._store, name) for name in files], undone=True).to_pylist()
            self._merged = {row["clip_id"]: row for row in rows}
            self._files, self._version = files, self._version + 1
        self._read_at = time.monotonic()


def _read(store: Store, name: str) -> pa.Table:
    table = pq.read_table(io.BytesIO(store.read(name)))
    columns = {field.name for field in table.schema}
    for field in DECISIONS:  # a file that a script has written need not have them all
        if field.name not in columns:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    table = table.select(DECISIONS.names).cast(DECISIONS)
    return replace_column(table, "time", pc.fill_null(table["time"], pa.scalar(0, DECISIONS.field("time").type)))


def _latest(tables: Sequence[pa.Table], undone: bool = False) -> pa.Table:
    """Return the latest row of each clip, in order of clip_id; of rows of one time that of the last table."""
    table = pa.concat_tables([DECISIONS.empty_table(), *tables]).combine_chunks()
    order = pa.table({"clip": table["clip_id"], "time": table["time"], "row": np.arange(table.num_rows)})
    order = order.sort_by([("clip", "ascending"), ("time", "ascending"), ("row", "ascending")])
    last = order.group_by("clip", use_threads=False).aggregate([("row", "last")])["row_last"]
    table = table.take(last)
    return table if undone else table.filter(pc.or_(pc.is_valid(table["decision"]), pc.is_valid(table["caption"])))


def _microseconds(moment: datetime) -> int:
    return pa.scalar(moment, DECISIONS.field("time").type).value
