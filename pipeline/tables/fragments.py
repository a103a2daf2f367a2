"""The schemas of a dataset's tables, its ids, and the fragments that units of work commit."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage.store import Store

DONE = b"clipmill"  # key of the fragment metadata

SOURCES = pa.schema(
    [
        ("source_id", pa.string()),
        ("source_uri", pa.string()),
        ("status", pa.string()),  # ok, failed or skipped
        ("error", pa.string()),  # the reason; null when ok
        ("duration", pa.float64()),  # seconds
        ("fps", pa.float64()),
        ("width", pa.int32()),  # as displayed: rotation applied
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("color_matrix", pa.string()),  # FFmpeg's names of the colours that the stream declares; null if it does not
        ("color_primaries", pa.string()),
        ("color_transfer", pa.string()),  # smpte2084 (PQ) and arib-std-b67 (HLG) are HDR
        ("color_range", pa.string()),  # tv (limited) or pc (full)
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
        ("end", pa.float64()),  # of the first frame after the clip
        ("start_pts", pa.int64()),
        ("end_pts", pa.int64()),
        ("time_base", pa.string()),  # "1/30000"
        ("fps", pa.float64()),
        ("frames", pa.int32()),
        ("width", pa.int32()),  # of the source as displayed
        ("height", pa.int32()),
        ("crop_x", pa.int32()),  # the picture without black borders, in displayed pixels
        ("crop_y", pa.int32()),
        ("crop_w", pa.int32()),
        ("crop_h", pa.int32()),
        ("color_matrix", pa.string()),  # of the source, as in SOURCES
        ("color_primaries", pa.string()),
        ("color_transfer", pa.string()),
        ("color_range", pa.string()),
        ("dropped", pa.string()),  # why the scan itself rejects the clip (duration ...), or null
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
    """Return 20 hex digits that name a span of a source by content, independent of the source's URI."""
    return hashlib.sha256(f"{source_id} {start_pts} {end_pts} {time_base}".encode()).hexdigest()[:20]


def frames_of(unit: str) -> str:
    """Return the name of the file with the sampled frames of a scan unit."""
    return f"tables/frames/{unit}.parquet"


def write_frames(store: Store, unit: str, rows: pa.Table) -> int:
    """Commit the sampled frames of a unit, rows of FRAMES; return the size of the file in bytes. Each clip is a row
    group, so that the frames of a few clips can be read alone."""
    rows = rows.sort_by([("clip_id", "ascending"), ("index", "ascending")])
    sink = io.BytesIO()
    # JPEGs do not compress further; only clip ids are needed to choose row groups.
    options = {"compression": {"jpeg": "none"}, "use_dictionary": False, "write_statistics": ["clip_id"]}
    with pq.ParquetWriter(sink, FRAMES, **options) as out:
        for count in pc.value_counts(rows["clip_id"]).field("counts").to_pylist():
            out.write_table(rows.slice(0, count))
            rows = rows.slice(count)
    store.write(frames_of(unit), sink.getvalue())
    return sink.tell()


def read_sampled_frames(file: pq.ParquetFile, clips: Collection[str]) -> pa.Table:
    """Return the sampled frames of these clips, reading only the row groups that may hold them."""
    groups = []
    for number in range(file.num_row_groups):
        statistics = file.metadata.row_group(number).column(0).statistics
        if any(statistics.min <= clip <= statistics.max for clip in clips):
            groups.append(number)
    rows = file.read_row_groups(groups)
    return rows.filter(pc.is_in(rows["clip_id"], pa.array(sorted(clips), pa.string())))


def id_prefix_u64(ids: pa.ChunkedArray) -> np.ndarray:
    """Return the first 16 hex digits of each id as (n,) uint64, in the order of the ids."""
    words = [_hex_words(chunk) for chunk in ids.chunks if len(chunk)]
    return np.concatenate(words) if words else np.zeros(0, np.uint64)


def _hex_words(ids: pa.Array) -> np.ndarray:
    fixed = pc.utf8_slice_codeunits(ids.cast(pa.string()), 0, 16).cast(pa.binary()).cast(pa.binary(16))
    digits = np.frombuffer(fixed.buffers()[1], np.uint8)[fixed.offset * 16 :][: 16 * len(fixed)]
    values = (
        np.where(digits >= ord("a"), digits - (ord("a") - 10), digits - ord("0")).astype(np.uint8).reshape(-1, 8, 2)
    )
    return (values[:, :, 0] << 4 | values[:, :, 1]).copy().view(">u8")[:, 0].astype(np.uint64)


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column to (n,) float64, NaN for null."""
    return pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy()


def fingerprint(*parts: Any) -> str:
    """Return 16 hex digits of a hash of JSON-serialisable values, the same in every process."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Fragment:
    """A file of committed rows: `count` rows, about `size` bytes, and `done`, JSON in the file's metadata that says how
    they were computed. Where rows have a `source_id`, done["sources"] holds its smallest and largest value."""

    name: str
    done: Mapping[str, Any]
    count: int = 0
    size: int = 0

    def rows(self, store: Store, columns: Collection[str] | None = None, ids: IdRange | None = None) -> pa.Table:
        """Read all rows, or those of sources in `ids`."""
        with store.open(self.name) as file:
            return rows_of(pq.ParquetFile(file), columns, ids)


@dataclass(frozen=True)
class IdRange:
    """Source ids from `first` (hex digits) to `end`, exclusive; an empty `end` has no upper bound."""

    first: str = ""
    end: str = ""

    def meets(self, least: str, greatest: str) -> bool:
        return greatest >= self.first and (not self.end or least < self.end)


def rows_of(file: pq.ParquetFile, columns: Collection[str] | None = None, ids: IdRange | None = None) -> pa.Table:
    """Read rows of a fragment. With `ids`, read only the row groups that may hold sources in it."""
    names = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
    if ids is None:
        return file.read(names)
    schema = file.schema
    at = next(i for i in range(len(schema)) if schema.column(i).path == "source_id")
    groups = []
    for number in range(file.num_row_groups):
        statistics = file.metadata.row_group(number).column(at).statistics
        if statistics is None or not statistics.has_min_max or ids.meets(statistics.min, statistics.max):
            groups.append(number)
    table = file.read_row_groups(groups, None if names is None else [*dict.fromkeys(["source_id", *names])])
    inside = pc.greater_equal(table["source_id"], ids.first)
    if ids.end:
        inside = pc.and_(inside, pc.less(table["source_id"], ids.end))
    return table.filter(inside)


def write_fragment(store: Store, name: str, rows: pa.Table, done: Mapping[str, Any]) -> Fragment:
    """Commit `rows` under `name` with `done`: both are there, or neither."""
    if "source_id" in rows.column_names and rows.num_rows:
        extremes = pc.min_max(rows["source_id"]).as_py()
        done = {**done, "sources": [extremes["min"], extremes["max"]]}
    metadata = {**(rows.schema.metadata or {}), DONE: json.dumps(done, sort_keys=True).encode()}
    data = to_parquet(rows.replace_schema_metadata(metadata))
    store.write(name, data)
    return Fragment(name, done, rows.num_rows, len(data))


def read_fragment(store: Store, name: str) -> Fragment:
    """The fragment called `name`. Raises OSError, pa.ArrowInvalid or KeyError where it is not a whole one."""
    with store.open(name) as file:
        parquet = pq.ParquetFile(file)
        about = parquet.metadata
        size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        return Fragment(name, json.loads(about.metadata[DONE]), about.num_rows, size)


def read_fragments(store: Store, folder: str) -> Iterator[Fragment]:
    """Every fragment of `folder`, in order of name, one at a time: `done` may be long. One that is truncated or not
    ours is deleted: its unit is then simply not done."""
    for name in store.list(folder, ".parquet"):
        try:
            yield read_fragment(store, name)
        except (pa.ArrowInvalid, KeyError, TypeError, json.JSONDecodeError):
            store.delete(name)


def to_parquet(table: pa.Table) -> bytes:
    """Parquet bytes that depend on the rows alone: no time stamps, one row group a hundred thousand rows."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=100_000)
    return sink.getvalue()


def plain(table: pa.Table) -> pa.Table:
    """`table` without dictionaries."""
    for i, field in enumerate(table.schema):
        column_type = field.type
        if pa.types.is_list(column_type) and pa.types.is_dictionary(column_type.value_type):
            column_type = pa.list_(column_type.value_type.value_type)
        elif pa.types.is_dictionary(column_type):
            column_type = column_type.value_type
        table = table.set_column(i, field.name, table.column(i).cast(column_type))
    return table


def replace_column(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def table_from(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """`rows` as a table of `schema`: keys that it lacks are left out, keys that a row lacks are null."""
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
