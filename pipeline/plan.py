"""What a build would do and why, without doing it, with times from the rates that earlier builds measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.recipe import Recipe
from pipeline.dataset.finish import check_folder, read_info
from pipeline.engine.progress import clock
from pipeline.pack.sample_json import INTERNAL
from pipeline.pack.shards import listed, plan_shards
from pipeline.pack.worker import with_rows
from pipeline.passes import pending
from pipeline.selection.select import select
from pipeline.sources import canaries
from pipeline.sources.discover import DiscoveredFile, discover
from pipeline.state import committed, fingerprints
from pipeline.storage.store import Store
from pipeline.tables.fragments import read_table


def plan(inputs: Sequence[str], out: str, recipe: Recipe) -> str:
    """One line a pass: how much is done, how much is left, why, and about how long that takes. Raises what a build
    raises before it starts."""
    there = discover([*inputs, *canaries.planted(recipe)], recipe.sources)
    store = Store(out)
    check_folder(store)
    fingerprints.check(recipe)
    found = pending.as_last_seen(there, store)
    info: dict[str, Any] = read_info(store) if store.exists("dataset.json") else {}

    new = sum(unit.amount for unit in pending.identify_units(found, store))
    lines = [_line("sources", new, len(found), "files", "new or changed", info)]
    sources = pending.source_rows(found, store)
    if gone := _gone(found, store, info):
        lines.append(f"         {gone:,} files of the dataset are no longer among the sources: their clips go")
    parts = pending.parts_of(sources, recipe)
    left = pending.not_scanned(parts, committed.scanned(store, recipe))
    why = _why(info, left.num_rows, fingerprints.scan_fingerprint(recipe), store, "state/scan")
    lines.append(_line("scan", _sum(left["seconds"]), _sum(parts["seconds"]), "video", why, info))
    again = sum(unit.amount for unit in pending.embed_units(sources, store, recipe))

    late = fingerprints.late_columns(recipe)
    clips, embeddings = pending.clip_rows(sources, store, recipe)
    clips = select(clips, recipe, late, captioned=False, embeddings=embeddings)
    why = "not scored yet, or let through by other thresholds"
    lines.append(_line("embed", again, clips.num_rows, "clips", why, info))
    silent = sum(unit.amount for unit in pending.caption_units(clips, recipe))
    kept = pc.sum(clips["keep"]).as_py() or 0
    lines.append(_line("caption", silent, kept, "clips", "kept and without a caption of this captioner", info))
    clips = select(clips, recipe, late, embeddings=embeddings)
    final = clips.filter(clips["keep"])
    whole = pending.joined_rows(clips, sources, store, recipe, without=INTERNAL)
    rows = (rows.filter(rows["keep"]) for rows in whole)
    have = listed(store)
    plans = with_rows(plan_shards(final, recipe), final.num_rows, rows)
    missing = sum(len(plan.clips) for plan in plans if plan.name not in have)
    lines.append(_line("pack", missing, final.num_rows, "clips", "in shards to write", info))
    if new or left.num_rows:
        lines.append("later passes: of what is known now; files still to be looked at or scanned add to them")
    amounts = {"sources": new, "scan": _sum(left["seconds"]), "embed": again, "caption": silent, "pack": missing}
    times = [_estimate(info, name, amount) for name, amount in amounts.items() if amount]
    if times and None not in times:
        lines.append(f"about {clock(sum(filter(None, times)))} in all, at the last builds' rates")
    return "\n".join(lines)


def _gone(found: Sequence[DiscoveredFile], store: Store, info: Mapping[str, Any]) -> int:
    before = read_table(store, "tables/sources", lambda field: field.name == "source_uri") if info else None
    if before is None:
        return 0
    there = pc.is_in(before["source_uri"], pa.array([file.uri for file in found]))
    return before.num_rows - (pc.sum(there).as_py() or 0)


def _sum(column: pa.ChunkedArray) -> float:
    return float(pc.sum(column).as_py() or 0.0)


def _line(name: str, left: float, total: float, measure: str, why: str, info: Mapping[str, Any]) -> str:
    if not left:
        return f"{name:<8} nothing to do ({_amount(total, measure)} done)"
    seconds = _estimate(info, name, left)
    about = "" if seconds is None else f", about {clock(seconds)}"
    return f"{name:<8} {_amount(left, measure)} of {_amount(total, measure)}: {why}{about}"


def _estimate(info: Mapping[str, Any], name: str, amount: float) -> float | None:
    """Seconds, at the rate of the last build that had such a pass; None where there was none."""
    spent = info.get("passes", {}).get(name)
    return amount * spent["seconds"] / spent["amount"] if spent and spent["amount"] and spent["seconds"] else None


def _amount(amount: float, measure: str) -> str:
    return f"{clock(amount)} of video" if measure == "video" else f"{amount:,.0f} {measure}"


def _why(info: dict[str, Any], left: int, fingerprint: str, store: Store, folder: str) -> str:
    if not info or not left:
        return "not done yet"
    others = any(f.done.get("fingerprint") != fingerprint for f in committed.read_fragments(store, folder))
    return "scan options or filters changed" if others else "new sources"
