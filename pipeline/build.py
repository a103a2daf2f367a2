"""A build, from top to bottom: the passes run their pending units on an engine, then the dataset is published."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.config.recipe import Recipe
from pipeline.dataset.finish import check_folder, publish, read_info
from pipeline.dataset.lock import lock
from pipeline.dataset.outcomes import outcomes
from pipeline.dataset.sweep import retire, sweep
from pipeline.dataset.unchanged import is_unchanged, note_unchanged, replaced
from pipeline.engine.base import Engine, NodesLost
from pipeline.engine.choice import EngineName, EngineNeeds, check_engine, open_engine
from pipeline.pack.companions import load_companions
from pipeline.passes.caption import with_listed_captions
from pipeline.passes.embed import with_reference_digest
from pipeline.passes.identify import as_last_seen, identify_units
from pipeline.passes.pack import with_shards
from pipeline.passes.registry import CHAINS, PASSES
from pipeline.passes.run import run_passes
from pipeline.passes.scan import not_scanned, source_parts, with_errors
from pipeline.passes.snapshot import Snapshot
from pipeline.passes.spent import unpublished
from pipeline.report import page
from pipeline.sources.discover import DiscoveredFile, discover
from pipeline.state import committed, fingerprints
from pipeline.storage.store import Store, naming_full
from pipeline.tables.decisions import decisions_digest, read_decisions
from pipeline.tables.published import read_table


@dataclass(frozen=True)
class Built:
    """The finished dataset: what dataset.json holds, and the rows of its sources and clips tables."""

    info: dict[str, Any]
    store: Store
    unchanged: bool = False  # whether the build had nothing to do

    @property
    def sources(self) -> list[dict[str, Any]]:
        return self._table("sources").to_pylist()

    @property
    def clips(self) -> pa.Table:
        return self._table("clips")

    def _table(self, name: str) -> pa.Table:
        table = read_table(self.store, f"tables/{name}")
        assert table is not None
        return table


def build(
    inputs: Sequence[str],
    out: str,
    recipe: Recipe,
    address: str | None = None,
    cores: int | None = None,
    gpus: bool = False,
    engine: EngineName = "auto",
) -> Built:
    """Build the dataset `out` from `inputs`; work that earlier builds committed is reused.

    The engine is `local`, threads of this process, or `ray`, on the cluster at `address` or on `cores` of this machine;
    `auto` takes the local one for small inputs. Passes whose models can use a GPU use one if there is one when they
    begin; with `gpus` they wait for one.

    Raises SourceError, RecipeError or DatasetError before any work starts, BuildStopped or OSError where a pass cannot
    continue. The next build reuses the work that was committed until then.
    """
    files: Sequence[DiscoveredFile] = discover(inputs, recipe.sources)
    store = Store(out)
    check_folder(store)
    recipe = with_listed_captions(with_reference_digest(recipe), files)
    fingerprints.check(recipe)
    load_companions(recipe.pack)
    needs = EngineNeeds(
        size=sum(file.size or 0 for file in files),
        gpu=any(each.uses_gpu(recipe) for each in PASSES),
        ray=recipe.caption.captioner == "ray_llm",
    )
    check_engine(engine, needs, address, gpus)
    with lock(store) as still_ours:
        files = as_last_seen(files, store)
        decisions = read_decisions(store)
        if is_unchanged(files, store, recipe, decisions_digest(decisions)):
            return Built(read_info(store), store, unchanged=True)
        for line in replaced(files, store, recipe):
            print(line, file=sys.stderr)
        # Files of the dataset are named in the errors of a full disk, so what names none is a temporary one.
        with open_engine(engine, needs, address, cores, gpus) as opened, naming_full(tempfile.gettempdir()):
            while True:
                try:
                    return _build(Snapshot(store, recipe, files, decisions), opened, still_ours)
                except NodesLost as lost:
                    print(f"{lost}; restarting with the remaining work", file=sys.stderr)


def _build(snapshot: Snapshot, engine: Engine, still_ours: Callable[[], None]) -> Built:
    store, recipe = snapshot.store, snapshot.recipe
    published = read_info(store)["passes"] if store.exists("dataset.json") else {}
    totals = unpublished(store, published)
    committed.merge(store, recipe)
    for passes in CHAINS:
        # Packing overwrites files of the dataset, so check the lock. Earlier passes are idempotent.
        still_ours()
        if run_passes(passes, snapshot, engine, totals):
            committed.merge(store, recipe)
            snapshot.refresh()

    clips, shards = with_shards(snapshot)
    sources, complete = with_errors(snapshot.sources, snapshot.scanned), _everything_read(snapshot)
    still_ours()
    decided = outcomes(snapshot.decisions, clips)
    info = publish(store, recipe, sources, clips, snapshot.joined_rows(clips), shards, totals, decided)
    retire(store, info, shards)
    snapshot.refresh()
    del clips  # free memory: the report reads the columns that it needs
    page.write_report(store.uri)
    if complete:
        sweep(store, recipe, sources)
        note_unchanged(snapshot.files, store, recipe, decisions_digest(snapshot.decisions))
    return Built(info, store)


def _everything_read(snapshot: Snapshot) -> bool:
    """Return whether every source could be read."""
    parts = source_parts(snapshot.sources, snapshot.recipe)
    unscanned = not_scanned(parts, snapshot.scanned).num_rows
    return not unscanned and not any(identify_units(snapshot.files, snapshot.store, snapshot.recipe.scan))
