"""What is to be done: the units of each pass that no earlier build has finished. The driver's side, before any work.

Sources and clips are columns here, never objects: there may be millions. Objects are made for what is left to do.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.recipe import Recipe
from pipeline.passes.caption_worker import chosen_text
from pipeline.scan.scan import segments
from pipeline.selection.duplicates import Embeddings, Vectors, matrix
from pipeline.selection.select import QUALITY
from pipeline.sources.discover import DiscoveredFile, Source
from pipeline.sources.http import SILENT
from pipeline.state import committed, fingerprints
from pipeline.state.units import CaptionPart, CaptionUnit, IdentifyUnit, Part, ScanUnit, UnitClips
from pipeline.storage.store import Store
from pipeline.tables.fragments import IdRange, read_table

IDENTIFY_UNIT = 32  # sources
BATCH = 10_000  # rows that are Python objects at once
CAPTION_UNIT = 64  # clips at least
CAPTION_BATCHES = 4  # of a unit: a batch's frames are decoded while the one before is captioned
FEW = 32  # workers: what a build on less may yet get
SMALLEST_UNIT = 10.0  # seconds of video: less is not worth a commit
OPENING = 1.0  # seconds of video that opening a file costs as much as
SELECTED_BY = (  # what selection, planning and counting read of a clip, beside the columns that have thresholds
    *("clip_id", "source_id", "source_uri", "shot_index", "start", "end", "frames", "crop_w", "crop_h", "dropped"),
    *("unit", "caption_error", *QUALITY),
)
PARTS = pa.schema(
    [
        ("key", pa.string()),  # of Part
        ("source_id", pa.string()),
        ("source_uri", pa.string()),
        ("duration", pa.float64()),
        ("first", pa.float64()),  # seconds: the segment; null for a whole source
        ("last", pa.float64()),
        ("seconds", pa.float64()),
    ]
)


def as_last_seen(found: Sequence[DiscoveredFile], store: Store) -> Sequence[DiscoveredFile]:
    """`found`, with the files of servers that do not answer now as the last build saw them; says so on stderr."""
    silent = pa.array([file.uri for file in found if file.stamp == SILENT], pa.string())
    if not len(silent):
        return found
    rows = read_table(store, "tables/sources", lambda field: field.name in ("source_uri", "source_id"))
    if rows is None:
        return found
    rows = rows.filter(pc.is_in(rows["source_uri"], silent))
    used = set(zip(rows["source_uri"].to_pylist(), rows["source_id"].to_pylist(), strict=True))
    known = committed.identified(store)
    known = known.filter(pc.and_(pc.is_in(known["uri"], silent), pc.not_equal(known["status"], committed.UNREACHABLE)))
    seen = {row["uri"]: row for row in known.to_pylist() if (row["uri"], row["source_id"]) in used}
    if seen:
        print(f"{len(seen):,} files are used as last seen: their servers do not answer", file=sys.stderr)
    return [
        replace(file, size=seen[file.uri]["size"], stamp=seen[file.uri]["stamp"]) if file.uri in seen else file
        for file in found
    ]


def found_files(found: Sequence[DiscoveredFile]) -> pa.Table:
    """`found` as columns: uri, size, stamp, metadata (JSON or null); `key` names a file as it is now."""
    columns: dict[str, list[Any]] = {name: [getattr(f, name) for f in found] for name in ("uri", "size", "stamp")}
    said = [json.dumps(dict(f.metadata), sort_keys=True, default=str) if f.metadata else None for f in found]
    schema = pa.schema([("uri", pa.string()), ("size", pa.int64()), ("stamp", pa.string()), ("metadata", pa.string())])
    return _with_key(pa.table({**columns, "metadata": said}, schema=schema))


def _with_key(files: pa.Table) -> pa.Table:
    key = pc.binary_join_element_wise(files["uri"], files["size"].cast(pa.string()), files["stamp"], "\0")
    return files.append_column("key", key)


def identify_units(found: Sequence[DiscoveredFile], store: Store) -> Iterator[IdentifyUnit]:
    """Files that no build has looked at since they last changed."""
    rows = _with_key(committed.identified(store))
    known = rows.filter(pc.not_equal(rows["status"], committed.UNREACHABLE))["key"].combine_chunks()
    new = np.flatnonzero(pc.is_in(found_files(found)["key"], known).to_numpy() == 0)
    for at in range(0, len(new), IDENTIFY_UNIT):
        yield IdentifyUnit(tuple(found[i] for i in new[at : at + IDENTIFY_UNIT]))


def source_rows(found: Sequence[DiscoveredFile], store: Store) -> pa.Table:
    """Rows of tables/sources, in order of URI, with `size` and `start`. Of several files with one content the first is
    used; files that are not identified yet are left out."""
    files, known = found_files(found), _with_key(committed.identified(store))
    at = pc.index_in(files["key"], known["key"].combine_chunks())
    files, at = files.filter(pc.is_valid(at)), pc.drop_null(at)
    rows = known.take(at).drop_columns(["stamp", "key"]).rename_columns({"uri": "source_uri"})
    rows = rows.append_column("metadata", files["metadata"]).combine_chunks()
    good = np.flatnonzero(pc.equal(rows["status"], "ok").to_numpy())
    ids = rows["source_id"].take(pa.array(good)).combine_chunks().dictionary_encode().indices.to_numpy()
    first = good[np.unique(ids, return_index=True)[1]][ids] if len(good) else good
    original = np.arange(rows.num_rows)
    original[good] = first
    copy = pa.array(original != np.arange(rows.num_rows))
    why = pc.binary_join_element_wise("the same content as ", rows["source_uri"].take(pa.array(original)), "")
    lost = pc.equal(rows["status"], committed.UNREACHABLE)
    rows = rows.set_column(rows.schema.get_field_index("status"), "status", pc.if_else(lost, "failed", rows["status"]))
    for name, value in (("status", pa.scalar("skipped")), ("error", why)):
        column = pc.if_else(copy, value, rows[name])
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


def parts_of(sources: pa.Table, recipe: Recipe) -> pa.Table:
    """What there is to scan, rows of PARTS: every usable source, long ones in segments; in order of source_id and
    time."""
    rows = sources.filter(pc.equal(sources["status"], "ok"))
    long = pc.greater(rows["duration"], recipe.scan.segment_seconds)
    split = []
    for row in rows.filter(long).to_pylist():
        spans = segments(row["start"], row["duration"], recipe.scan.segment_seconds)
        for span in spans if len(spans) > 1 else [None]:
            part = Part(Source(row["source_id"], ""), row["duration"], span)
            first, last = span or (None, None)
            split.append({**row, "key": part.key, "seconds": part.seconds, "first": first, "last": last})
    short = rows.filter(pc.invert(long))
    short = short.append_column("key", short["source_id"]).append_column("seconds", short["duration"])
    for name in ("first", "last"):
        short = short.append_column(name, pa.nulls(short.num_rows, pa.float64()))
    parts = pa.concat_tables([pa.Table.from_pylist(split, schema=PARTS), short.select(PARTS.names).cast(PARTS)])
    return parts.sort_by([("source_id", "ascending"), ("first", "ascending")])


def not_scanned(parts: pa.Table, done: committed.Scanned) -> pa.Table:
    return parts.filter(pc.invert(pc.is_in(parts["key"], done.keys)))


def scan_units(parts: pa.Table, recipe: Recipe, workers: int) -> Iterator[ScanUnit]:
    """Parts grouped to units of up to `segment_seconds` of video, and small enough that every worker gets some, also
    those that join later."""
    spread = (pc.sum(parts["seconds"]).as_py() or 0.0) / (2 * max(FEW, workers))
    size = min(recipe.scan.segment_seconds, max(spread, SMALLEST_UNIT))
    unit: list[Part] = []
    filled = 0.0
    for part in _objects(parts):
        if unit and filled + part.seconds > size:
            yield ScanUnit(tuple(unit))
            unit, filled = [], 0.0
        unit.append(part)
        filled += part.seconds + OPENING
    if unit:
        yield ScanUnit(tuple(unit))


def _objects(parts: pa.Table) -> Iterator[Part]:
    for batch in parts.to_batches(max_chunksize=BATCH):
        for row in batch.to_pylist():
            segment = None if row["first"] is None else (row["first"], row["last"])
            yield Part(Source(row["source_id"], row["source_uri"]), row["duration"], segment)


def embed_units(sources: pa.Table, store: Store, recipe: Recipe) -> Iterator[UnitClips]:
    """Clips of earlier scans that are still in question and lack a score, by the unit that has their frames."""
    kinds = {**fingerprints.columns_of(recipe, "scan"), **fingerprints.columns_of(recipe, "embed")}
    columns = {"dropped", "scored", *fingerprints.thresholds_of(recipe, kinds)}
    for rows in committed.clips(store, recipe, sources, columns):
        left = rows.filter(pa.array(fingerprints.needs_scoring(rows, recipe)))
        yield from _by_unit(_columns(left, ("scan_at", "unit", "source_id", "clip_id")))


def clip_rows(sources: pa.Table, store: Store, recipe: Recipe) -> tuple[pa.Table, Embeddings | None]:
    """Every clip of the sources with what selection reads of it, in the order of `state.clips`, and the clips'
    embeddings, which stay on disk. Texts are left out: `caption` is empty where there is one."""
    alike = recipe.select.duplicates or recipe.select.balance_clusters
    columns = {*SELECTED_BY, *recipe.select.thresholds, *(("phash", "embedding") if alike else ())}
    slim, file = [], tempfile.TemporaryFile()  # for as long as somebody holds the embeddings
    width = unknown = 0
    for rows in committed.clips(store, recipe, sources, columns):
        if "embedding" in rows.column_names:
            values = matrix(rows["embedding"].combine_chunks())
            if values is None:
                values = np.full((rows.num_rows, width), np.nan, np.float32)
                unknown += 0 if width else rows.num_rows
            elif not width:
                width = values.shape[1]
                file.write(np.full((unknown, width), np.nan, np.float32).tobytes())
            file.write(np.ascontiguousarray(values, np.float32).tobytes())
            rows = rows.drop_columns(["embedding"])
        slim.append(_slim(rows))
    file.flush()
    return pa.concat_tables(slim), functools.partial(Vectors, file, width) if width else None


def _slim(rows: pa.Table) -> pa.Table:
    texts = pc.if_else(pc.and_(rows["captioned"], pc.is_null(rows["caption_error"])), "", pa.scalar(None, pa.string()))
    rows = rows.append_column("caption", texts)
    rows = rows.drop_columns(["start_pts", "end_pts", "metadata", "caption_error"])
    for name in ("unit", "scan_at", "embed_at"):
        column = rows[name].combine_chunks()
        if not pa.types.is_dictionary(column.type):
            rows = rows.set_column(rows.schema.get_field_index(name), name, column.dictionary_encode())
    return rows.combine_chunks()


def caption_units(clips: pa.Table, recipe: Recipe) -> Iterator[CaptionUnit]:
    """Kept clips that have neither a caption nor a reason for none, by the units that have their frames."""
    left = clips.filter(pc.and_(clips["keep"], pc.invert(clips["captioned"])))
    size = max(CAPTION_BATCHES * recipe.caption.batch, CAPTION_UNIT)
    rows = _columns(left, ("source_id", "clip_id", "scan_at", "unit", "embed_at"))
    rows = rows.sort_by([("source_id", "ascending"), ("clip_id", "ascending")])
    for at in range(0, rows.num_rows, size):
        some = rows.slice(at, size)
        parts = []
        for clips_ in _by_unit(some):
            mine = some.filter(pc.is_in(some["clip_id"], pa.array(clips_.clip_ids)))
            parts.append(CaptionPart(clips_, tuple(sorted(set(mine["embed_at"].to_pylist())))))
        yield CaptionUnit(tuple(parts))


def _columns(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """Some columns as plain strings."""
    return pa.table({name: rows[name].cast(pa.string()) for name in names})


def _by_unit(rows: pa.Table) -> Iterator[UnitClips]:
    """`rows` (scan_at, unit, source_id, clip_id) by the unit, in the order in which units begin."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    columns = (rows[name].to_pylist() for name in ("scan_at", "unit", "source_id", "clip_id"))
    for at, unit, source, clip in zip(*columns, strict=True):
        found[at, unit].append((source, clip))
    for (at, unit), clips in found.items():
        sources = [source for source, _ in clips]
        yield UnitClips(unit, at, tuple(clip for _, clip in clips), IdRange(min(sources), max(sources) + "~"))


def joined_rows(
    clips: pa.Table, sources: pa.Table, store: Store, recipe: Recipe, without: Collection[str] = ()
) -> Iterator[pa.Table]:
    """All that is known of every clip but the columns `without`, table by table: `clips` are their `clip_rows` after
    selection, whose columns are added."""
    at = 0
    schemas = (fingerprints.scan_schema(recipe), fingerprints.embed_schema(recipe), fingerprints.caption_schema(recipe))
    columns = {name for schema in schemas for name in schema.names} - set(without)
    for rows in committed.clips(store, recipe, sources, columns):
        rows = rows.append_column("caption", chosen_text(rows, recipe.caption.text))
        decided = clips.slice(at, rows.num_rows)
        at += rows.num_rows
        for name in decided.column_names:
            if name not in rows.column_names:
                rows = rows.append_column(name, decided[name])
        yield rows
