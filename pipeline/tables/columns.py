"""Big tables a piece at a time: one column over all rows, or all columns of a few rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.sources.canaries import SCHEME, is_canary
from pipeline.storage.store import Store


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
        self._ours: pa.ChunkedArray | None = None
        self._ours = pc.invert(is_canary(self.table("source_uri")))

    def table(self, *names: str) -> pa.Table:
        """The rows that are not canaries, with these columns, or with all."""
        wanted, at = pa.schema([self.schema.field(name) for name in names or self.schema.names]), 0
        found = [wanted.empty_table()]
        for name in self._files():
            with self._store.open(name) as file:
                parquet = pq.ParquetFile(file)
                table = parquet.read([field.name for field in parquet.schema_arrow if field.name in wanted.names])
            if self._ours is not None:
                at += table.num_rows
                table = table.filter(self._ours.slice(at - table.num_rows, table.num_rows))
            found.append(table)
        return pa.concat_tables(found, promote_options="permissive")

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self.table(name)[name]

    def __contains__(self, name: str) -> bool:
        return name in self.schema.names

    def canaries(self) -> pa.Table:
        """All columns of the canaries."""
        found = matching(self._store, self._files(), "source_uri", lambda uris: pc.starts_with(uris, SCHEME))
        return pa.concat_tables([self.schema.empty_table(), *found], promote_options="permissive")

    def rows(self, clip_ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """All columns of these clips, by clip_id."""
        blank = dict.fromkeys(self.schema.names)
        return {row["clip_id"]: {**blank, **row} for row in rows_of(self._store, self._files(), clip_ids)}

    def _files(self) -> list[str]:
        return self._store.list(self._folder, ".parquet")


def rows_of(store: Store, files: Sequence[str], clip_ids: Collection[str]) -> list[dict[str, Any]]:
    """The rows of these clips, in the order of the files."""
    wanted = pa.array(sorted(clip_ids), pa.string())
    found = matching(store, files, "clip_id", lambda ids: pc.is_in(ids, value_set=wanted))
    return [row for table in found for row in table.to_pylist()]


def matching(
    store: Store, files: Sequence[str], column: str, wanted: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> Iterator[pa.Table]:
    """Rows that are wanted for their `column`. Reads that column first: most row groups hold none of them."""
    for name in files:
        with store.open(name) as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                there = wanted(parquet.read_row_group(group, [column])[column])
                if pc.any(there).as_py():
                    yield parquet.read_row_group(group).filter(there)
