"""The fragments of a pass as one table: read a span of sources at a time, and merged where they have become many.

A unit of work commits a small fragment. A million sources leave tens of thousands, and opening each takes longer than
reading it; so a build merges loose ones into files sorted by source, of which a span of sources is a few row groups.
A merged file is written before its parts are deleted, and reading takes every clip once, so that it does not matter
where a build was stopped, nor whether anything was merged.
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
LOOSE = 64  # fragments up to which nothing is merged
FULL_ROWS, FULL_BYTES = 500_000, 1 << 30  # from which on a file is not merged again
SPAN_ROWS, SPAN_BYTES = 100_000, 256 << 20  # in memory at once
GROUP = 8192  # rows of a row group: the least that can be read


class Runs:
    """Fragments, to be read by span; a context manager that keeps the merged ones open."""

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

    def rows(self, span: IdRange, columns: Collection[str] | None = None) -> pa.Table | None:
        """Every clip of the sources in `span` once, in order of source_id, place and clip_id, with a column `at` that
        names the fragment it is in; None where there is no clip."""
        tables = []
        for fragment in self.fragments:
            if span.meets(*fragment.done["sources"]):
                rows = self._rows(fragment, columns, span)
                name = pa.DictionaryArray.from_arrays(np.zeros(rows.num_rows, np.int32), [fragment.name])
                tables.append(rows.append_column("at", name))
        if not any(table.num_rows for table in tables):
            return None
        return each_once(pa.concat_tables(tables).unify_dictionaries())

    def _rows(self, fragment: Fragment, columns: Collection[str] | None, span: IdRange) -> pa.Table:
        if MERGED not in fragment.done:
            return fragment.rows(self._store, columns, span)
        if fragment.name not in self._open:
            file = self._stack.enter_context(self._store.open(fragment.name))
            self._open[fragment.name] = pq.ParquetFile(file)
        return rows_of(self._open[fragment.name], columns, span)


def spans(rows: int, size: int = 0) -> list[IdRange]:
    """All source ids, in spans of about SPAN_ROWS of `rows` and SPAN_BYTES of `size`: ids are hashes, evenly spread."""
    count = max(1, -(-rows // SPAN_ROWS), -(-size // SPAN_BYTES))
    edges = ["", *(f"{(i << 32) // count:08x}" for i in range(1, count)), ""]
    return [IdRange(first, end) for first, end in itertools.pairwise(edges)]


def each_once(table: pa.Table) -> pa.Table:
    """`table` in order of source_id, and of place where rows have one, each clip once: of several rows the one that
    more filters scored, then that of the unit with the least name."""
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
    """The fragments of `folder` with the fingerprint `made_by`."""
    return (f for f in read_fragments(store, folder) if f.done.get("fingerprint") == made_by)


def merge(store: Store, folder: str, made_by: str) -> None:
    """Merge the loose fragments with the fingerprint `made_by` if there are more than LOOSE. With them are merged the
    files that are not larger than all of them, so that a row is written again a few times only, however often a build
    is run."""
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
    """The names of the files written."""
    parts = sorted((part for f in taken for part in f.done.get("parts", ())), key=lambda part: str(part["key"]))
    key, merged_names = fingerprint(sorted(f.name for f in taken)), set[str]()
    with Runs(store, taken) as runs, store.open(taken[0].name) as file:
        schema = pq.ParquetFile(file).schema_arrow.remove_metadata()
        pending_spans = spans(runs.count, sum(f.size for f in taken))
        while pending_spans:
            name, first, rows, size = f"{folder}/{key}-{len(merged_names):05}.parquet", pending_spans[0].first, 0, 0
            with writer(store, name, schema) as out:
                while pending_spans and rows < FULL_ROWS and size < FULL_BYTES:
                    span = pending_spans.pop(0)
                    table = runs.rows(span)
                    if table is not None:
                        out.write_table(table.select(schema.names).cast(schema), row_group_size=GROUP)
                        rows, size = rows + table.num_rows, size + table.nbytes
                whole = IdRange(first, span.end)
                own = [part for part in parts if whole.meets(*2 * [part["key"].partition("@")[0]])]
                done = {"fingerprint": made_by, MERGED: True, "sources": [first, span.end or "g"]}
                if parts:
                    done["parts"] = own
                out.add_key_value_metadata({DONE: json.dumps(done, sort_keys=True).encode()})
            merged_names.add(name)
    return merged_names


@contextlib.contextmanager
def writer(store: Store, name: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A Parquet file written piece by piece, which is there, whole, on leaving."""
    folder, _, base = name.rpartition("/")
    with (
        store.folder(folder) as place,
        atomic(place / base) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as opened,
    ):
        yield opened
