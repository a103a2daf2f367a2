"""The plan of a build: what it would do and why, with times estimated from the rates of earlier builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.recipe import Recipe
from pipeline.dataset.finish import check_folder, read_info
from pipeline.engine.progress import clock
from pipeline.passes.base import Outlook, Pass
from pipeline.passes.caption import with_listed_captions
from pipeline.passes.embed import with_reference_digest
from pipeline.passes.identify import as_last_seen
from pipeline.passes.registry import PASSES
from pipeline.passes.snapshot import Snapshot
from pipeline.sources.discover import DiscoveredFile, discover
from pipeline.state import fingerprints
from pipeline.storage.store import Store
from pipeline.tables.decisions import read_decisions
from pipeline.tables.published import read_table

PASSES_OF_CLIPS = [each.name for each in PASSES].index("transcode")  # number of passes that add, admit or caption clips


def plan(inputs: Sequence[str], out: str, recipe: Recipe) -> str:
    """Return one line a pass: how much is done, how much is pending, why, and about how long that takes. Raises the
    errors that a build raises before it starts."""
    files: Sequence[DiscoveredFile] = discover(inputs, recipe.sources)
    store = Store(out)
    check_folder(store)
    recipe = with_listed_captions(with_reference_digest(recipe), files)
    fingerprints.check(recipe)
    files = as_last_seen(files, store)
    info: dict[str, Any] = read_info(store) if store.exists("dataset.json") else {}
    snapshot = Snapshot(store, recipe, files, read_decisions(store))
    outlooks = [(each, each.outlook(snapshot)) for each in PASSES]
    first = next((number for number, (_, outlook) in enumerate(outlooks) if outlook.pending), len(outlooks))
    lines = [_line(each, outlook, info, number > first) for number, (each, outlook) in enumerate(outlooks)]
    if gone := _gone(files, store, info):
        lines.insert(1, f"         {gone:,} files of the dataset are no longer among the sources: their clips go")
    if first < PASSES_OF_CLIPS:
        name = PASSES[first].name
        lines.append(f"the counts of passes after {name} do not include the clips that {name} has yet to add")
    times = [_estimate(info, each.name, outlook.pending) for each, outlook in outlooks if outlook.pending]
    if times and None not in times:
        names = ", ".join(each.name for each, outlook in outlooks if outlook.pending)
        later = f"; passes after {outlooks[first][0].name} depend on its results" * (first < len(outlooks) - 1)
        lines.append(f"about {clock(sum(filter(None, times)))} for {names}, at the last builds' rates{later}")
    return "\n".join(lines)


def _gone(files: Sequence[DiscoveredFile], store: Store, info: Mapping[str, Any]) -> int:
    before = read_table(store, "tables/sources", lambda field: field.name == "source_uri") if info else None
    if before is None:
        return 0
    present = pc.is_in(before["source_uri"], pa.array([file.uri for file in files]))
    return before.num_rows - (pc.sum(present).as_py() or 0)


def _line(of: Pass, outlook: Outlook, info: Mapping[str, Any], waits: bool) -> str:
    """Describe a pass; `waits`: an earlier pass has work, which may add more to this one."""
    if not outlook.pending:
        todo = "depends on the passes before" if waits else "nothing to do"
        return f"{of.name:<8} {todo} ({_amount(outlook.total, of.measure)} done)"
    seconds = _estimate(info, of.name, outlook.pending)
    about = "" if seconds is None else f", about {clock(seconds)}"
    amounts = f"{_amount(outlook.pending, of.measure)} of {_amount(outlook.total, of.measure)}"
    return f"{of.name:<8} {amounts}: {outlook.why}{about}"


def _estimate(info: Mapping[str, Any], name: str, amount: float) -> float | None:
    """Return the seconds for `amount` at the rate of the last build that ran this pass; None if none did."""
    spent = info.get("passes", {}).get(name)
    return amount * spent["seconds"] / spent["amount"] if spent and spent["amount"] and spent["seconds"] else None


def _amount(amount: float, measure: str) -> str:
    if measure == "video":
        return f"{clock(amount)} of video"
    return f"{amount:,.0f} {'files' if measure == 'sources' else measure}"
