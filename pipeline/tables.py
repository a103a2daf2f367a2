"""The tables of a dataset: what a row of each holds, how ids are made, and how a unit of work is committed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Store

DONE = b"clipmill"  # key of the fragment metadata

SOURCES = pa.schema(
    [
        ("source_id", pa.string()),
        ("source_uri", pa.string()),
        ("status", pa.string()),  # ok, failed or skipped
        ("error", pa.string()),  # why, in plain words; null when ok
        ("duration", pa.float64()),  # seconds
        ("fps", pa.float64()),
        ("width", pa.int32()),  # as displayed: rotation applied
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("metadata", pa.string()),  # JSON of the user's own columns
    ]
)

CLIPS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("source_uri", pa.string()),
        ("shot_index", pa.int32()),
        ("start", pa.float64()),  # seconds of presentation time in the source
        ("end", pa.float64()),  # of the first frame that is no longer part
        ("start_pts", pa.int64()),
        ("end_pts", pa.int64()),
        ("time_base", pa.string()),  # "1/30000"
        ("fps", pa.float64()),
        ("frames", pa.int32()),
        ("width", pa.int32()),  # of the source as displayed
        ("height", pa.int32()),
        ("crop_x", pa.int32()),  # the picture inside its borders, in displayed pixels
        ("crop_y", pa.int32()),
        ("crop_w", pa.int32()),
        ("crop_h", pa.int32()),
        ("dropped", pa.string()),  # why the scan itself gives the clip up (duration ...), or null
    ]
)

FRAMES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("index", pa.int32()),
        ("time", pa.float64()),  # seconds of presentation time in the source
        ("jpeg", pa.binary()),
    ]
)


def clip_id(source_id: str, start_pts: int, end_pts: int, time_base: str) -> str:
    """20 hex digits that name a span of a source's content, wherever the source lies."""
    return hashlib.sha256(f"{source_id} {start_pts} {end_pts} {time_base}".encode()).hexdigest()[:20]


def fingerprint(*parts: Any) -> str:
    """16 hex digits over anything that JSON can hold, the same in every process."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Fragment:
    """One committed unit of work: rows, and what was done to get them (`done`, JSON in the file's metadata)."""

    name: str
    done: Mapping[str, Any]

    def rows(self, store: Store, columns: Sequence[str] | None = None) -> pa.Table:
        with store.open(self.name) as file:
            return pq.read_table(file, columns=None if columns is None else list(columns))


def write_fragment(store: Store, name: str, rows: pa.Table, done: Mapping[str, Any]) -> Fragment:
    """Commits `rows` under `name` with `done`: both are there, or neither."""
    metadata = {**(rows.schema.metadata or {}), DONE: json.dumps(done, sort_keys=True).encode()}
    store.write(name, to_parquet(rows.replace_schema_metadata(metadata)))
    return Fragment(name, done)


def read_fragment(store: Store, name: str) -> Fragment:
    """The fragment called `name`. Raises OSError, pa.ArrowInvalid or KeyError where it is not a whole one."""
    with store.open(name) as file:
        return Fragment(name, json.loads(pq.read_schema(file).metadata[DONE]))


def read_fragments(store: Store, folder: str) -> list[Fragment]:
    """Every fragment of `folder`, in order of name. One that is truncated or not ours is deleted: its unit is then
    simply not done."""
    found = []
    for name in store.list(folder, ".parquet"):
        try:
            found.append(read_fragment(store, name))
        except (pa.ArrowInvalid, KeyError, TypeError, json.JSONDecodeError):
            store.delete(name)
    return found


def to_parquet(table: pa.Table) -> bytes:
    """Parquet bytes that depend on the rows alone: no time stamps, one row group a hundred thousand rows."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=100_000)
    return sink.getvalue()


def read_table(store: Store, folder: str, wanted: Callable[[pa.Field], bool] = lambda field: True) -> pa.Table | None:
    """All files of a finished table, in order of name, with the columns that are `wanted`; None where there is none."""
    tables = []
    for name in store.list(folder, ".parquet"):
        with store.open(name) as file:
            parquet = pq.ParquetFile(file)
            tables.append(parquet.read([field.name for field in parquet.schema_arrow if wanted(field)]))
    return pa.concat_tables(tables, promote_options="permissive") if tables else None


def table_from(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """`rows` as a table of `schema`: keys that it lacks are left out, keys that a row lacks are null."""
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
