"""Read large tables in parts: one column of all rows, or all columns of a few rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
        """Read all rows with these columns, or with all columns."""
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
        """Read all columns of these clips; return them by clip_id."""
        blank = dict.fromkeys(self.schema.names)
        return {row["clip_id"]: {**blank, **row} for row in rows_of_clips(self._store, self._files, clip_ids)}


def rows_of_clips(store: Store, files: Sequence[str], clip_ids: Collection[str]) -> list[dict[str, Any]]:
    """Return the rows of these clips, in the order of the files. Reads the ids first: most row groups hold none."""
    wanted = pa.array(sorted(clip_ids), pa.string())
    rows: list[dict[str, Any]] = []
    for name in files:
        with open_published(store, name) as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                is_wanted = pc.is_in(parquet.read_row_group(group, ["clip_id"])["clip_id"], value_set=wanted)
                if pc.any(is_wanted).as_py():
                    rows += parquet.read_row_group(group).filter(is_wanted).to_pylist()
    return rows
