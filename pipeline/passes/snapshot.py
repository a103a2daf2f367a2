"""The committed results of earlier passes, as the tables that the next pass, the plan and the published dataset need.

Sources and clips are rows of Arrow tables rather than objects, because there may be millions.
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

SELECTED_BY = (  # columns that selection, planning and counting read, in addition to the columns with thresholds
    *("clip_id", "source_id", "source_uri", "shot_index", "start", "end", "frames", "crop_w", "crop_h", "dropped"),
    *("color_transfer", "unit", "caption_error", *QUALITY),
)
IN_MEMORY = (  # columns of clips that are kept in memory after selection
    *("clip_id", "source_uri", "start", "end", "frames", "caption"),
    *(*SELECTED.names, "balance_cluster", "balance_weight", "pack_frames", "decision"),
)


class PlannedShard(NamedTuple):
    """A shard of the kept clips. `name` is ShardPlan.name; `finished`: whether it existed when shards were planned."""

    path: str
    name: str
    positions: np.ndarray  # (k,) int64: its clips, as row numbers of `Snapshot.kept`
    finished: bool


class Snapshot:
    """The current sources and clips of a build. Tables are read on first use, and again after `refresh`.

    `decisions` (rows of DECISIONS) are fixed for the duration of the build.
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
        self.shards: list[PlannedShard] = []  # ordered by path; set by the pass `transcode`

    def refresh(self) -> None:
        """Discard the tables in memory; call after a pass has committed rows."""
        for name in ("sources", "scanned", "_clips", "selected"):
            self.__dict__.pop(name, None)

    @cached_property
    def kept_by_hand(self) -> frozenset[str]:
        """The ids of the clips that a person keeps."""
        kept = self.decisions.filter(pc.equal(self.decisions["decision"], "keep"))
        return frozenset(kept["clip_id"].to_pylist())

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
        """Return every clip with the columns of selection, computed without the scores that need a caption."""
        clips, embeddings = self._clips
        return select(
            clips, self.recipe, fingerprints.late_columns(self.recipe), captioned=False, embeddings=embeddings
        )

    @cached_property
    def selected(self) -> pa.Table:
        """Every clip with the columns of IN_MEMORY, which include those of selection."""
        clips, embeddings = self._clips
        clips = select(clips, self.recipe, fingerprints.late_columns(self.recipe), embeddings=embeddings)
        del self.__dict__["_clips"]  # free memory for the columns that the report reads
        return clips.select([name for name in clips.column_names if name in IN_MEMORY])

    @property
    def kept(self) -> pa.Table:
        return self.selected.filter(self.selected["keep"])

    def joined_rows(self, clips: pa.Table, without: Collection[str] = ()) -> Iterator[pa.Table]:
        """Yield tables with all columns, except `without`, of every clip of the sources, and the columns that selection
        added to `clips`."""
        first, recipe = 0, self.recipe
        schemas = (
            of(recipe) for of in (fingerprints.scan_schema, fingerprints.embed_schema, fingerprints.caption_schema)
        )
        columns = {name for schema in schemas for name in schema.names} - set(without)
        for rows in committed.clips(self.store, recipe, self.sources, columns):
            rows = with_texts(rows, recipe.caption)
            selected = clips.slice(first, rows.num_rows)
            first += rows.num_rows
            for name in selected.column_names:
                if name not in rows.column_names:
                    rows = rows.append_column(name, selected[name])
            yield with_edited_captions(rows, self.decisions)


def file_table(files: Sequence[DiscoveredFile]) -> pa.Table:
    """Convert `files` to a table with the columns uri, size, stamp, metadata (JSON or null) and key, which identifies a
    version of a file."""
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
    """Return rows of tables/sources, ordered by URI, with `size` and `start`. Of files with equal content the first is
    used; files that are not identified yet are omitted."""
    files = file_table(discovered)
    identified_rows = with_key(committed.identified(store, limits))
    positions = pc.index_in(files["key"], identified_rows["key"].combine_chunks())
    files, positions = files.filter(pc.is_valid(positions)), pc.drop_null(positions)
    rows = identified_rows.take(positions).drop_columns(["stamp", "key"]).rename_columns({"uri": "source_uri"})
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
    """Return every clip of the sources with the columns that selection reads, and the clips' embeddings.

    Clips are in the order of `committed.clips`. Embeddings stay on disk; they are None if no recipe option needs them
    or no clip has one. Texts are not loaded: `caption` is an empty string for a clip with a caption, else null.
    """
    uses_embeddings = recipe.select.duplicates or recipe.select.balance_clusters
    columns = {*SELECTED_BY, *recipe.select.thresholds, *(("phash", "embedding") if uses_embeddings else ())}
    slim, file = [], tempfile.TemporaryFile()  # deleted when the returned Embeddings are garbage-collected
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
    for name in ("unit", "scan_fragment", "embed_fragment"):
        column = rows[name].combine_chunks()
        if not pa.types.is_dictionary(column.type):
            rows = rows.set_column(rows.schema.get_field_index(name), name, column.dictionary_encode())
    return rows.combine_chunks()
