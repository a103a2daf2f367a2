"""The pass `pack`: join the parts of each shard.

The path of a shard includes a hash of its content, so the shards of several builds coexist until dataset.json refers to
the new ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.recipe import Recipe
from pipeline.engine.base import Machine, Stage
from pipeline.pack.parts import spool_of
from pipeline.pack.shards import SOUND_INDEX, ShardResult, index_path, listed
from pipeline.pack.worker import Pack, PackUnit
from pipeline.passes.base import Outlook, Pass
from pipeline.passes.snapshot import Snapshot
from pipeline.passes.transcode import pack_fingerprint
from pipeline.selection.select import with_reason
from pipeline.storage.store import Store
from pipeline.tables.fragments import replace_column


class PackPass(Pass):
    name, measure = "pack", "clips"

    def fingerprint(self, recipe: Recipe) -> str:
        return pack_fingerprint(recipe)

    def pending(self, snapshot: Snapshot, workers: int) -> Iterator[PackUnit]:
        """Yield the shards that the pass `transcode` planned and that were not finished then."""
        for shard in snapshot.shards:
            if not shard.finished:
                yield PackUnit(shard.path, shard.name, spool_of(shard.name), len(shard.positions))

    def stages(self, snapshot: Snapshot, machine: Machine) -> Sequence[Stage]:
        return [Stage(Pack, (snapshot.store, snapshot.recipe), PackUnit, cpus=1.0)]

    def outlook(self, snapshot: Snapshot) -> Outlook:
        pending = sum(len(shard.positions) for shard in snapshot.shards if not shard.finished)
        return Outlook(pending, snapshot.kept.num_rows, "in shards to write")


def with_shards(snapshot: Snapshot) -> tuple[pa.Table, list[ShardResult]]:
    """Return the selected clips with the path of each clip's shard, and the finished shards.

    Called after the passes `transcode` and `pack`. A clip that could not be encoded is rejected with the reason
    `encoding`. With pack.audio=keep the columns of SOUND_INDEX are added.
    """
    clips, finished = snapshot.selected, listed(snapshot.store)
    kept = np.flatnonzero(clips["keep"].to_numpy())
    number = np.full(len(clips), -1, np.int32)
    failed: set[str] = set()
    for i, shard in enumerate(snapshot.shards):
        rows = kept[shard.positions]
        if shard.name in finished:
            number[rows] = i
            failed |= {clip for clip, _ in finished[shard.name].failures}
        else:
            failed |= set(clips["clip_id"].take(pa.array(rows)).to_pylist())
    if failed:
        rejected = pc.is_in(clips["clip_id"], pa.array(sorted(failed))).to_numpy()
        number[rejected] = -1
        clips = replace_column(clips, "keep", pa.array(clips["keep"].to_numpy() & ~rejected))
        clips = replace_column(clips, "rejected_by", with_reason(clips["rejected_by"], rejected, "encoding"))
    paths = pa.array([shard.path for shard in snapshot.shards], pa.string())
    column = pa.DictionaryArray.from_arrays(pa.array(number, mask=number < 0), paths)
    shards = [finished[shard.name] for shard in snapshot.shards if shard.name in finished]
    clips = clips.append_column("shard", column)
    return (_with_sound(snapshot.store, clips, shards) if snapshot.recipe.pack.audio == "keep" else clips), shards


def _with_sound(store: Store, clips: pa.Table, shards: Sequence[ShardResult]) -> pa.Table:
    """Add the columns of SOUND_INDEX from the indexes of the shards; null for clips that are not kept."""
    columns = ["key", *SOUND_INDEX.names]
    tables = [pa.schema([("key", pa.string()), *SOUND_INDEX]).empty_table()]
    for shard in shards:
        with store.open(str(index_path(Path(shard.path)))) as file:
            tables.append(pq.read_table(file, columns=columns).replace_schema_metadata())
    index = pa.concat_tables(tables)
    rows = pc.index_in(clips["clip_id"], index["key"].combine_chunks())
    for name in SOUND_INDEX.names:
        clips = clips.append_column(name, index[name].take(rows))
    return clips
