"""The plan of a build: what it would do and why, with amounts and times estimated from what earlier builds measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.config.recipe import Recipe
from pipeline.dataset.finish import check_folder, read_info
from pipeline.dataset.unchanged import replaced
from pipeline.engine.progress import clock, counted
from pipeline.pack.companions import load_companions
from pipeline.passes.base import Outlook, Pass
from pipeline.passes.caption import with_listed_captions
from pipeline.passes.embed import with_reference_digest
from pipeline.passes.identify import as_last_seen
from pipeline.passes.registry import CHAINS, PASS_NAMES, PASSES
from pipeline.passes.snapshot import Snapshot
from pipeline.passes.spent import unpublished
from pipeline.sources.discover import DiscoveredFile, discover
from pipeline.state import fingerprints
from pipeline.storage.store import Store
from pipeline.tables.decisions import read_decisions

ADD_CLIPS = PASS_NAMES[: PASS_NAMES.index("transcode")]  # passes whose pending work may add work to later passes


class Work(NamedTuple):
    """The pending work of a pass, in the unit of its `measure`; None: not known."""

    outlook: Outlook
    more: float | None  # what the pending work of an earlier pass may add
    seconds: float | None  # for all of it


def plan(inputs: Sequence[str], out: str, recipe: Recipe) -> str:
    """Return one line a pass: how much is done, how much is pending, why, and about how long that takes. Raises the
    errors that a build raises before it starts."""
    files: Sequence[DiscoveredFile] = discover(inputs, recipe.sources)
    store = Store(out)
    check_folder(store)
    recipe = with_listed_captions(with_reference_digest(recipe), files)
    fingerprints.check(recipe)
    load_companions(recipe.pack)
    files = as_last_seen(files, store)
    info: dict[str, Any] = read_info(store) if store.exists("dataset.json") else {}
    snapshot = Snapshot(store, recipe, files, read_decisions(store))
    published = info.get("passes", {})
    passes = {**published, **unpublished(store, published)}
    works = estimated({each.name: each.outlook(snapshot) for each in PASSES}, passes)
    lines = [_line(each, works[each.name]) for each in PASSES]
    lines[1:1] = [f"          {line}" for line in replaced(files, store, recipe)]
    return "\n".join([*lines, *_total(works)])


def estimated(outlooks: Mapping[str, Outlook], passes: Mapping[str, Any]) -> dict[str, Work]:
    """Return the work of each pass. `passes` are the entries of dataset.json and of a stopped build, by pass.

    The first pass with pending work may add work to later ones, in the ratio of the amounts of the last builds.
    """
    rates = {name: entry for name, entry in passes.items() if entry["amount"] and entry["seconds"]}
    works, first = dict[str, Work](), ""
    for name, outlook in outlooks.items():
        more: float | None = 0.0
        if first in ADD_CLIPS:
            measured = first in rates and name in rates
            ratio = rates[name]["amount"] / rates[first]["amount"] if measured else None
            more = None if ratio is None else outlooks[first].pending * ratio
        amount = None if more is None else outlook.pending + more
        if amount == 0:
            seconds: float | None = 0.0
        elif amount is None or name not in rates:
            seconds = None
        else:
            seconds = amount * rates[name]["seconds"] / rates[name]["amount"]
        works[name] = Work(outlook, more, seconds)
        first = first or (name if outlook.pending else "")
    return works


def _line(of: Pass, work: Work) -> str:
    pending, total = work.outlook.pending, _amount(work.outlook.total, of.measure)
    about = f", about {clock(work.seconds)}" if work.seconds else ""
    more = "more" if work.more is None else ""
    if work.more:
        more = f"up to {_amount(math.ceil(work.more), of.measure)} more"
    if pending:
        later = f"; {more} after the passes before" if more else ""
        return f"{of.name:<9} {_number(pending, of.measure)} of {total}: {work.outlook.why}{later}{about}"
    if work.more is None:
        return f"{of.name:<9} not known yet, depends on the passes before ({total} done)"
    return f"{of.name:<9} {f'{more} after the passes before' if more else 'nothing to do'} ({total} done){about}"


def _total(works: Mapping[str, Work]) -> list[str]:
    """Return the line with the time of all passes; those of a chain run at the same time."""
    pending = [name for name, work in works.items() if work.outlook.pending or work.more != 0]
    chains = [[works[each.name].seconds for each in chain if each.name in pending] for chain in CHAINS]
    unknown = [name for name in pending if works[name].seconds is None]
    total = sum(max((seconds for seconds in chain if seconds), default=0.0) for chain in chains)
    if not total:
        return []
    without = f" without {', '.join(unknown)}, whose time is not known yet" if unknown else ""
    return [f"about {clock(total)} in all{without}, at the last builds' rates"]


def _amount(amount: float, measure: str) -> str:
    """Format an amount with its unit."""
    if measure == "video":
        return f"{clock(amount)} of video"
    return counted(round(amount), "files" if measure == "sources" else measure)


def _number(amount: float, measure: str) -> str:
    return clock(amount) if measure == "video" else f"{amount:,.0f}"
