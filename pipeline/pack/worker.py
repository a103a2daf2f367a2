"""The pack pass: which shards are there already, which old ones lend their clips, and the worker that writes one."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.recipe import Recipe
from pipeline.pack.sample_json import INTERNAL
from pipeline.pack.shards import ShardPlan, ShardResult, index_path, listed, stored_clips, write_shard
from pipeline.state.units import UnitResult
from pipeline.storage.store import Store
from pipeline.tables.compaction import SPAN_ROWS
from pipeline.tables.fragments import Fragment, fingerprint, write_fragment

ROWS = "state/pack"  # rows of the clips of shards that are to be written
ASIDE = "state/old"  # shards that are not wanted now, until a build is finished for which no source was out of reach


@dataclass(frozen=True)
class PackUnit:
    """A shard to write: its clips' rows are the fragment `rows`; some may lie encoded in the shards `lent`."""

    path: str
    rows: str
    clips: int
    lent: tuple[str, ...] = ()

    @property
    def amount(self) -> float:
        return self.clips


class Pack:
    """A plan -> a shard."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._options, self._sources = store, recipe.pack, recipe.sources

    def __call__(self, unit: PackUnit) -> UnitResult:
        started = time.perf_counter()
        table = Fragment(unit.rows, {}).rows(self._store)
        plan = ShardPlan(unit.path, self._options, table, np.arange(table.num_rows))
        reuse = stored_clips(self._store, unit.lent, table["clip_id"])
        self._store.delete(str(index_path(Path(unit.path))))  # no index of an old shard beside a new tar
        with self._store.folder("") as folder:
            result = write_shard(plan, folder, reuse, self._sources)
        counts = {"clips": result.clips, "reused": result.reused, "failed": len(result.failures)}
        seconds = {"total": time.perf_counter() - started, "video": result.seconds}
        return UnitResult("pack", unit.amount, counts=counts, seconds=seconds, fragment=result.path)


def with_rows(plans: Sequence[ShardPlan], kept: int, tables: Iterable[pa.Table]) -> Iterator[ShardPlan]:
    """`plans` with all that their samples say. A plan's clips are numbers of rows, of which there are `kept`; `tables`
    have these rows, in order, whole. They go through files by groups of shards, so that a few are in memory at once.
    """
    shard, group = np.zeros(kept, np.int32), np.zeros(len(plans), np.int64)
    filled = 0
    for number, plan in enumerate(plans):
        shard[plan.clips], group[number] = number, filled // SPAN_ROWS
        filled += len(plan.clips)
    with tempfile.TemporaryDirectory(prefix="clipmill-") as scratch:
        with contextlib.ExitStack() as stack:
            files: dict[int, pa.RecordBatchFileWriter] = {}
            at = 0
            for table in tables:
                table = table.drop_columns([name for name in INTERNAL if name in table.column_names])
                table = table.append_column("number", pa.array(shard[at : at + table.num_rows]))
                at += table.num_rows
                groups = group[table["number"].to_numpy()]
                for one in np.unique(groups).tolist():
                    some = plain(table.filter(pa.array(groups == one)))
                    if one not in files:
                        path = f"{scratch}/{one}"
                        files[one] = stack.enter_context(pa.ipc.new_file(path, some.schema))
                    files[one].write_table(some)
        for one in sorted(files):
            with pa.memory_map(f"{scratch}/{one}") as mapped:
                table = pa.ipc.open_file(mapped).read_all()
            numbers, table = table["number"].to_numpy(), table.drop_columns(["number"])
            for number in np.flatnonzero(group == one).tolist():
                rows = table.filter(pa.array(numbers == number)).sort_by("clip_id").combine_chunks()
                yield ShardPlan(plans[number].path, plans[number].options, rows, np.arange(rows.num_rows))


def plain(table: pa.Table) -> pa.Table:
    """`table` without dictionaries."""
    for i, field in enumerate(table.schema):
        kind = field.type
        if pa.types.is_list(kind) and pa.types.is_dictionary(kind.value_type):
            kind = pa.list_(kind.value_type.value_type)
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        table = table.set_column(i, field.name, table.column(i).cast(kind))
    return table


def pack_units(plans: Iterable[ShardPlan], store: Store) -> tuple[dict[str, str], list[PackUnit]]:
    """The names of all plans by their shards' paths, and the shards that are not there yet. Old ones that are not
    wanted any more are set aside, so that their clips can be taken over while new shards take their names."""
    have = listed(store)
    names, left = {}, []
    for plan in plans:
        names[plan.path] = plan.name
        if plan.name not in have:
            rows = f"{ROWS}/{fingerprint(plan.name)}.parquet"
            write_fragment(store, rows, plan.rows(), {})
            ids = plan.rows()["clip_id"]
            left.append((plan.path, rows, len(plan.clips), ids[0].as_py(), ids[-1].as_py()))
    if not left:
        return names, []
    retire_shards(store, have, names.values())
    old = [(path, PurePosixPath(path).parent.name, *_ends(store, path)) for path in store.list(ASIDE, ".tar")]
    units = []
    for path, rows, count, first, last in left:
        bucket = PurePosixPath(path).parent.name
        lent = tuple(tar for tar, of, least, most in old if of == bucket and least <= last and most >= first)
        units.append(PackUnit(path, rows, count, lent))
    return names, units


def _ends(store: Store, tar: str) -> tuple[str, str]:
    """The first and the last clip of a shard."""
    with store.open(str(index_path(Path(tar)))) as file:
        keys = pq.read_table(file, columns=["key"])["key"]
    return (keys[0].as_py(), keys[-1].as_py()) if len(keys) else ("~", "")


def retire_shards(store: Store, have: Mapping[str, ShardResult], wanted: Collection[str]) -> None:
    """Moves the shards of `have` (by the names of their plans) that are not `wanted` to where no reader finds them."""
    for name in have.keys() - set(wanted):
        old = Path(have[name].path)
        new = Path(ASIDE) / old.parent.name / f"{fingerprint(name)}.tar"
        if not have[name].clips:  # none could be encoded: there is no tar
            store.delete(str(index_path(old)))
            continue
        for before, after in ((index_path(old), index_path(new)), (old, new)):
            store.move(str(before), str(after))
