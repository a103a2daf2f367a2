"""The pack pass: which shards are there already, which old ones lend their clips, and the worker that writes one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.recipe import Recipe
from pipeline.shards import ShardPlan, ShardResult, Stored, index_path, listed, stored_clips, write_shard
from pipeline.storage import Store
from pipeline.tables import fingerprint
from pipeline.units import Done

ASIDE = "state/old"  # shards that are not wanted any more, until the build that replaces them is finished


@dataclass(frozen=True)
class PackUnit:
    """A shard to write; `reuse` says where clips of it lie encoded."""

    plan: ShardPlan
    reuse: Mapping[str, Stored] = field(default_factory=dict)

    @property
    def amount(self) -> float:
        return len(self.plan.clips)


class Pack:
    """A plan -> a shard."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store = store

    def __call__(self, unit: PackUnit) -> Done:
        with self._store.folder("") as folder:
            result = write_shard(unit.plan, folder, unit.reuse)
        counts = {"clips": result.clips, "reused": result.reused, "failed": len(result.failures)}
        return Done("pack", unit.amount, counts=counts, fragment=result.path)


def pack_units(plans: Sequence[ShardPlan], store: Store) -> list[PackUnit]:
    """The shards that are not there yet. Old ones that are not wanted any more are set aside, so that their clips can
    be taken over while new shards take their names."""
    have = listed(store)
    wanted = {plan.name for plan in plans}
    left = [plan for plan in plans if plan.name not in have]
    if not left:
        return []
    for name, shard in have.items():
        if name not in wanted:
            _set_aside(store, shard)
    lent = stored_clips(store, [ShardResult("", path) for path in store.list(ASIDE, ".tar")])
    return [PackUnit(plan, {c: lent[c] for c in plan.rows()["clip_id"].to_pylist() if c in lent}) for plan in left]


def _set_aside(store: Store, shard: ShardResult) -> None:
    """Only a rename: on an object store, where there is none, such clips are encoded again."""
    if store.local is None:
        return
    old = store.local / shard.path
    new = store.local / ASIDE / f"{fingerprint(shard.name)}.tar"
    new.parent.mkdir(parents=True, exist_ok=True)
    os.replace(index_path(old), index_path(Path(new)))
    os.replace(old, new)
