"""A build, from top to bottom: what each pass still has to do is sent through its stages; a dataset comes of it."""

from __future__ import annotations

import itertools
import json
import pickle
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.recipe import Recipe, RecipeError
from pipeline.dataset.finish import check_folder, finish, is_unchanged, lock, note_unchanged, read_info, sweep
from pipeline.engine import ray_engine
from pipeline.engine.metrics import publish, publish_left
from pipeline.engine.progress import Progress
from pipeline.engine.ray_engine import Machine, Stage
from pipeline.pack.sample_json import INTERNAL
from pipeline.pack.shards import ShardPlan, ShardResult, listed, plan_shards
from pipeline.pack.worker import Pack, pack_units, retire_shards, with_rows
from pipeline.passes import pending
from pipeline.passes.caption_worker import CaptionClips
from pipeline.passes.embed_worker import Embed
from pipeline.report import page
from pipeline.scan.worker import Identify, Scan
from pipeline.selection.select import SELECTED, select, with_reason
from pipeline.sources import canaries
from pipeline.sources.discover import DiscoveredFile, discover
from pipeline.state import committed, fingerprints
from pipeline.state.units import BuildStopped, ScanUnit, UnitResult
from pipeline.storage.store import Store
from pipeline.tables.fragments import read_table

NOTED = 20.0  # seconds between two writings of stats/PASS.json
DECIDED = (  # what is left of a clip in memory after selection
    *("clip_id", "source_uri", "start", "end", "frames", "caption"),
    *(*SELECTED.names, "balance_cluster", "balance_weight"),
)


@dataclass(frozen=True)
class Built:
    """The finished dataset: what dataset.json holds, and the rows of its sources and clips tables."""

    info: dict[str, Any]
    store: Store

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
) -> Built:
    """Builds the dataset `out` from `inputs`, doing only what is not done yet, on the Ray cluster at `address` or on
    `cores` of this machine. Passes whose models can use a GPU do where there is one when they begin; with `gpus` they
    wait for one.

    Raises SourceError, RecipeError or DatasetError before any work starts, BuildStopped or OSError where a pass cannot
    go on. What was committed by then is found again by the next build.
    """
    there = discover([*inputs, *canaries.planted(recipe)], recipe.sources)
    store = Store(out)
    check_folder(store)
    fingerprints.check(recipe)
    able = fingerprints.on_gpu(recipe)
    if gpus and not able:
        raise RecipeError("--gpus, and no model of this recipe runs on one")
    with lock(store) as still_ours:
        found = pending.as_last_seen(there, store)
        if is_unchanged(found, store, recipe):
            return Built(read_info(store), store)
        try:
            while True:
                try:
                    return _build(
                        found, store, recipe, lambda: ray_engine.machine(address, cores, able, gpus), still_ours
                    )
                except ray_engine.NodesLost as lost:
                    print(f"{lost}; beginning again with what is not done yet", file=sys.stderr)
        finally:
            ray_engine.stop()


def _build(
    found: Sequence[DiscoveredFile],
    store: Store,
    recipe: Recipe,
    machine: Callable[[], Machine],
    still_ours: Callable[[], None],
) -> Built:
    spent: dict[str, Any] = {}
    late = fingerprints.late_columns(recipe)

    def stage(worker: Callable[[Store, Recipe], Any], needs: Callable[[Machine], dict[str, float]]) -> Stage:
        return Stage(worker, (store, recipe), **needs(machine()))

    committed.merge(store, recipe)
    run(
        store,
        "sources",
        pending.identify_units(found, store),
        lambda: [stage(Identify, Machine.other)],
        "sources",
        spent,
    )
    sources = pending.source_rows(found, store)

    left = pending.not_scanned(pending.parts_of(sources, recipe), committed.scanned(store, recipe))
    units: Iterable[Any] = pending.embed_units(sources, store, recipe)
    if left.num_rows:
        units = itertools.chain(pending.scan_units(left, recipe, machine().cpus), units)
        run(store, "scan", units, lambda: [stage(Scan, Machine.scan), stage(Embed, Machine.embed)], "video", spent)
    else:
        run(store, "embed", units, lambda: [stage(Embed, Machine.embed)], "clips", spent)

    committed.merge(store, recipe)
    clips, embeddings = pending.clip_rows(sources, store, recipe)
    clips = select(clips, recipe, late, captioned=False, embeddings=embeddings)
    units = pending.caption_units(clips, recipe)
    if run(store, "caption", units, lambda: [caption_stage(store, recipe, machine())], "clips", spent):
        committed.merge(store, recipe)
        del clips  # before there are two of them
        clips, embeddings = pending.clip_rows(sources, store, recipe)
    clips = select(clips, recipe, late, embeddings=embeddings)
    del embeddings
    clips = clips.select([name for name in clips.column_names if name in DECIDED])

    kept = clips.filter(clips["keep"])
    plans = plan_shards(kept, recipe)
    whole = pending.joined_rows(clips, sources, store, recipe, without=INTERNAL)
    rows = (rows.filter(rows["keep"]) for rows in whole)
    still_ours()  # what comes now replaces and deletes; rows of the passes before are the same whoever writes them
    names, units = pack_units(with_rows(plans, kept.num_rows, rows), store)
    run(store, "pack", units, lambda: [stage(Pack, Machine.other)], "clips", spent)
    have = listed(store)
    clips, shards = with_shards(clips, plans, {path: have[name] for path, name in names.items() if name in have})

    scanned = committed.scanned(store, recipe)
    unread = pending.not_scanned(pending.parts_of(sources, recipe), scanned).num_rows > 0
    unread = unread or any(pending.identify_units(found, store))
    sources = with_errors(sources, scanned)
    still_ours()
    info = finish(store, recipe, sources, clips, pending.joined_rows(clips, sources, store, recipe), shards, spent)
    del clips, kept, plans  # the report reads columns of its own
    page.write_report(store.uri)
    if unread:
        retire_shards(store, have, names.values())  # what a server does not give today may be wanted tomorrow
    else:
        sweep(store, recipe, sources, shards)
        note_unchanged(found, store, recipe)
    return Built(info, store)


def caption_stage(store: Store, recipe: Recipe, machine: Machine) -> ray_engine.AnyStage:
    """What captions: workers that hold the captioner, or, for `ray_llm`, Ray's processor between workers."""
    if recipe.caption.captioner == "ray_llm":
        from pipeline.passes.ray_llm import AskRay  # takes seconds to import

        return AskRay(store, recipe)
    return Stage(CaptionClips, (store, recipe), **machine.caption())


def run(
    store: Store,
    name: str,
    units: Iterable[Any],
    graph: Callable[[], Sequence[ray_engine.AnyStage]],
    measure: str,
    spent: dict[str, Any],
) -> bool:
    """Sends `units` through `graph`, with a line of progress, and adds what it took to `spent`, which is in
    stats/PASS.json too while it runs; whether there were any units.

    Raises BuildStopped where a worker says that it cannot go on.
    """
    packed, total = [], 0.0
    for unit in units:
        packed.append(pickle.dumps(unit))
        total += unit.amount if measure != "video" or isinstance(unit, ScanUnit) else 0.0
    if not packed:
        return False
    progress, noted = Progress(name, total, measure), 0.0
    done: list[UnitResult] = []

    def note() -> None:
        for kind in dict.fromkeys(one.of for one in done):
            spent[kind] = _sum([one for one in done if one.of == kind], progress.seconds)
            said = spent[kind] | ({"total": total, "measure": measure} if kind == name else {})
            store.write(f"stats/{kind}.json", json.dumps(said, indent=2, sort_keys=True).encode())

    for answer in ray_engine.run(packed, graph()):
        answers: list[UnitResult] = answer if isinstance(answer, list) else [answer]
        done += answers
        for one in answers:
            publish(one)
        progress.add(answers[0].amount if answers[0].of == name else 0.0, answers[0].counts)
        publish_left(name, total - progress.amount)
        if problem := next((one.problem for one in answers if one.problem), ""):
            progress.close()
            raise BuildStopped(problem)
        if progress.seconds - noted > NOTED:
            note()
            noted = progress.seconds
    progress.close()
    note()
    return True


def with_shards(
    clips: pa.Table, plans: Sequence[ShardPlan], have: Mapping[str, ShardResult]
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """`clips` with the path of each clip's shard, and what dataset.json lists; `have` are the finished shards by path.
    A clip that could not be encoded is not kept after all, for the reason `encoding`."""
    kept = np.flatnonzero(clips["keep"].to_numpy())
    number = np.full(len(clips), -1, np.int32)
    failed: set[str] = set()
    for i, plan in enumerate(plans):
        if plan.path in have:
            number[kept[plan.clips]] = i
            failed |= {clip for clip, _ in have[plan.path].failures}
        else:
            failed |= set(plan.rows()["clip_id"].to_pylist())
    if failed:
        out = pc.is_in(clips["clip_id"], pa.array(sorted(failed))).to_numpy()
        number[out] = -1
        clips = _replaced(clips, "keep", pa.array(clips["keep"].to_numpy() & ~out))
        clips = _replaced(clips, "rejected_by", with_reason(clips["rejected_by"], out, "encoding"))
    path = pa.DictionaryArray.from_arrays(
        pa.array(number, mask=number < 0), pa.array([p.path for p in plans], pa.string())
    )
    return clips.append_column("shard", path), [
        {"path": s.path, "sha256": s.sha256, "bytes": s.bytes, "clips": s.clips} for s in have.values()
    ]


def _replaced(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def with_errors(sources: pa.Table, done: committed.Scanned) -> pa.Table:
    """Rows of tables/sources after the scan: a source none of whose parts could be scanned has failed; one that lost
    some of its footage says which."""
    errors = {**done.errors, **done.unreachable}
    said = {**errors, **done.notes}
    parts: dict[str, list[str]] = defaultdict(list)
    for key in sorted(said):
        parts[key.partition("@")[0]].append(key)
    if not parts:
        return sources
    keys_of_all = pa.concat_arrays([done.keys, pa.array(list(done.unreachable), pa.string())])
    of = pc.replace_substring_regex(keys_of_all, "@.*", "")
    counted = pc.value_counts(of.filter(pc.is_in(of, pa.array(list(parts))))).to_pylist()
    count = {row["values"]: row["counts"] for row in counted}
    error, status = {}, {}
    for source, keys in parts.items():
        lost = [key for key in keys if key in errors]
        if len(lost) == count[source]:
            status[source], error[source] = "failed", errors[lost[0]]
        else:
            error[source] = "; ".join(
                f"{key.partition('@')[2]} s: {said[key]}" if "@" in key else said[key] for key in keys
            )
    usable = pc.equal(sources["status"], "ok")
    for name, values in (("error", error), ("status", status)):
        at = pc.index_in(sources["source_id"], pa.array(list(values), pa.string()))
        new = pa.array(list(values.values()), pa.string()).take(at)
        sources = _replaced(sources, name, pc.if_else(usable, pc.coalesce(new, sources[name]), sources[name]))
    return sources


def _sum(done: Sequence[UnitResult], wall: float) -> dict[str, Any]:
    """One pass of dataset.json's `passes`, and stats/PASS.json."""
    parts: dict[str, float] = defaultdict(float)
    filters: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    results: dict[str, int] = defaultdict(int)
    for one in done:
        for key, count in one.counts.items():
            results[key] += count
        for key, value in one.seconds.items():
            parts[key] += value
        for key, values in one.filters.items():
            for kind, value in values.items():
                filters[key][kind] += value
    return {
        "seconds": round(wall, 3),
        "amount": round(sum(one.amount for one in done), 3),
        "units": len(done),
        "results": dict(results),
        "parts": {key: round(value, 3) for key, value in sorted(parts.items())},
        "filters": {key: {kind: round(v, 4) for kind, v in values.items()} for key, values in filters.items()},
    }
