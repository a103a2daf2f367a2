"""The pass `transcode`: encode the kept clips of unfinished shards, in parts."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.recipe import Recipe, to_dict
from pipeline.engine.base import Machine, Stage
from pipeline.media import encode
from pipeline.pack.parts import SPOOL, part_file, parts_of, rows_file, spool_of
from pipeline.pack.sample_json import INTERNAL, content
from pipeline.pack.shards import ShardPlan, ShardResult, index_path, listed, plan_shards
from pipeline.pack.worker import Transcode, TranscodeUnit
from pipeline.passes.base import Outlook, Pass
from pipeline.passes.snapshot import PlannedShard, Snapshot
from pipeline.storage.store import Store
from pipeline.tables.compaction import RANGE_ROWS
from pipeline.tables.fragments import fingerprint, plain, write_fragment
from pipeline.tables.published import RETIRED


def pack_fingerprint(recipe: Recipe) -> str:
    """Return the fingerprint of the options of packing, which both passes that write shards share."""
    return fingerprint("pack", encode.VERSION, to_dict(recipe.pack))


class TranscodePass(Pass):
    name, measure = "transcode", "clips"

    def fingerprint(self, recipe: Recipe) -> str:
        return pack_fingerprint(recipe)

    def pending(self, snapshot: Snapshot, workers: int) -> Iterator[TranscodeUnit]:
        """Yield the missing parts of unfinished shards.

        Sets `snapshot.shards` to all planned shards, and writes the rows of unfinished shards to the dataset for the
        workers.
        """
        store, finished = snapshot.store, listed(snapshot.store)
        lenders: list[tuple[str, str, str, str]] | None = None  # read only if a shard is missing
        for plan, parts in _missing_parts(snapshot, finished):
            lenders = _lenders(store, finished.values()) if lenders is None else lenders
            rows, spool = plan.rows(), spool_of(plan.name)
            write_fragment(store, rows_file(spool), rows, {})
            bucket = PurePosixPath(plan.path).parent.name
            first, last = rows["clip_id"][0].as_py(), rows["clip_id"][-1].as_py()
            lent = tuple(tar for tar, name, low, high in lenders if name == bucket and low <= last and high >= first)
            for number, clips in parts:
                yield TranscodeUnit(spool, number, clips, lent)

    def stages(self, snapshot: Snapshot, machine: Machine) -> Sequence[Stage]:
        return [Stage(Transcode, (snapshot.store, snapshot.recipe), TranscodeUnit, cpus=1.0)]

    def outlook(self, snapshot: Snapshot) -> Outlook:
        missing = _missing_parts(snapshot, listed(snapshot.store))
        pending = sum(clips for _, parts in missing for _, clips in parts)
        return Outlook(pending, snapshot.kept.num_rows, "in shards to write")


def _missing_parts(
    snapshot: Snapshot, finished: Mapping[str, ShardResult]
) -> Iterator[tuple[ShardPlan, list[tuple[int, int]]]]:
    """Yield each unfinished shard with the number and the count of clips of each missing part. Sets `snapshot.shards`
    to all planned shards."""
    snapshot.shards = []
    spooled = set(snapshot.store.list(SPOOL, ".tar"))
    for positions, plan in whole_plans(snapshot):
        snapshot.shards.append(PlannedShard(plan.path, plan.name, positions, plan.name in finished))
        if plan.name not in finished:
            parts = [(i, len(rows)) for i, rows in enumerate(parts_of(plan.rows(), plan.options))]
            yield plan, [part for part in parts if part_file(spool_of(plan.name), part[0]) not in spooled]


def whole_plans(snapshot: Snapshot) -> Iterator[tuple[np.ndarray, ShardPlan]]:
    """Yield the shards of the kept clips, ordered by path: the row numbers of their clips in `snapshot.kept`, and the
    plan with all columns of their samples. Each path includes a hash of the content."""
    kept, clips = snapshot.kept, snapshot.selected
    tables = snapshot.joined_rows(clips, without=INTERNAL)
    rows = (table.filter(table["keep"]) for table in tables)
    plans = plan_shards(kept, snapshot.recipe)
    shard, group = np.zeros(kept.num_rows, np.int32), np.zeros(len(plans), np.int64)
    filled = 0
    for number, plan in enumerate(plans):
        shard[plan.clips], group[number] = number, filled // RANGE_ROWS
        filled += len(plan.clips)
    with tempfile.TemporaryDirectory(prefix="clipmill-") as scratch:
        # Rows are written to one temporary file per group of shards, so that one group is in memory at a time.
        with contextlib.ExitStack() as stack:
            files: dict[int, pa.RecordBatchFileWriter] = {}
            first = 0
            for table in rows:
                table = table.drop_columns([name for name in INTERNAL if name in table.column_names])
                table = table.append_column("number", pa.array(shard[first : first + table.num_rows]))
                first += table.num_rows
                groups = group[table["number"].to_numpy()]
                for of_group in np.unique(groups).tolist():
                    part = plain(table.filter(pa.array(groups == of_group)))
                    if of_group not in files:
                        path = f"{scratch}/{of_group}"
                        files[of_group] = stack.enter_context(pa.ipc.new_file(path, part.schema))
                    files[of_group].write_table(part)
        for of_group in sorted(files):
            with pa.memory_map(f"{scratch}/{of_group}") as mapped:
                table = pa.ipc.open_file(mapped).read_all()
            numbers, table = table["number"].to_numpy(), table.drop_columns(["number"])
            for number in np.flatnonzero(group == of_group).tolist():
                part = table.filter(pa.array(numbers == number)).sort_by("clip_id").combine_chunks()
                plan = replace(plans[number], table=part, clips=np.arange(part.num_rows))
                stem = plan.path.removesuffix(".tar")
                path = f"{stem}-{content(part, plan.options)[:8]}.tar"
                yield plans[number].clips, replace(plan, path=path)


def _lenders(store: Store, finished: Iterable[ShardResult]) -> list[tuple[str, str, str, str]]:
    """Return the shards that may hold media to reuse: path, bucket, first and last clip_id."""
    tars = [*(shard.path for shard in finished if shard.clips), *store.list(RETIRED, ".tar")]
    return [(path, PurePosixPath(path).parent.name, *_ends(store, path)) for path in tars]


def _ends(store: Store, tar: str) -> tuple[str, str]:
    """Return the first and the last clip_id of a shard; ("~", ""), an empty range, if its index is missing or empty."""
    try:
        with store.open(str(index_path(Path(tar)))) as file:
            keys = pq.read_table(file, columns=["key"])["key"]
    except (FileNotFoundError, pa.ArrowInvalid):  # left behind by a build that was killed
        return "~", ""
    return (keys[0].as_py(), keys[-1].as_py()) if len(keys) else ("~", "")
