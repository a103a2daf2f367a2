"""The report page: one HTML file with counts, reasons of rejection, histograms, and clips that play."""

from __future__ import annotations

import base64
import graphlib
import hashlib
import importlib.resources
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import markupsafe
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.base import why_null
from pipeline.config.recipe import from_dict
from pipeline.dataset.outcomes import NOT_KEPT, OUTCOMES, VANISHED
from pipeline.passes.registry import PASS_NAMES
from pipeline.report.calibrate import score_columns
from pipeline.report.caption_health import caption_health
from pipeline.report.clips import JOIN, choose, show
from pipeline.report.histogram import histogram, number
from pipeline.report.what_if import notches
from pipeline.selection import balance
from pipeline.sources.names import printable
from pipeline.storage.store import Store
from pipeline.tables import fragments
from pipeline.tables.columns import Columns

LATE_COLUMNS = pa.schema(  # columns that selection, captioning and packing add; some may be missing
    [
        ("keep", pa.bool_()),
        ("rejected_by", pa.list_(pa.string())),
        ("caption", pa.string()),
        ("bucket", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
    ]
)
IN_SHARDS = {"Buckets": "bucket", "Split": "split"}  # shown for kept clips only
FAILURES = 200  # the most unusable sources that are listed
TRIED_CLIPS = 20_000  # with more clips the page tries no other thresholds: each is a selection over all
FIRST_REASONS = ("duration", "error", "resolution", "frame_contract", "hdr")  # as select() asks for them
LAST_REASONS = ("hand", "balance", "encoding")
LARGEST = 12  # clusters shown
MAX_LABELS = 24  # a text column with more distinct values is not shown


@dataclass(frozen=True)
class Step:
    """One reason in the funnel. `removed`: clips whose first reason it is; `remaining`: clips that are left after it;
    `having`: all clips that it rejects; `alone`: clips that nothing else rejects."""

    reason: str
    removed: int
    remaining: int
    having: int
    alone: int


@dataclass(frozen=True)
class Bar:
    """A labelled count, of which `kept` are kept clips; `share` of the largest, 0..1."""

    label: str
    count: int
    kept: int
    share: float


def write_report(dataset: Path | str, clips_shown: int = 60) -> str:
    """Write DATASET/report.html from the dataset's tables and shards, and return its path or URL.

    The page is self-contained and depends only on the dataset's bytes. Half of the `clips_shown` are kept clips and
    half rejected ones, if there are enough of each. Raises OSError where there is no finished dataset.
    """
    store = Store(str(dataset))
    with store.fetched("tables/clips") as near:
        page = _render(store, Columns(near, "tables/clips", pa.schema([*fragments.CLIPS, *LATE_COLUMNS])), clips_shown)
    store.write("report.html", page.encode())
    return store.path("report.html")


def funnel(reasons: Mapping[tuple[str, ...], int]) -> list[Step]:
    """Return the steps from all clips to the kept ones. `reasons` counts the clips with each list of reasons of
    selection (empty: kept). Every list is in the order in which selection checks; so are the steps."""
    first, having, alone = Counter[str](), Counter[str](), Counter[str]()
    after: dict[str, set[str]] = {}
    for given, count in reasons.items():
        for reason in given:
            having[reason] += count
        for earlier, later in itertools.pairwise(given):
            after.setdefault(later, set()).add(earlier)
        if given:
            first[given[0]] += count
        if len(given) == 1:
            alone[given[0]] += count
    for earlier, later in itertools.permutations(having, 2):  # reasons of which no clip has both
        if _place(earlier) < _place(later):
            after.setdefault(later, set()).add(earlier)
    remaining, steps = sum(reasons.values()), []
    order = graphlib.TopologicalSorter({reason: sorted(after.get(reason, ())) for reason in sorted(having)})
    for reason in order.static_order():
        remaining -= first[reason]
        steps.append(Step(reason, first[reason], remaining, having[reason], alone[reason]))
    return steps


def _place(reason: str) -> int:
    """Return a number that grows in the order in which selection asks; thresholds and captions have the same."""
    if reason in FIRST_REASONS:
        return FIRST_REASONS.index(reason) - len(FIRST_REASONS)
    return LAST_REASONS.index(reason) + 1 if reason in LAST_REASONS else 0


def filter_costs(passes: Mapping[str, Any], reasons: Mapping[tuple[str, ...], int]) -> list[dict[str, Any]]:
    """Return one row a filter, the most expensive first: name, pass, seconds and clips (of the last build that ran it),
    ms (per clip), rejected (clips, by their `reasons`: a filter's columns begin with its name), rate (of all clips),
    share (of the most expensive filter's seconds)."""
    rows = [
        {"pass": name, "name": filter_name, "seconds": stats["seconds"], "clips": int(stats["clips"])}
        for name, pass_stats in passes.items()
        for filter_name, stats in (pass_stats.get("filters") or {}).items()
    ]
    rows.sort(key=lambda row: (-row["seconds"], row["name"]))
    for row in rows:
        prefix = f"{row['name']}_"
        row["rejected"] = sum(n for given, n in reasons.items() if any(f"{r}_".startswith(prefix) for r in given))
        row["ms"] = 1000 * row["seconds"] / max(1, row["clips"])
        row["rate"] = row["rejected"] / max(1, sum(reasons.values()))
        row["share"] = row["seconds"] / (rows[0]["seconds"] or 1.0)
    return rows


def _render(store: Store, clips: Columns, clips_shown: int) -> str:
    info = json.loads(store.read("dataset.json"))
    sources = Columns(store, "tables/sources", fragments.SOURCES).table()
    unused = sources.filter(pc.not_equal(sources["status"], "ok"))
    recipe, passes = info.get("recipe", {}), info.get("passes", {})
    thresholds: Mapping[str, Mapping[str, Any]] = recipe.get("select", {}).get("thresholds", {})

    seconds = pc.subtract(clips["end"], clips["start"]).to_numpy()
    decisions = clips.table("clip_id", "source_id", "keep", "rejected_by")
    keep = pc.fill_null(decisions["keep"], False).to_numpy(zero_copy_only=False).astype(bool)
    reasons = _reasons(decisions)
    ids = choose(decisions, clips_shown)
    del decisions
    numbers, labels = _score_columns(clips)
    histograms = [histogram(name, fragments.floats(clips[name]), keep, thresholds.get(name)) for name in numbers]
    rows = clips.rows(ids)
    shown = show(store, [rows[clip] for clip in ids], histograms, labels)
    moved = notches(clips.table(), from_dict(recipe)) if 0 < len(keep) <= TRIED_CLIPS else []

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(zip=zip)
    environment.filters.update(number=number, duration=_duration, clock=_clock, size=_size, printable=printable)
    script, style = _asset("report.js"), _asset("report.css")
    return environment.get_template("report.html").render(
        name=PurePosixPath(store.uri.partition("?")[0]).name,
        info=info,
        recipe=recipe,
        sources=sources.num_rows,
        opened=int(pc.sum(pc.equal(sources["status"], "ok")).as_py() or 0),
        source_seconds=pc.sum(sources["duration"]).as_py() or 0.0,
        failed=unused.slice(0, FAILURES).to_pylist(),
        failures=len(unused),
        clip_count=len(keep),
        kept=int(keep.sum()),
        kept_seconds=float(seconds[keep].sum()),
        captioned=len(keep) - clips["caption"].null_count,
        shards=info.get("shards", []),
        steps=funnel(reasons),
        not_followed=_not_followed(store, info),
        passes={name: passes[name] for name in PASS_NAMES if name in passes},
        filters=filter_costs(passes, reasons),
        bounded=[h for h in histograms if h.lines],
        notches={h.name: [notch for notch in moved if notch.column == h.name] for h in histograms},
        tried=len(keep) <= TRIED_CLIPS,
        unbounded=[h for h in histograms if not h.lines],
        distributions={
            **{title: _bars(pc.if_else(keep, clips[name], None), keep) for title, name in IN_SHARDS.items()},
            **{name: _bars(clips[name], keep) for name in labels},
        },
        tags=_top_tags(clips, keep)[:40],
        balance=_balance(clips, keep),
        unknown=_unknown(clips, keep),
        health=caption_health(clips),
        prompts=info.get("prompts", {}),
        shown=shown,
        shown_reasons=sorted({reason for clip in shown for reason in clip.reasons}),
        data=[{"id": clip.clip_id, "scores": [asdict(score) for score in clip.scores]} for clip in shown],
        script=markupsafe.Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=markupsafe.Markup(style),
    )


def _score_columns(clips: Columns) -> tuple[list[str], list[str]]:
    """Return the names of numeric columns, and of columns of labels: few distinct short texts."""
    numbers, labels = [name for name in score_columns(clips.schema) if name != "balance_cluster"], []
    for column in clips.schema:
        if column.name in (*fragments.CLIPS.names, *LATE_COLUMNS.names) or _says_why(column):
            continue
        if pa.types.is_boolean(column.type):
            labels.append(column.name)
        elif pa.types.is_string(column.type) and not column.name.startswith("caption"):
            values = pc.unique(clips[column.name].drop_null()).to_pylist()
            if 0 < len(values) <= MAX_LABELS and max(map(len, values)) <= 32:
                labels.append(column.name)
    return numbers, labels


def _says_why(column: pa.Field) -> bool:
    return column.name.endswith(why_null("")) and pa.types.is_string(column.type)


def _unknown(clips: Columns, keep: np.ndarray) -> list[Bar]:
    """Count clips with null scores by filter and reason, most frequent first."""
    whole = [
        pc.binary_join_element_wise(column.name.removesuffix(why_null("")), clips[column.name], ": ")
        for column in clips.schema
        if _says_why(column)
    ]
    bars = [bar for reasons in whole for bar in _bars(reasons, keep)]
    most = max((bar.count for bar in bars), default=1)
    return sorted((replace(bar, share=bar.count / most) for bar in bars), key=lambda bar: (-bar.count, bar.label))


def _not_followed(store: Store, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first decisions by hand whose clip has vanished or cannot be kept, rows of OUTCOMES."""
    if "decisions" not in info.get("tables", {}):
        return []
    rows = Columns(store, "tables/decisions", OUTCOMES).table()
    lost = pc.is_in(rows["outcome"], pa.array([VANISHED, NOT_KEPT]))
    return list(rows.filter(lost).slice(0, FAILURES).to_pylist())


def _reasons(clips: pa.Table) -> dict[tuple[str, ...], int]:
    """Count the clips with each list of reasons."""
    joined = pc.value_counts(pc.fill_null(pc.binary_join(clips["rejected_by"], JOIN), "")).to_pylist()
    return {tuple(filter(None, row["values"].split(JOIN))): row["counts"] for row in joined}


def _top_tags(clips: Columns, keep: np.ndarray) -> list[Bar]:
    """Count clips by their most likely tag."""
    if "tags_labels" not in clips:
        return []
    lists = pc.list_slice(clips["tags_labels"], 0, 1).combine_chunks()
    return _bars(pc.list_flatten(lists), keep[pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)])


def _balance(clips: Columns, keep: np.ndarray) -> dict[str, Any] | None:
    """Return statistics of the clusters of similar clips: their distribution over all clips and over kept clips with
    weights, and the largest clusters with their most common tags. None where the recipe does not balance."""
    if "balance_cluster" not in clips:
        return None
    labels = pc.fill_null(clips["balance_cluster"], -1).to_numpy()
    weight = np.nan_to_num(fragments.floats(clips["balance_weight"])) * keep
    tags: Any = np.full(len(labels), None)
    if "tags_labels" in clips:
        lists = pc.list_slice(clips["tags_labels"], 0, 1).combine_chunks()
        tags[pc.list_parent_indices(lists).to_numpy()] = pc.list_flatten(lists).to_pylist()
    bars = []
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    for cluster in np.argsort(-sizes, kind="stable")[:LARGEST]:
        mine = labels == cluster
        common = Counter(tag for tag in tags[mine] if tag).most_common(1)
        name = f"{cluster}: {common[0][0]}" if common else str(cluster)
        bars.append(Bar(name, int(sizes[cluster]), int(keep[mine].sum()), sizes[cluster] / max(1, sizes.max())))
    kept = balance.distribution(np.where(weight > 0, labels, -1), weight)
    return {"found": balance.distribution(labels), "kept": kept, "bars": [bar for bar in bars if bar.count]}


def _bars(column: pa.ChunkedArray | pa.Array, keep: np.ndarray) -> list[Bar]:
    """Count each value, most frequent first; nulls are left out."""
    words = {True: "yes", False: "no"}
    whole, kept = (
        {
            words.get(row["values"], row["values"]): row["counts"]
            for row in pc.value_counts(values.drop_null()).to_pylist()
        }
        for values in (column, column.filter(pa.array(keep)))
    )
    ordered = sorted(whole, key=lambda value: (-whole[value], value))
    return [Bar(value, whole[value], kept.get(value, 0), whole[value] / whole[ordered[0]]) for value in ordered]


def _asset(name: str) -> str:
    return (importlib.resources.files("pipeline.report") / "templates" / name).read_text()


def _duration(seconds: float) -> str:
    """Format a duration in hours from two hours, in minutes from two minutes, otherwise in seconds."""
    if seconds >= 7200:
        return f"{number(seconds / 3600)} h"
    return f"{number(seconds / 60)} min" if seconds >= 120 else f"{number(seconds)} s"


def _clock(seconds: float) -> str:
    """Format a time as 1:02:03.4, or 2:03.4 below an hour; rounded to the tenth, as in the explorer."""
    tenths = int(seconds * 10 + 0.5)
    minutes, rest = divmod(tenths, 600)
    front = f"{minutes // 60}:{minutes % 60:02d}" if minutes >= 60 else f"{minutes}"
    return f"{front}:{rest // 10:02d}.{rest % 10}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{number(count)} {unit}"
