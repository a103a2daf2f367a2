"""Committed work: the fragments of earlier builds that are valid under the recipe, with the rows of all passes
joined."""

from __future__ import annotations

import bisect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.recipe import Recipe, ScanOptions
from pipeline.state import fingerprints
from pipeline.state.limits import is_raised
from pipeline.storage.store import Store
from pipeline.tables import compaction
from pipeline.tables.compaction import Runs, id_ranges
from pipeline.tables.fragments import Fragment, IdRange, fingerprint, frames_of, read_fragments, write_fragment

KEYS = ("clip_id", "source_id", "start_pts", "end_pts", "shot_index", "unit")  # columns that sorting and joining need

UNREACHABLE = "unreachable"  # a source's status: its server did not answer, so the next build tries again


@dataclass
class ScanState:
    """The keys of the parts whose scan is finished; by key, why parts failed, were unreachable or are incomplete; and
    the fragments with their rows. Unreachable parts are not finished."""

    keys: pa.Array
    errors: Mapping[str, str]
    unreachable: Mapping[str, str]
    notes: Mapping[str, str]
    fragments: Sequence[Fragment]


def merge(store: Store, recipe: Recipe) -> None:
    """Merge small fragments once there are many. Only the build that holds the dataset's lock may call this."""
    for folder, made_by in (
        ("state/scan", fingerprints.scan_fingerprint(recipe)),
        ("state/embed", fingerprints.embed_fingerprint(recipe)),
        ("state/caption", fingerprints.caption_fingerprint(recipe)),
    ):
        compaction.merge(store, folder, made_by)
    fragments = list(read_fragments(store, "state/sources"))
    if len(fragments) > compaction.LOOSE:
        name = f"state/sources/{fingerprint([f.name for f in fragments])}.parquet"
        write_fragment(store, name, all_identified(store), {})
        for fragment in fragments:
            if fragment.name != name:
                store.delete(fragment.name)


def identified(store: Store, options: ScanOptions) -> pa.Table:
    """Return rows of IDENTIFIED of every file that a build has read, but for those that failed on a limit which
    `options` have raised since. Where there are several of a file, the first is valid."""
    rows = all_identified(store)
    values = rows["limits"].drop_null().unique().to_pylist()
    raised = [value for value in values if is_raised(json.loads(value), options)]
    return rows.filter(pc.invert(pc.is_in(rows["limits"], pa.array(raised, pa.string()))))


def all_identified(store: Store) -> pa.Table:
    """Return rows of IDENTIFIED of every file that a build has read: files without a fault of limits or servers first,
    unreachable ones last."""
    rows = [fragment.rows(store).replace_schema_metadata() for fragment in read_fragments(store, "state/sources")]
    table = pa.concat_tables(
        [fingerprints.IDENTIFIED.empty_table(), *(part for part in rows if part.schema == fingerprints.IDENTIFIED)]
    )
    lost, over = pc.equal(table["status"], UNREACHABLE), pc.is_valid(table["limits"])
    rest = pc.invert(pc.or_(lost, over))
    return pa.concat_tables([table.filter(rows) for rows in (rest, pc.and_not(over, lost), lost)])


def scanned(store: Store, recipe: Recipe) -> ScanState:
    """Return the parts scanned under this recipe, but for those that a limit cut off which the recipe has raised."""
    frames = {name: size for name, size, _ in store.stat("tables/frames")}
    errors, unreachable, notes = dict[str, str](), dict[str, str](), dict[str, str]()
    keys, fragments = [], []
    for fragment in compaction.current(store, "state/scan", fingerprints.scan_fingerprint(recipe)):
        details = {key: value for key, value in fragment.done.items() if key != "parts"}
        fragments.append(replace(fragment, done=details))
        good = []
        for part in fragment.done["parts"]:
            size = frames.get(frames_of(part["unit"]))
            if size is None or part["frames_bytes"] not in (size, None):
                continue  # the file of frames is missing or truncated
            if part.get("error"):
                if is_raised(part.get("limits", {}), recipe.scan):
                    continue
                (unreachable if part["unreachable"] else errors)[part["key"]] = part["error"]
                continue
            good.append(part["key"])
            if part.get("note"):
                notes[part["key"]] = part["note"]
        keys.append(pa.array(good, pa.string()))
    done = pa.concat_arrays([*keys, pa.array([], pa.string())])
    failed = pa.array(list(errors), pa.string())
    failed = failed.filter(pc.invert(pc.is_in(failed, done)))
    errors = {key: errors[key] for key in failed.to_pylist()}
    finished = pa.concat_arrays([done, failed])
    lost = pa.array(list(unreachable), pa.string())
    lost = lost.filter(pc.invert(pc.is_in(lost, finished))).to_pylist()
    return ScanState(finished, errors, {key: unreachable[key] for key in lost}, notes, fragments)


def clips(
    store: Store, recipe: Recipe, sources: pa.Table, columns: Collection[str] | None = None
) -> Iterator[pa.Table]:
    """Yield every clip of `sources` (with source_id, source_uri, status and metadata) with the columns of all passes,
    or with `columns` only; null where a pass has no row yet. Tables come in order of source_id and time.

    Further columns: `metadata`; `unit`, which names the file of frames; `scan_fragment` and `embed_fragment`, which
    hold the rows; and `captioned`, whether the caption pass has finished the clip.
    """
    usable = sources.filter(pc.equal(sources["status"], "ok")).select(["source_id", "source_uri", "metadata"])
    usable = usable.sort_by("source_id").combine_chunks()
    embed, caption = fingerprints.embed_fingerprint(recipe), fingerprints.caption_fingerprint(recipe)
    with ExitStack() as stack:
        scan, *later = (
            stack.enter_context(Runs(store, fragments))
            for fragments in (
                scanned(store, recipe).fragments,
                compaction.current(store, "state/embed", embed),
                compaction.current(store, "state/caption", caption),
            )
        )
        schemas = (fingerprints.embed_schema(recipe), fingerprints.caption_schema(recipe))
        empty = True
        for ids in id_ranges(scan.count):
            rows = scan.rows(ids, columns and {*columns, *KEYS})
            if rows is not None:
                empty = False
                later_rows = [
                    runs.rows(ids, columns and {*columns, "clip_id", "source_id", "scored"}) for runs in later
                ]
                yield _joined(_of_today(rows, usable, ids), later_rows, schemas, columns)
                pa.default_memory_pool().release_unused()  # otherwise Arrow keeps freed memory in its pool
        if empty:
            rows = pa.schema([*fingerprints.scan_schema(recipe), ("at", pa.string())]).empty_table()
            yield _joined(_of_today(rows, usable, IdRange()), (None, None), schemas, columns)


def _joined(
    rows: pa.Table, later: Sequence[pa.Table | None], schemas: Sequence[pa.Schema], columns: Collection[str] | None
) -> pa.Table:
    for table, schema, at in zip(later, schemas, ("embed_fragment", "caption_fragment"), strict=True):
        rows = join(rows, table, [f for f in schema if columns is None or f.name in columns], at)
    captioned = pc.is_valid(rows["caption_fragment"])
    return rows.drop_columns(["caption_fragment"]).append_column("captioned", captioned)


def _of_today(rows: pa.Table, sources: pa.Table, ids: IdRange) -> pa.Table:
    """Return the rows of the range `ids` whose source is among `sources` (sorted by source_id), with the source's
    current URI and metadata, and with shots numbered."""
    current = sources["source_id"].chunk(0)
    first, end = (bisect.bisect_left(current, edge, key=pa.StringScalar.as_py) for edge in (ids.first, ids.end or "~"))
    at = pc.index_in(rows["source_id"], current.slice(first, end - first))
    rows, at = rows.filter(pc.is_valid(at)), pc.add(pc.drop_null(at), first).combine_chunks()
    rows = rows.rename_columns({"at": "scan_fragment"})
    for name in ("source_id", "source_uri", "metadata"):
        column = pa.DictionaryArray.from_arrays(at.cast(pa.int32()), sources[name].chunk(0))
        position = rows.schema.get_field_index(name)
        rows = rows.append_column(name, column) if position < 0 else rows.set_column(position, name, column)
    shots = _shot_numbers(at.to_numpy(), rows["shot_index"].to_numpy())
    return rows.set_column(rows.schema.get_field_index("shot_index"), "shot_index", shots)


def _shot_numbers(sources: np.ndarray, counted: np.ndarray) -> pa.Array:
    """Return the index of each clip's shot in its source, (n,) int32, for rows in order of source and time. `sources`
    are (n,) source numbers; `counted` are the scan's shot numbers, which start at zero in every segment. Parts of one
    long shot share a number."""
    fresh = np.ones(len(counted), bool)
    new = np.ones(len(counted), bool)
    new[1:] = sources[1:] != sources[:-1]
    fresh[1:] = new[1:] | (counted[1:] != counted[:-1])
    shots = np.cumsum(fresh) - 1
    return pa.array((shots - np.maximum.accumulate(np.where(new, shots, 0))).astype(np.int32))


def join(table: pa.Table, other: pa.Table | None, fields: Sequence[pa.Field], at: str) -> pa.Table:
    """Return `table` with the columns `fields` that it lacks, taken from the rows of `other` with the same clip_id
    (null where there is none), and with the column `at` of `other` under that name."""
    fields = [f for f in fields if f.name not in table.column_names]
    if other is None:
        columns = [pa.nulls(table.num_rows, f.type) for f in [*fields, pa.field(at, pa.string())]]
    else:
        rows = pc.index_in(table["clip_id"], other["clip_id"].combine_chunks())
        columns = [other[name].take(rows) for name in [*(f.name for f in fields), "at"]]
    for name, column in zip([*(f.name for f in fields), at], columns, strict=True):
        table = table.append_column(name, column)
    return table
