"""The clips of a finished dataset as one table: filtered and sorted by DuckDB, read by row number.

DuckDB queries the Parquet files in place, so that a million clips need no import and little memory. It cannot read
other files, and parses a user's filter as one expression, which can neither end the query nor change data. A query
result is an array of row numbers; a page is a slice of it.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.finish import DatasetError
from pipeline.storage.store import Store
from pipeline.tables.fragments import id_prefix_u64
from pipeline.tables.published import table_files

SECONDS = 20.0  # time limit of a query
MEMORY = "2GB"  # DuckDB's memory_limit
RESULTS = 32  # query results cached in memory, 4 bytes per clip each
SIMILARITY = "similarity"  # name of the column that a search adds
LEFT_OUT = ("embedding", "phash")  # columns of vectors, which no filter can use: a gigabyte for a million clips


class ExpressionError(ValueError):
    """A query that cannot be answered; the message gives the reason."""


@dataclass(frozen=True)
class Query:
    """A filter (SQL expression; empty: all clips), the column to sort by (empty: none), and, with a search, the
    similarity of every clip to its text or picture."""

    where: str = ""
    sort: str = ""
    descending: bool = False
    search: str = ""  # name of the search that computed `similarity`
    similarity: np.ndarray | None = None  # (clips,) float32, NaN for a clip without an embedding

    @property
    def key(self) -> tuple[str, str, bool, str]:
        return self.where, self.sort, self.descending, self.search


class Catalog:
    """The table of clips. Safe for use from several threads.

    `near` is a local store that holds the dataset's tables/clips; `info` is the content of its dataset.json. Raises
    DatasetError if the store has no files of tables/clips.
    """

    def __init__(self, near: Store, info: Mapping[str, Any]) -> None:
        assert near.local is not None
        self._paths = [str(near.local / name) for name in table_files(near, "tables/clips", info)]
        if not self._paths:
            raise DatasetError(f"{near.uri} has no tables/clips: build it again")
        self._metadata = [pq.read_metadata(path) for path in self._paths]
        schemas = [metadata.schema.to_arrow_schema().remove_metadata() for metadata in self._metadata]
        stored = pa.unify_schemas(schemas, promote_options="permissive")
        self.schema = pa.schema([f for f in stored if f.name not in (*LEFT_OUT, "decision", "edited")])
        self.has_embeddings = "embedding" in stored.names
        self._starts = np.cumsum([0, *(metadata.num_rows for metadata in self._metadata)])  # row numbers of files
        self._folder = tempfile.TemporaryDirectory(prefix="clipmill-")
        # Links with plain names, because DuckDB interprets [ and * in a path as a glob pattern.
        self._links = [f"{self._folder.name}/{number}.parquet" for number in range(len(self._paths))]
        for link, path in zip(self._links, self._paths, strict=True):
            os.symlink(path, link)
        self._connection = self._open()
        ids = self.column("clip_id")
        words = id_prefix_u64(ids)
        self._order = np.argsort(words, kind="stable")
        self._words = words[self._order]
        self._results: OrderedDict[Any, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self._decisions = 0

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def files(self) -> list[tuple[str, int]]:
        """The files of the table, each with the number of its first row."""
        return list(zip(self._paths, self._starts[:-1].tolist(), strict=True))

    @property
    def columns(self) -> list[str]:
        """Names of the columns that an expression may use, except SIMILARITY."""
        return [*self.schema.names, "decision", "edited"]

    def _open(self) -> duckdb.DuckDBPyConnection:
        settings = {"temp_directory": "", "python_enable_replacements": "false", "memory_limit": MEMORY}
        settings |= {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        connection = duckdb.connect(config=dict[str, str | bool | int | float | list[str]](settings))
        names = ", ".join(_identifier(name) for name in self.schema.names if name != "caption")
        caption = "caption" if "caption" in self.schema.names else "NULL::VARCHAR"
        parts = [
            f"SELECT (file_row_number + {first})::INTEGER AS row, * "
            f"FROM read_parquet({_literal(link)}, file_row_number = true)"
            for link, first in zip(self._links, self._starts[:-1], strict=True)
        ]
        connection.execute(f"SET allowed_paths = [{', '.join(map(_literal, self._links))}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("CREATE TABLE decided (row INTEGER, hand_decision VARCHAR, hand_caption VARCHAR)")
        connection.execute(
            f"CREATE VIEW clips AS SELECT row, {names}, hand_decision AS decision, "
            "hand_caption IS NOT NULL AS edited, "
            f"coalesce(hand_caption, {caption}) AS caption "
            f"FROM ({' UNION ALL BY NAME '.join(parts)}) LEFT JOIN decided USING (row)"
        )
        connection.execute("SET lock_configuration = true")
        return connection

    def decide(self, decisions: Mapping[str, Mapping[str, Any]], version: int) -> None:
        """Show `decisions` (rows of DECISIONS by clip_id) in the columns `decision`, `edited` and `caption`."""
        with self._lock:
            if version == self._decisions:
                return
            rows = self.rows_of(list(decisions))
            present = [(row, decision) for row, decision in zip(rows, decisions.values(), strict=True) if row >= 0]
            columns = {name: [decision[name] for _, decision in present] for name in ("decision", "caption")}
            schema = pa.schema([("row", pa.int32()), ("decision", pa.string()), ("caption", pa.string())])
            table = pa.table({"row": [row for row, _ in present], **columns}, schema=schema)
            cursor = self._connection.cursor()
            cursor.register("changed", table)
            cursor.execute("BEGIN")
            cursor.execute("DELETE FROM decided")
            cursor.execute("INSERT INTO decided SELECT * FROM changed")
            cursor.execute("COMMIT")
            self._decisions = version
            self._results.clear()

    def rows_of(self, clip_ids: Sequence[str]) -> list[int]:
        """Return the row numbers of clips, -1 for an id that the dataset does not have."""
        valid = [clip if re.fullmatch("[0-9a-f]{16,}", clip) else "" for clip in clip_ids]
        rows = self.rows_of_column(pa.chunked_array([[clip or "0" * 16 for clip in valid]], pa.string())).tolist()
        return [row if clip else -1 for row, clip in zip(rows, valid, strict=True)]

    def rows_of_column(self, clip_ids: pa.ChunkedArray) -> np.ndarray:
        """Return the row numbers of a column of valid ids, (n,) int64, -1 for an id that the dataset does not have."""
        words = id_prefix_u64(clip_ids)
        if not len(self):
            return np.full(len(words), -1)
        positions = np.minimum(np.searchsorted(self._words, words), len(self) - 1)
        return np.where(self._words[positions] == words, self._order[positions], -1)

    def rows(self, query: Query) -> np.ndarray:
        """Return the row numbers of a query's clips in its order, (n,) int32. Raises ExpressionError."""
        with self._lock:
            if query.key in self._results:
                self._results.move_to_end(query.key)
                return self._results[query.key]
            version = self._decisions
        if query.where and query.sort:  # so that the order of all clips, the slow part, is computed once
            order, selected = self.rows(replace(query, where="")), np.zeros(len(self), bool)
            selected[self.rows(replace(query, sort=""))] = True
            rows = order[selected[order]]
        else:
            direction = "DESC" if query.descending else "ASC"
            order_by = f"{self._sortable(query)} {direction} NULLS LAST, row" if query.sort else f"row {direction}"
            rows = np.asarray(self._fetch(query, "row", f"ORDER BY {order_by}").column("row").to_numpy(), np.int32)
        with self._lock:
            if version == self._decisions:
                self._results[query.key] = rows
                while len(self._results) > RESULTS:
                    self._results.popitem(last=False)
        return rows

    def values(self, query: Query, columns: Sequence[str], group: bool = False) -> pa.Table:
        """Return `columns` of a query's clips, in any order. Raises ExpressionError.

        With `group`, return each distinct combination of values once, with its number of clips in the column `count`.
        """
        names = ", ".join(_identifier(name) for name in columns)
        if group:
            return self._fetch(query, f"{names}, count(*) AS count", "GROUP BY ALL ORDER BY count DESC")
        return self._fetch(query, names)

    def read(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return rows as the build wrote them, without manual decisions, in the order of `rows`.

        `columns` selects columns (None: all); those that the table lacks are None in every row.
        """
        wanted = self.schema.names if columns is None else [name for name in columns if name in self.schema.names]
        blank = dict.fromkeys(wanted if columns is None else columns)
        numbers = np.asarray(rows, np.int64)
        files = np.searchsorted(self._starts, numbers, side="right") - 1
        answer: list[dict[str, Any]] = [{}] * len(numbers)
        for file in np.unique(files):  # a query for each file, because DuckDB then skips the other parts of the file
            present = set(self._metadata[file].schema.to_arrow_schema().names)
            names = ", ".join(_identifier(name) for name in wanted if name in present)
            positions = {int(numbers[i] - self._starts[file]): i for i in np.flatnonzero(files == file)}
            with self._connection.cursor() as cursor:
                table = cursor.sql(
                    f"SELECT file_row_number, {names} FROM read_parquet({_literal(self._links[file])}, "
                    f"file_row_number = true) WHERE file_row_number IN ({', '.join(map(str, positions))})"
                ).to_arrow_table()
            for row in table.to_pylist():
                answer[positions[row.pop("file_row_number")]] = {**blank, **row}
        return answer

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a whole column, ordered by row number."""
        chunks = [chunk for path in self._paths for chunk in pq.read_table(path, columns=[name])[name].chunks]
        return pa.chunked_array(chunks, self.schema.field(name).type)

    def _sortable(self, query: Query) -> str:
        names = [*self.columns, *([SIMILARITY] if query.similarity is not None else [])]
        if query.sort not in names:
            raise ExpressionError(f"no column {query.sort!r} to sort by")
        return _identifier(query.sort)

    def _fetch(self, query: Query, columns: str, end: str = "") -> pa.Table:
        """Run a query for at most SECONDS. Raises ExpressionError for an invalid expression and after a timeout."""
        cursor = self._connection.cursor()
        timer = threading.Timer(SECONDS, cursor.interrupt)
        timer.start()
        try:
            clips = cursor.view("clips")
            if query.similarity is not None:
                row = np.arange(len(self), dtype=np.int32)
                similarity = pa.array(query.similarity, from_pandas=True)  # NaN becomes null
                cursor.register("ranked", pa.table({"row": row, SIMILARITY: similarity}))
                clips = cursor.sql("FROM clips LEFT JOIN ranked USING (row)")
            selected = filtered(clips, query.where)
            page = selected.query("selected", f"SELECT {columns} FROM selected {end}")
            assert page is not None  # as for every SELECT
            return page.to_arrow_table()
        except duckdb.InterruptException as error:
            raise ExpressionError(f"stopped after {SECONDS:.0f} s") from error
        except duckdb.Error as error:
            raise ExpressionError(_first_paragraph(error)) from error
        finally:
            timer.cancel()
            cursor.close()


def filtered(clips: duckdb.DuckDBPyRelation, where: str) -> duckdb.DuckDBPyRelation:
    """Return the clips for which the SQL expression `where` is true; all if it is empty. Raises ExpressionError for a
    text that is not exactly one expression over the columns."""
    try:
        return clips.filter(where) if where.strip() else clips
    except duckdb.Error as error:
        raise ExpressionError(_first_paragraph(error)) from error


def _first_paragraph(error: duckdb.Error) -> str:
    """Return DuckDB's message, with the columns that it suggests, without the position in a query of its own."""
    return " ".join(str(error).partition("\n\n")[0].split())


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
