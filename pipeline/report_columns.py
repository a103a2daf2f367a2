"""Big tables a piece at a time: one column over all rows, or all columns of a few rows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.canaries import is_canary
from pipeline.storage import Store
from pipeline.tables import read_table


class Columns:
    """A finished table without its canaries, of which no more is read than what is asked for. A column of `expected`
    that its files lack is null."""

    def __init__(self, store: Store, folder: str, expected: pa.Schema) -> None:
        self._store, self._folder = store, folder
        found = []
        for name in store.list(folder, ".parquet"):
            with store.open(name) as file:
                found.append(pq.read_schema(file).remove_metadata())
        self.schema = pa.unify_schemas([*found, expected], promote_options="permissive")
        self._real: pa.ChunkedArray | None = None
        self._real = pc.invert(is_canary(self.table("source_uri")))

    def table(self, *names: str) -> pa.Table:
        """The rows that are not canaries, with these columns, or with all."""
        wanted = names or tuple(self.schema.names)
        table = read_table(self._store, self._folder, lambda field: field.name in wanted)
        if table is None:
            return pa.table({name: pa.array([], self.schema.field(name).type) for name in wanted})
        for name in wanted:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table), self.schema.field(name).type))
        return table if self._real is None else table.filter(self._real)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self.table(name)[name]

    def __contains__(self, name: str) -> bool:
        return name in self.schema.names

    def rows(self, clip_ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """All columns of these clips, by clip_id."""
        blank = dict.fromkeys(self.schema.names)
        return {row["clip_id"]: {**blank, **row} for row in matching(self._store, self._folder, clip_ids)}


def matching(store: Store, folder: str, clip_ids: Collection[str]) -> list[dict[str, Any]]:
    """The rows of these clips, in the table's order. Reads ids first: most row groups hold none of them."""
    wanted, rows = pa.array(sorted(clip_ids), pa.string()), []
    for name in store.list(folder, ".parquet"):
        with store.open(name) as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                there = pc.is_in(parquet.read_row_group(group, ["clip_id"])["clip_id"], value_set=wanted)
                if pc.any(there).as_py():
                    rows += parquet.read_row_group(group).filter(there).to_pylist()
    return rows
