"""The committed work of earlier passes, as the tables that the next pass, the plan and the published dataset need.

Sources and clips are columns here, not objects: there may be millions.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.recipe import Recipe, ScanOptions
from pipeline.passes.caption_worker import with_texts
from pipeline.selection.duplicates import Embeddings, Vectors, matrix
from pipeline.selection.select import QUALITY, SELECTED, select
from pipeline.sources.discover import DiscoveredFile
from pipeline.state import committed, fingerprints
from pipeline.storage.store import Store
from pipeline.tables.decisions import DECISIONS, with_decisions, with_edited_captions

SELECTED_BY = (  # what selection, planning and counting read of a clip, beside the columns that have thresholds
    *("clip_id", "source_id", "source_uri", "shot_index", "start", "end", "frames", "crop_w", "crop_h", "dropped"),
    *("color_transfer", "unit", "caption_error", *QUALITY),
)
IN_MEMORY = (  # the columns of a clip that stay in memory after selection
    *("clip_id", "source_uri", "start", "end", "frames", "caption"),
    *(*SELECTED.names, "balance_cluster", "balance_weight", "pack_frames", "decision"),
)


class PlannedShard(NamedTuple):
    """A shard of the kept clips. `name` says its path and content; `finished`: there when the shards were planned."""

    path: str
    name: str
    clips: int
    finished: bool


class Snapshot:
    """The current sources and clips of a build; tables are read on first use, and again after `refresh`.

    `decisions` (rows of DECISIONS) stay what they were when the build began.
    """

    def __init__(
        self,
        store: Store,
        recipe: Recipe,
        files: Sequence[DiscoveredFile],
        decisions: pa.Table | None = None,
    ) -> None:
        self.store, self.recipe, self.files = store, recipe, files
        self.decisions = DECISIONS.empty_table() if decisions is None else decisions
        self.shards: list[PlannedShard] = []  # of the kept clips, in order of path, once the pass `transcode` planned

    def refresh(self) -> None:
        """Discard what was read, after a pass has committed more."""
        for name in ("sources", "scanned", "_clips", "selected"):
            self.__dict__.pop(name, None)

    @cached_property
    def sources(self) -> pa.Table:
        return source_rows(self.files, self.store, self.recipe.scan)

    @cached_property
    def scanned(self) -> committed.ScanState:
        return committed.scanned(self.store, self.recipe)

    @cached_property
    def _clips(self) -> tuple[pa.Table, Embeddings | None]:
        clips, embeddings = clip_rows(self.sources, self.store, self.recipe)
        return with_decisions(clips, self.decisions), embeddings

    @property
    def clip_count(self) -> int:
        return self._clips[0].num_rows

    def selected_before_captions(self) -> pa.Table:
        """Every clip, with the columns of selection as far as they are known without captions."""
        clips, embeddings = self._clips
        return select(
            clips, self.recipe, fingerprints.late_columns(self.recipe), captioned=False, embeddings=embeddings
        )

    @cached_property
    def selected(self) -> pa.Table:
        """Every clip with the columns of selection, and of its other columns those of IN_MEMORY."""
        clips, embeddings = self._clips
        clips = select(clips, self.recipe, fingerprints.late_columns(self.recipe), embeddings=embeddings)
        del self.__dict__["_clips"]  # before the report reads columns of its own
        return clips.select([name for name in clips.column_names if name in IN_MEMORY])

    @property
    def kept(self) -> pa.Table:
        return self.selected.filter(self.selected["keep"])

    def joined_rows(self, clips: pa.Table, without: Collection[str] = ()) -> Iterator[pa.Table]:
        """Yield all columns of every clip of the sources, except `without`, table by table, with the columns that
        selection added to `clips`."""
        for rows in joined_rows(clips, self.sources, self.store, self.recipe, without):
            yield with_edited_captions(rows, self.decisions)


def file_table(files: Sequence[DiscoveredFile]) -> pa.Table:
    """Convert `files` to columns: uri, size, stamp, metadata (JSON or null); `key` names the current version of a
    file."""
    columns: dict[str, list[Any]] = {
        "uri": [file.uri for file in files],
        "size": [file.size for file in files],
        "stamp": [file.revision for file in files],
    }
    metadata = [json.dumps(dict(f.metadata), sort_keys=True, default=str) if f.metadata else None for f in files]
    schema = pa.schema([("uri", pa.string()), ("size", pa.int64()), ("stamp", pa.string()), ("metadata", pa.string())])
    return with_key(pa.table({**columns, "metadata": metadata}, schema=schema))


def with_key(files: pa.Table) -> pa.Table:
    size = pc.fill_null(files["size"], 0).cast(pa.string())
    key = pc.binary_join_element_wise(files["uri"], size, files["stamp"], "\0")
    return files.append_column("key", key)


def source_rows(discovered: Sequence[DiscoveredFile], store: Store, limits: ScanOptions) -> pa.Table:
    """Return rows of tables/sources, in order of URI, with `size` and `start`. Of files with equal content the first is
    used; files that are not identified yet are left out."""
    files = file_table(discovered)
    identified_rows = with_key(committed.identified(store, limits))
    at = pc.index_in(files["key"], identified_rows["key"].combine_chunks())
    files, at = files.filter(pc.is_valid(at)), pc.drop_null(at)
    rows = identified_rows.take(at).drop_columns(["stamp", "key"]).rename_columns({"uri": "source_uri"})
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


def clip_rows(sources: pa.Table, store: Store, recipe: Recipe) -> tuple[pa.Table, Embeddings | None]:
    """Return every clip of the sources with the columns that selection reads, in the order of `state.clips`, and the
    clips' embeddings, which stay on disk. Texts are left out: `caption` is empty where there is one."""
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


def joined_rows(
    clips: pa.Table, sources: pa.Table, store: Store, recipe: Recipe, without: Collection[str] = ()
) -> Iterator[pa.Table]:
    """Yield all columns of every clip of `sources`, except `without`, table by table, with the columns that selection
    added to `clips`, their `clip_rows`."""
    at = 0
    schemas = (fingerprints.scan_schema(recipe), fingerprints.embed_schema(recipe), fingerprints.caption_schema(recipe))
    columns = {name for schema in schemas for name in schema.names} - set(without)
    for rows in committed.clips(store, recipe, sources, columns):
        rows = with_texts(rows, recipe.caption)
        decided = clips.slice(at, rows.num_rows)
        at += rows.num_rows
        for name in decided.column_names:
            if name not in rows.column_names:
                rows = rows.append_column(name, decided[name])
        yield rows
