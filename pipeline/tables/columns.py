"""Reading large tables in parts: one column over all rows, or all columns of a few rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage.store import Store
from pipeline.tables.published import open_published, table_files


class Columns:
    """A finished table whose columns are read on demand. A column of `expected` that its files lack is null."""

    def __init__(self, store: Store, folder: str, expected: pa.Schema) -> None:
        self._store, self._files = store, table_files(store, folder)
        schemas = []
        for name in self._files:
            with open_published(store, name) as file:
                schemas.append(pq.read_schema(file).remove_metadata())
        self.schema = pa.unify_schemas([*schemas, expected], promote_options="permissive")

    def table(self, *names: str) -> pa.Table:
        """All rows, with these columns, or with all."""
        wanted = pa.schema([self.schema.field(name) for name in names or self.schema.names])
        tables = [wanted.empty_table()]
        for name in self._files:
            with open_published(self._store, name) as file:
                parquet = pq.ParquetFile(file)
                tables.append(
                    parquet.read([field.name for field in parquet.schema_arrow if field.name in wanted.names])
                )
        return pa.concat_tables(tables, promote_options="permissive")

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self.table(name)[name]

    def __contains__(self, name: str) -> bool:
        return name in self.schema.names

    def rows(self, clip_ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """All columns of these clips, by clip_id."""
        blank = dict.fromkeys(self.schema.names)
        return {row["clip_id"]: {**blank, **row} for row in rows_of(self._store, self._files, clip_ids)}


def rows_of(store: Store, files: Sequence[str], clip_ids: Collection[str]) -> list[dict[str, Any]]:
    """The rows of these clips, in the order of the files."""
    wanted = pa.array(sorted(clip_ids), pa.string())
    tables = matching(store, files, "clip_id", lambda ids: pc.is_in(ids, value_set=wanted))
    return [row for table in tables for row in table.to_pylist()]


def matching(
    store: Store, files: Sequence[str], column: str, wanted: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> Iterator[pa.Table]:
    """Yield the rows whose `column` is wanted. Reads that column first: most row groups hold no such row."""
    for name in files:
        with open_published(store, name) as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                is_wanted = wanted(parquet.read_row_group(group, [column])[column])
                if pc.any(is_wanted).as_py():
                    yield parquet.read_row_group(group).filter(is_wanted)
