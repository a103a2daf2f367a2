"""The pass `pack`: kept clips are encoded into shards.

A shard's name says its content, so shards of several builds lie beside each other until dataset.json names the new.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.recipe import Recipe, to_dict
from pipeline.engine.base import Machine, Stage
from pipeline.media import encode
from pipeline.pack.sample_json import INTERNAL, content
from pipeline.pack.shards import INDEX, ShardPlan, ShardResult, index_path, listed, plan_shards
from pipeline.pack.worker import Pack, PackUnit
from pipeline.passes.base import Outlook
from pipeline.passes.snapshot import Snapshot
from pipeline.selection.select import with_reason
from pipeline.storage.store import Store
from pipeline.tables.compaction import SPAN_ROWS
from pipeline.tables.fragments import fingerprint, plain, replace_column, write_fragment
from pipeline.tables.published import RETIRED

ROWS = "state/pack"  # rows of the clips of shards that are to be written


class PackPass:
    name, measure = "pack", "clips"

    def fingerprint(self, recipe: Recipe) -> str:
        return fingerprint("pack", encode.VERSION, to_dict(recipe.pack))

    def schema(self, recipe: Recipe) -> pa.Schema:
        return INDEX

    def uses_gpu(self, recipe: Recipe) -> bool:
        return False

    def pending(self, snapshot: Snapshot, workers: int) -> Iterator[PackUnit]:
        """The shards that are not there yet. Notes in the snapshot which there are to be, and writes the rows of the
        missing ones' clips to the dataset, where workers read them."""
        store, finished = snapshot.store, listed(snapshot.store)
        missing, snapshot.shards = [], []
        for plan in whole_plans(snapshot):
            snapshot.shards.append((plan.path, plan.name))
            if plan.name not in finished:
                rows = f"{ROWS}/{fingerprint(plan.name)}.parquet"
                write_fragment(store, rows, plan.rows(), {})
                ids = plan.rows()["clip_id"]
                missing.append((plan.path, rows, len(plan.clips), ids[0].as_py(), ids[-1].as_py()))
        if not missing:
            return
        tars = [*(shard.path for shard in finished.values() if shard.clips), *store.list(RETIRED, ".tar")]
        lenders = [(path, PurePosixPath(path).parent.name, *_ends(store, path)) for path in tars]
        for path, rows, count, first, last in missing:
            bucket = PurePosixPath(path).parent.name
            lent = tuple(tar for tar, of, least, most in lenders if of == bucket and least <= last and most >= first)
            yield PackUnit(path, rows, count, lent)

    def stages(self, store: Store, recipe: Recipe, machine: Machine) -> Sequence[Stage]:
        return [Stage(Pack, (store, recipe), PackUnit, cpus=1.0)]

    def outlook(self, snapshot: Snapshot) -> Outlook:
        finished = listed(snapshot.store)
        pending = sum(len(plan.clips) for plan in whole_plans(snapshot) if plan.name not in finished)
        return Outlook(pending, snapshot.kept.num_rows, "in shards to write")


def whole_plans(snapshot: Snapshot) -> Iterator[ShardPlan]:
    """The shards of the kept clips, with all that their samples say, in order of path; each path with the content."""
    kept, clips = snapshot.kept, snapshot.selected
    tables = snapshot.joined_rows(clips, without=INTERNAL)
    rows = (table.filter(table["keep"]) for table in tables)
    plans = plan_shards(kept, snapshot.recipe)
    shard, group = np.zeros(kept.num_rows, np.int32), np.zeros(len(plans), np.int64)
    filled = 0
    for number, plan in enumerate(plans):
        shard[plan.clips], group[number] = number, filled // SPAN_ROWS
        filled += len(plan.clips)
    with tempfile.TemporaryDirectory(prefix="clipmill-") as scratch:
        # Rows go through files by groups of shards, so that a few are in memory at once.
        with contextlib.ExitStack() as stack:
            files: dict[int, pa.RecordBatchFileWriter] = {}
            at = 0
            for table in rows:
                table = table.drop_columns([name for name in INTERNAL if name in table.column_names])
                table = table.append_column("number", pa.array(shard[at : at + table.num_rows]))
                at += table.num_rows
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
                yield replace(plan, path=f"{stem}-{content(part, plan.options)[:8]}.tar")


def _ends(store: Store, tar: str) -> tuple[str, str]:
    """The first and the last clip of a shard."""
    try:
        with store.open(str(index_path(Path(tar)))) as file:
            keys = pq.read_table(file, columns=["key"])["key"]
    except (FileNotFoundError, pa.ArrowInvalid):  # of a build that was killed
        return "~", ""
    return (keys[0].as_py(), keys[-1].as_py()) if len(keys) else ("~", "")


def with_shards(snapshot: Snapshot) -> tuple[pa.Table, list[ShardResult]]:
    """The selected clips with the path of each clip's shard, and the finished shards, after `pending` and the pass. A
    clip that could not be encoded is not kept after all, for the reason `encoding`."""
    clips, finished = snapshot.selected, listed(snapshot.store)
    kept = np.flatnonzero(clips["keep"].to_numpy())
    number = np.full(len(clips), -1, np.int32)
    failed: set[str] = set()
    plans = plan_shards(snapshot.kept, snapshot.recipe)
    for i, (plan, (_, name)) in enumerate(zip(plans, snapshot.shards, strict=True)):
        if name in finished:
            number[kept[plan.clips]] = i
            failed |= {clip for clip, _ in finished[name].failures}
        else:
            failed |= set(plan.rows()["clip_id"].to_pylist())
    if failed:
        out = pc.is_in(clips["clip_id"], pa.array(sorted(failed))).to_numpy()
        number[out] = -1
        clips = replace_column(clips, "keep", pa.array(clips["keep"].to_numpy() & ~out))
        clips = replace_column(clips, "rejected_by", with_reason(clips["rejected_by"], out, "encoding"))
    paths = pa.array([path for path, _ in snapshot.shards], pa.string())
    column = pa.DictionaryArray.from_arrays(pa.array(number, mask=number < 0), paths)
    return clips.append_column("shard", column), [finished[name] for _, name in snapshot.shards if name in finished]
