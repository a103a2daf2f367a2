"""The pack worker: rows of a shard's clips in, the shard out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config.recipe import Recipe
from pipeline.config.video_models import resolved
from pipeline.pack.clip_encoder import ClipEncoder
from pipeline.pack.shards import ShardPlan, index_path, stored_clips, write_shard
from pipeline.state.error_log import unforeseen, write_errors
from pipeline.state.units import UnitResult, stopped
from pipeline.storage.store import Store
from pipeline.tables.fragments import Fragment, fingerprint


@dataclass(frozen=True)
class PackUnit:
    """A shard to write: its clips' rows are the fragment `rows`; the shards `lent` may hold encoded media to reuse."""

    path: str
    rows: str
    clips: int
    lent: tuple[str, ...] = ()

    @property
    def amount(self) -> float:
        return self.clips


class Pack:
    """Writes the shard of a unit."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._options = store, resolved(recipe.pack)
        self._encoder = ClipEncoder(recipe.scan, recipe.sources)

    def __call__(self, unit: PackUnit) -> UnitResult:
        self._encoder.errors.clear()
        try:
            return self._unit(unit)
        except (OSError, MemoryError) as error:
            return stopped("pack", error)

    def _unit(self, unit: PackUnit) -> UnitResult:
        started = time.perf_counter()
        table = Fragment(unit.rows, {}).rows(self._store)
        plan = ShardPlan(unit.path, self._options, table, np.arange(table.num_rows))
        reuse = stored_clips(self._store, unit.lent, table["clip_id"])
        self._store.delete(str(index_path(Path(unit.path))))  # an old index must never describe a new tar
        with self._store.folder("") as folder:
            result = write_shard(plan, folder, reuse, self._encoder)
            write_errors(self._store, "pack", fingerprint(plan.name), self._encoder.errors)
        counts = {"clips": result.clips, "reused": result.reused, "failed": len(result.failures)}
        seconds = {"total": time.perf_counter() - started, "video": result.seconds}
        return UnitResult(
            "pack",
            unit.amount,
            counts=counts,
            seconds=seconds,
            fragment=str(index_path(Path(result.path))),
            unforeseen=unforeseen(self._encoder.errors),
        )
