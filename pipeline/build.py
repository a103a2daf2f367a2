"""A build, from top to bottom: what each pass still has to do is sent through its stages; a dataset comes of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import canaries, passes, report, stages, state, todo
from pipeline.captioning import CaptionClips
from pipeline.dataset import check_folder, finish, lock, sweep
from pipeline.packing import Pack, pack_units
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.scoring import Embed
from pipeline.select import select
from pipeline.shards import ShardPlan, ShardResult, listed, plan_shards
from pipeline.sources import Found, discover
from pipeline.stages import Machine, Stage
from pipeline.storage import Store
from pipeline.units import BuildStopped, Done, ScanUnit
from pipeline.workers import Identify, Scan


@dataclass(frozen=True)
class Built:
    """The finished dataset: what dataset.json holds, and the rows of its sources and clips tables."""

    info: dict[str, Any]
    sources: list[dict[str, Any]]
    clips: pa.Table


def build(
    inputs: Sequence[str], out: str, recipe: Recipe, address: str | None = None, cores: int | None = None
) -> Built:
    """Builds the dataset `out` from `inputs`, doing only what is not done yet, on the Ray cluster at `address` or on
    `cores` of this machine.

    Raises SourceError, RecipeError or DatasetError before any work starts, BuildStopped or OSError where a pass cannot
    go on. What was committed by then is found again by the next build.
    """
    found = discover([*inputs, *canaries.planted(recipe)])
    store = Store(out)
    check_folder(store)
    passes.check(recipe)
    with lock(store):
        machine = stages.start(address, cores)
        try:
            return _build(found, store, recipe, machine)
        finally:
            stages.stop()


def _build(found: Sequence[Found], store: Store, recipe: Recipe, machine: Machine) -> Built:
    spent: dict[str, Any] = {}
    late = passes.late_columns(recipe)

    units: Sequence[Any] = todo.identify_units(found, store)
    run("sources", units, [Stage(Identify, (store, recipe), **machine.scan())], "sources", spent)
    sources = todo.source_rows(found, store)

    parts = todo.parts_of(sources, recipe)
    done = state.scanned(store, recipe)
    new = todo.scan_units([part for part in parts if part.key not in done.errors], recipe, machine.cpus)
    again = todo.embed_units(parts, done, store, recipe)
    scan, embed = (Stage(w, (store, recipe), **m) for w, m in ((Scan, machine.scan()), (Embed, machine.embed())))
    if new:
        run("scan", [*new, *again], [scan, embed], "video", spent)
    else:
        run("embed", again, [embed], "clips", spent)

    clips = canaries.mark(select(todo.clip_rows(sources, store, recipe), recipe, late, captioned=False))
    units = todo.caption_units(clips, recipe)
    run("caption", units, [Stage(CaptionClips, (store, recipe), **machine.caption())], "clips", spent)
    clips = canaries.mark(select(todo.clip_rows(sources, store, recipe), recipe, late))

    plans = plan_shards(clips.filter(clips["keep"]), recipe)
    units = pack_units(plans, store)
    run("pack", units, [Stage(Pack, (store, recipe), **machine.pack())], "clips", spent)
    clips, shards = with_shards(clips, plans, listed(store))

    sources = with_errors(sources, state.scanned(store, recipe))
    info = finish(store, recipe, sources, clips, shards, spent)
    sweep(store, recipe, sources, shards)
    report.write_report(store.uri)
    return Built(info, sources, clips)


def run(name: str, units: Sequence[Any], graph: Sequence[Stage], measure: str, spent: dict[str, Any]) -> None:
    """Sends `units` through `graph`, with a line of progress, and adds what it took to `spent`.

    Raises BuildStopped where a worker says that it cannot go on.
    """
    if not units:
        return
    progress = Progress(
        name, sum(unit.amount for unit in units if measure != "video" or isinstance(unit, ScanUnit)), measure
    )
    done: list[Done] = []
    for answer in stages.run(units, graph):
        answers: list[Done] = answer if isinstance(answer, list) else [answer]
        done += answers
        progress.add(answers[0].amount if answers[0].of == name else 0.0, answers[0].counts)
        if problem := next((one.problem for one in answers if one.problem), ""):
            progress.close()
            raise BuildStopped(problem)
    wall = progress.close()
    for kind in dict.fromkeys(one.of for one in done):
        spent[kind] = _sum([one for one in done if one.of == kind], wall)


def with_shards(
    clips: pa.Table, plans: Sequence[ShardPlan], have: Mapping[str, ShardResult]
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """`clips` with the path of each clip's shard, and what dataset.json lists. A clip that could not be encoded is not
    kept after all, for the reason `encoding`."""
    kept = clips.filter(clips["keep"])["clip_id"].combine_chunks()
    paths = np.full(len(kept), None, dtype=object)
    failed: set[str] = set()
    for plan in plans:
        shard = have.get(plan.name)
        if shard:
            paths[plan.clips] = shard.path
        failed |= {clip for clip, _ in shard.failures} if shard else set(plan.rows()["clip_id"].to_pylist())
    if failed:
        out = pc.is_in(clips["clip_id"], pa.array(sorted(failed)))
        paths[pc.is_in(kept, pa.array(sorted(failed))).to_numpy(zero_copy_only=False)] = None
        reasons = [
            [*before, "encoding"] if lost else before
            for before, lost in zip(clips["rejected_by"].to_pylist(), out.to_pylist(), strict=True)
        ]
        clips = _replaced(clips, "keep", pc.and_(clips["keep"], pc.invert(out)))
        clips = _replaced(clips, "rejected_by", pa.array(reasons, pa.list_(pa.string())))
    path = pa.array(paths, pa.string()).take(pc.index_in(clips["clip_id"], kept))
    written = [have[plan.name] for plan in plans if plan.name in have]
    return clips.append_column("shard", path), [
        {"path": s.path, "sha256": s.sha256, "bytes": s.bytes, "clips": s.clips} for s in written
    ]


def _replaced(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def with_errors(sources: Sequence[Mapping[str, Any]], done: state.Scanned) -> list[dict[str, Any]]:
    """Rows of tables/sources after the scan: a source none of whose parts could be scanned has failed; one that lost
    some of its footage says which."""
    parts: dict[str, list[str]] = defaultdict(list)
    for key in sorted(done.errors):
        parts[key.partition("@")[0]].append(key)
    rows = []
    for row in sources:
        keys = parts[row["source_id"]] if row["status"] == "ok" else []
        failed = [key for key in keys if done.errors[key]]
        lost = [(key, done.errors[key] or done.notes.get(key)) for key in keys]
        said = [f"{key.partition('@')[2]} s: {why}" if "@" in key else str(why) for key, why in lost if why]
        if failed and len(failed) == len(keys):
            rows.append({**row, "status": "failed", "error": done.errors[failed[0]]})
        else:
            rows.append({**row, "error": "; ".join(said) or row["error"]})
    return rows


def _sum(done: Sequence[Done], wall: float) -> dict[str, Any]:
    """One pass of dataset.json's `passes`."""
    parts: dict[str, float] = defaultdict(float)
    filters: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for one in done:
        for key, value in one.seconds.items():
            parts[key] += value
        for key, values in one.filters.items():
            for kind, value in values.items():
                filters[key][kind] += value
    return {
        "seconds": round(wall, 3),
        "amount": round(sum(one.amount for one in done), 3),
        "units": len(done),
        "parts": {key: round(value, 3) for key, value in sorted(parts.items())},
        "filters": {key: {kind: round(v, 4) for kind, v in values.items()} for key, values in filters.items()},
    }
