"""What is already done: fragments of earlier builds that still hold under the recipe, and their rows joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import passes
from pipeline.recipe import Recipe
from pipeline.sources import Found
from pipeline.storage import Store
from pipeline.tables import Fragment, fingerprint, read_fragments


@dataclass
class Scanned:
    """Parts that the scan is done with: key -> why it failed (None: it did not), key -> what of it could not be used,
    and the fragments with their rows."""

    errors: dict[str, str | None]
    notes: dict[str, str]
    fragments: list[Fragment]


def identified(store: Store, found: Sequence[Found]) -> tuple[dict[str, dict[str, Any]], list[Found]]:
    """Rows of state/sources by URI for files that have not changed since, and the files that have no such row."""
    known: dict[tuple[str, int, str], dict[str, Any]] = {}
    for fragment in read_fragments(store, "state/sources"):
        for row in fragment.rows(store).to_pylist():
            known[row["uri"], row["size"], row["stamp"]] = row
    rows = {f.uri: known[f.uri, f.size, f.stamp] for f in found if (f.uri, f.size, f.stamp) in known}
    return rows, [f for f in found if f.uri not in rows]


def scanned(store: Store, recipe: Recipe) -> Scanned:
    """Parts scanned under this recipe. One that failed on a limit is not done when the limits have changed."""
    wanted, limits = passes.scan_fingerprint(recipe), fingerprint(passes.limits(recipe))
    errors: dict[str, str | None] = {}
    notes: dict[str, str] = {}
    fragments = []
    for fragment in read_fragments(store, "state/scan"):
        if fragment.done.get("fingerprint") != wanted or not store.exists(str(fragment.done["frames"])):
            continue
        fragments.append(fragment)
        for part in fragment.done["parts"]:
            if part["error"] is None or part["limits"] == limits:
                errors.setdefault(part["key"], part["error"])
                if part["note"]:
                    notes.setdefault(part["key"], part["note"])
    return Scanned(errors, notes, fragments)


def scan_rows(store: Store, state: Scanned, uris: Mapping[str, str]) -> pa.Table | None:
    """Every clip of the sources in `uris` (source_id -> URI of today), each once, in order of clip_id, with a column
    `fragment` that says where its frames are; None where there is no clip."""
    tables = []
    for fragment in state.fragments:
        rows = fragment.rows(store)
        rows = rows.filter(pc.is_in(rows["source_id"], pa.array(list(uris), pa.string())))
        if rows.num_rows:
            tables.append(rows.append_column("fragment", pa.array([fragment.name] * rows.num_rows)))
    if not tables:
        return None
    table = first_of_each(pa.concat_tables(tables).sort_by([("clip_id", "ascending"), ("fragment", "ascending")]))
    of_today = pa.array([uris[source] for source in table["source_id"].to_pylist()])
    table = table.set_column(table.schema.get_field_index("source_uri"), "source_uri", of_today)
    return table.set_column(table.schema.get_field_index("shot_index"), "shot_index", _shot_numbers(table))


def _shot_numbers(table: pa.Table) -> pa.Array:
    """The number of each clip's shot in its source, int32. The scan counts from zero in every segment; parts of one
    long shot have one number."""
    order = pc.sort_indices(table, [("source_id", "ascending"), ("start_pts", "ascending")])
    source = table["source_id"].combine_chunks().dictionary_encode().indices.take(order).to_numpy()
    counted = table["shot_index"].combine_chunks().take(order).to_numpy()
    fresh = np.ones(len(counted), bool)
    fresh[1:] = (source[1:] != source[:-1]) | (counted[1:] != counted[:-1])
    shots = np.cumsum(fresh) - 1
    first = np.maximum.accumulate(np.where(np.concatenate([[True], source[1:] != source[:-1]]), shots, 0))
    numbers = np.empty(len(counted), np.int32)
    numbers[order.to_numpy()] = shots - first
    return pa.array(numbers)


def embed_rows(store: Store, recipe: Recipe) -> pa.Table | None:
    """Everything embedded under this recipe, a clip once: of several rows, the one that more filters scored."""
    table = _rows(store, "state/embed", passes.embed_fingerprint(recipe))
    if table is None:
        return None
    table = table.append_column("order", pc.negate(pc.list_value_length(table["scored"])))
    return first_of_each(table.sort_by([("clip_id", "ascending"), ("order", "ascending")])).drop_columns("order")


def caption_rows(store: Store, recipe: Recipe) -> pa.Table | None:
    """Everything captioned under this recipe, a clip once."""
    table = _rows(store, "state/caption", passes.caption_fingerprint(recipe))
    return None if table is None else first_of_each(table.sort_by("clip_id"))


def _rows(store: Store, folder: str, wanted: str) -> pa.Table | None:
    tables = [
        fragment.rows(store).append_column("at", pa.array([fragment.name] * fragment.rows(store).num_rows))
        for fragment in read_fragments(store, folder)
        if fragment.done.get("fingerprint") == wanted
    ]
    return pa.concat_tables(tables) if tables else None


def first_of_each(table: pa.Table) -> pa.Table:
    """The first row of every clip_id, of a table sorted by it."""
    ids = table["clip_id"].combine_chunks()
    if len(ids) < 2:
        return table
    fresh = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    return table.filter(pa.concat_arrays([pa.array([True]), fresh]))


def join(left: pa.Table, right: pa.Table | None, schema: pa.Schema) -> pa.Table:
    """`left` with the columns of `schema` from the rows of `right` with the same clip_id, null where there is none."""
    fields = [f for f in schema if f.name not in left.column_names]
    if right is None:
        columns = [pa.nulls(left.num_rows, f.type) for f in fields]
    else:
        at = pc.index_in(left["clip_id"], right["clip_id"])
        columns = [right[f.name].take(at) for f in fields]
    for kind, column in zip(fields, columns, strict=True):
        left = left.append_column(kind, column)
    return left
