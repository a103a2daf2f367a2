"""Parquet files that hold videos: a column `mp4` or `video` of bytes, or of structs {bytes, path} as `datasets` writes
them. Each row is a member named COLUMN/ROW, with rows counted from 0; the other columns are its metadata."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.lists import sidecar
from pipeline.storage.store import Unreachable

COLUMNS = ("mp4", "video")


def video_column(file: BinaryIO) -> str | None:
    """Return the column of the Parquet `file` that holds videos; None where there is none, or where it is no Parquet
    file. Closes the file."""
    with file:
        try:
            return _video_column(pq.read_schema(file))
        except Unreachable:
            raise
        except (pa.ArrowException, OSError):
            return None


def _video_column(schema: pa.Schema) -> str | None:
    return next((name for name in COLUMNS if name in schema.names and _has_bytes(schema.field(name).type)), None)


def _has_bytes(column_type: pa.DataType) -> bool:
    if pa.types.is_struct(column_type):
        return any(field.name == "bytes" and _has_bytes(field.type) for field in column_type)
    return pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type)


def video_rows(file: BinaryIO, most: int) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield name, metadata and stamp of each row of a file with videos, without reading a video.

    Keys of a column `json`, a struct or a text, become metadata of their own. Closes the file. Raises ValueError for a
    damaged file or one of more than `most` rows.
    """
    with file:
        parquet = pq.ParquetFile(file)
        if parquet.metadata.num_rows > most:
            raise ValueError(f"more than {most:,} rows (sources.archive_members)")
        footer = io.BytesIO()
        parquet.metadata.write_metadata_file(footer)
        stamp = hashlib.sha256(footer.getvalue()).hexdigest()[:32]
        column = _video_column(parquet.schema_arrow)
        columns = [field.name for field in parquet.schema_arrow if not _has_bytes(field.type)]
        if columns:
            batches = parquet.iter_batches(1024, columns=columns)
            rows = (row for batch in batches for row in batch.to_pylist())
        else:
            rows = ({} for _ in range(parquet.metadata.num_rows))
        for number, row in enumerate(rows):
            extra = row.pop("json", None) or {}
            if isinstance(extra, str):
                extra = sidecar(".json", extra.encode())
            metadata = {**row, **(extra if isinstance(extra, dict) else {"json": extra})}
            yield f"{column}/{number}", {key: value for key, value in metadata.items() if value is not None}, stamp


class VideoRows:
    """Reads single videos of a Parquet file. The column of a row group is read page by page from its first row to the
    requested one, so that reading rows in order reads the column once. Memory holds one page, which many writers make
    as large as the column of the row group."""

    def __init__(self, file: BinaryIO) -> None:
        self._parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        self._lock = threading.Lock()
        self._column = ""
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._group, self._row, self._video = -1, -1, b""

    def read(self, member: str, limit: float) -> bytes:
        """Return the bytes of the video `member`. Raises FileNotFoundError for a name that is none, and OSError where
        the row has no video or one of more than `limit` bytes."""
        column, _, number = member.rpartition("/")
        schema, counts = self._parquet.schema_arrow, self._parquet.metadata
        if column not in schema.names or not number.isdecimal() or int(number) >= counts.num_rows:
            raise FileNotFoundError(f"no row {member!r}")
        row, group = int(number), 0
        while row >= counts.row_group(group).num_rows:
            row -= counts.row_group(group).num_rows
            group += 1
        with self._lock:
            try:
                value = self._value(column, group, row)
            except (pa.ArrowException, OSError) as error:
                self._group = -1
                raise error if isinstance(error, OSError) else OSError(f"row {number}: {error}") from error
        if not value:
            raise OSError(f"row {number} has no bytes in its column {column}")
        if len(value) > limit:
            raise OSError(f"larger than {limit / 1e9:g} GB (sources.max_gb)")
        return value

    def _value(self, column: str, group: int, row: int) -> bytes:
        if (column, group) != (self._column, self._group) or row < self._row:
            is_struct = pa.types.is_struct(self._parquet.schema_arrow.field(column).type)
            leaf = f"{column}.bytes" if is_struct else column
            self._batches = self._parquet.iter_batches(1, row_groups=[group], columns=[leaf], use_threads=False)
            self._column, self._group, self._row = column, group, -1
        while self._row < row:
            batch = next(self._batches)
            self._row += 1
            if self._row == row:
                value = batch.column(0)[0].as_py()
                self._video = (value.get("bytes") if isinstance(value, dict) else value) or b""
        return self._video
