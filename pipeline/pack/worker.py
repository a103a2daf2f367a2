"""The workers of the passes `transcode`, which writes the parts of shards, and `pack`, which joins them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.config.recipe import Recipe
from pipeline.config.video_models import resolved
from pipeline.pack.clip_encoder import ClipEncoder
from pipeline.pack.companions import load_companions
from pipeline.pack.parts import join_parts, part_file, parts_of, rows_file
from pipeline.pack.shards import ShardPlan, index_path, is_finished, stored_clips, write_shard
from pipeline.state.error_log import unforeseen, write_errors
from pipeline.state.units import UnitResult
from pipeline.storage.store import Store
from pipeline.tables.fragments import Fragment, fingerprint


@dataclass(frozen=True)
class TranscodeUnit:
    """Part `number` of the shard whose rows are in the folder `spool`. The shards `lent` may contain media to reuse."""

    spool: str
    number: int
    clips: int
    lent: tuple[str, ...] = ()

    @property
    def amount(self) -> float:
        return self.clips


@dataclass(frozen=True)
class PackUnit:
    """A shard to write: the path and name of its plan, and the folder `spool` of its parts."""

    path: str
    name: str
    spool: str
    clips: int

    @property
    def amount(self) -> float:
        return self.clips


class Transcode:
    """Encodes the clips of a unit and writes them as a part of their shard."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._options = store, resolved(recipe.pack)
        load_companions(self._options)  # downloads weights, because the child process has no network access
        self._encoder = ClipEncoder(recipe.scan, recipe.sources)

    def __call__(self, unit: TranscodeUnit) -> UnitResult:
        started = time.perf_counter()
        self._encoder.errors.clear()
        table = _rows(self._store, unit.spool)
        rows = parts_of(table, self._options)[unit.number]
        plan = ShardPlan(part_file(unit.spool, unit.number), self._options, table, rows)
        reuse = stored_clips(self._store, unit.lent, plan.rows()["clip_id"])
        with self._store.folder("") as folder:
            result = write_shard(plan, folder, reuse, self._encoder)
            write_errors(self._store, "transcode", fingerprint(plan.name), self._encoder.errors)
        return UnitResult(
            "transcode",
            unit.amount,
            counts={"clips": result.clips, "reused": result.reused, "failed": len(result.failures)},
            seconds={"total": time.perf_counter() - started, "video": result.seconds},
            fragment=str(index_path(Path(result.path))),
            unforeseen=unforeseen(self._encoder.errors),
        )


class Pack:
    """Writes the shard of a unit and deletes its parts."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._options = store, resolved(recipe.pack)

    def __call__(self, unit: PackUnit) -> UnitResult:
        started = time.perf_counter()
        if not is_finished(self._store, unit.path):  # true if a worker died after writing, before it returned
            self._write(unit)
        self._store.delete_folder(unit.spool)
        seconds = {"total": time.perf_counter() - started}
        return UnitResult("pack", unit.amount, {"shards": 1}, seconds, fragment=str(index_path(Path(unit.path))))

    def _write(self, unit: PackUnit) -> None:
        count = len(parts_of(_rows(self._store, unit.spool), self._options))
        self._store.delete(str(index_path(Path(unit.path))))  # an old index must never describe a new tar
        with self._store.fetched(unit.spool) as parts, self._store.folder("") as folder:
            tars = [part_file(unit.spool, number) for number in range(count)]
            join_parts(parts, tars, unit.name, unit.path, folder)


def _rows(store: Store, spool: str) -> pa.Table:
    return Fragment(rows_file(spool), {}).rows(store)
