"""Read the fragments of a pass as one table, a range of source ids at a time, and merge small fragments.

Each unit of work commits a small fragment. A million sources leave tens of thousands, and opening one takes longer than
reading it. A build therefore merges loose fragments into files sorted by source, in which a range of ids is a few row
groups. A merged file is written before its parts are deleted, and reading drops duplicate clips: a build may stop at
any point, and merging does not change what is read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage.store import Store, atomic
from pipeline.tables.fragments import DONE, Fragment, IdRange, fingerprint, id_prefix_u64, read_fragments, rows_of

MERGED = "merged"  # key of a merged file's `done`
LOOSE = 64  # fragments are merged when more than this many are not merged yet
FULL_ROWS, FULL_BYTES = 500_000, 1 << 30  # a file of this size is not merged again
RANGE_ROWS, RANGE_BYTES = 100_000, 256 << 20  # rows and bytes in memory at once
GROUP = 8192  # rows of a row group: the smallest amount that can be read


class Runs:
    """A reader of fragments by range of source ids; a context manager that keeps the merged files open."""

    def __init__(self, store: Store, fragments: Iterable[Fragment]) -> None:
        self._store, self.fragments = store, [f for f in fragments if f.count]
        self._open: dict[str, pq.ParquetFile] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def count(self) -> int:
        return sum(fragment.count for fragment in self.fragments)

    def rows(self, ids: IdRange, columns: Collection[str] | None = None) -> pa.Table | None:
        """Return every clip of the sources in `ids` once, ordered by source_id, position and clip_id, with a column
        `at` that names its fragment; None where there is no clip."""
        tables = []
        for fragment in self.fragments:
            if ids.meets(*fragment.done["sources"]):
                rows = self._rows(fragment, columns, ids)
                name = pa.DictionaryArray.from_arrays(np.zeros(rows.num_rows, np.int32), [fragment.name])
                tables.append(rows.append_column("at", name))
        if not any(table.num_rows for table in tables):
            return None
        return each_once(pa.concat_tables(tables).unify_dictionaries())

    def _rows(self, fragment: Fragment, columns: Collection[str] | None, ids: IdRange) -> pa.Table:
        if MERGED not in fragment.done:
            return fragment.rows(self._store, columns, ids)
        if fragment.name not in self._open:
            file = self._stack.enter_context(self._store.open(fragment.name))
            self._open[fragment.name] = pq.ParquetFile(file)
        return rows_of(self._open[fragment.name], columns, ids)


def id_ranges(rows: int, size: int = 0) -> list[IdRange]:
    """Divide all source ids into ranges of about RANGE_ROWS of `rows` and RANGE_BYTES of `size`; ids are evenly
    distributed hashes."""
    count = max(1, -(-rows // RANGE_ROWS), -(-size // RANGE_BYTES))
    edges = ["", *(f"{(i << 32) // count:08x}" for i in range(1, count)), ""]
    return [IdRange(first, end) for first, end in itertools.pairwise(edges)]


def each_once(table: pa.Table) -> pa.Table:
    """Sort a table by source_id, and by position where it has one, and keep one row of each clip: the one that more
    filters scored, then the one whose unit has the smallest name."""
    words, sources = id_prefix_u64(table["clip_id"]), id_prefix_u64(table["source_id"])
    keys = [table[name].to_numpy() for name in ("end_pts", "start_pts") if name in table.column_names]
    if not keys and (sources[1:] >= sources[:-1]).all() and len(np.unique(words)) == len(words):
        return table
    keys = [words, *keys, sources]
    if "unit" in table.column_names:
        keys.insert(0, id_prefix_u64(table["unit"]))
    if "scored" in table.column_names:
        keys.insert(0, -pc.list_value_length(table["scored"]).to_numpy())
    order = np.lexsort(keys)
    fresh = np.ones(len(order), bool)
    fresh[1:] = words[order[1:]] != words[order[:-1]]
    order = order[fresh]
    return table if np.array_equal(order, np.arange(table.num_rows)) else table.take(pa.array(order))


def current(store: Store, folder: str, made_by: str) -> Iterator[Fragment]:
    """Yield the fragments of `folder` with the fingerprint `made_by`."""
    return (f for f in read_fragments(store, folder) if f.done.get("fingerprint") == made_by)


def merge(store: Store, folder: str, made_by: str) -> None:
    """Merge the loose fragments with the fingerprint `made_by` if there are more than LOOSE, and with them the merged
    files that are no larger than all loose ones together: builds rewrite a row only a few times."""
    fragments = list(current(store, folder, made_by))
    taken = [f for f in fragments if MERGED not in f.done]
    if len(taken) <= LOOSE:
        return
    for file in sorted((f for f in fragments if MERGED in f.done), key=lambda f: f.count):
        if file.count <= min(sum(f.count for f in taken), FULL_ROWS // 2) and file.size <= FULL_BYTES // 2:
            taken.append(file)
    merged_names = _merge(store, folder, taken, made_by)
    for name in {fragment.name for fragment in taken} - merged_names:
        store.delete(name)


def _merge(store: Store, folder: str, taken: Sequence[Fragment], made_by: str) -> set[str]:
    """Write the merged files; return their names."""
    parts = sorted((part for f in taken for part in f.done.get("parts", ())), key=lambda part: str(part["key"]))
    key, merged_names = fingerprint(sorted(f.name for f in taken)), set[str]()
    with Runs(store, taken) as runs, store.open(taken[0].name) as file:
        schema = pq.ParquetFile(file).schema_arrow.remove_metadata()
        pending_ranges = id_ranges(runs.count, sum(f.size for f in taken))
        while pending_ranges:
            name, first, rows, size = f"{folder}/{key}-{len(merged_names):05}.parquet", pending_ranges[0].first, 0, 0
            with writer(store, name, schema) as out:
                while pending_ranges and rows < FULL_ROWS and size < FULL_BYTES:
                    ids = pending_ranges.pop(0)
                    table = runs.rows(ids)
                    if table is not None:
                        out.write_table(table.select(schema.names).cast(schema), row_group_size=GROUP)
                        rows, size = rows + table.num_rows, size + table.nbytes
                whole = IdRange(first, ids.end)
                own = [part for part in parts if whole.meets(*2 * [part["key"].partition("@")[0]])]
                done = {"fingerprint": made_by, MERGED: True, "sources": [first, ids.end or "g"]}
                if parts:
                    done["parts"] = own
                out.add_key_value_metadata({DONE: json.dumps(done, sort_keys=True).encode()})
            merged_names.add(name)
    return merged_names


@contextlib.contextmanager
def writer(store: Store, name: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of a Parquet file that appears in the store on leaving."""
    folder, _, base = name.rpartition("/")
    with (
        store.folder(folder) as local,
        atomic(local / base) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as opened,
    ):
        yield opened
