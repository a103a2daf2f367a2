"""The pass `scan`: decode every source once to find its clips, compute cheap scores, and sample frames."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.recipe import Recipe
from pipeline.engine.base import Machine, Stage
from pipeline.passes.base import Outlook, Pass
from pipeline.passes.embed import EMBED
from pipeline.passes.snapshot import Snapshot
from pipeline.scan.scan import segments
from pipeline.scan.worker import Scan
from pipeline.sources.discover import Source
from pipeline.state import committed, fingerprints
from pipeline.state.units import Part, ScanUnit
from pipeline.tables.fragments import replace_column

ROWS_AT_ONCE = 10_000  # rows converted to Python objects at a time
LEAST_WORKERS = 32  # size units for at least this many workers, so that nodes that join later get work
SMALLEST_UNIT = 10.0  # seconds of video; smaller units cost more to commit than they gain
OPENING = 1.0  # seconds of video whose decoding costs as much as opening a file
PARTS = pa.schema(
    [
        ("key", pa.string()),  # Part.key
        ("source_id", pa.string()),
        ("source_uri", pa.string()),
        ("duration", pa.float64()),
        ("first", pa.float64()),  # seconds; bounds of the segment, null for a whole source
        ("last", pa.float64()),
        ("seconds", pa.float64()),
    ]
)


class ScanPass(Pass):
    name, measure = "scan", "video"

    def fingerprint(self, recipe: Recipe) -> str:
        return fingerprints.scan_fingerprint(recipe)

    def pending(self, snapshot: Snapshot, workers: int) -> Iterator[ScanUnit]:
        return scan_units(self.pending_parts(snapshot), snapshot.recipe, workers)

    def pending_parts(self, snapshot: Snapshot) -> pa.Table:
        return not_scanned(source_parts(snapshot.sources, snapshot.recipe), snapshot.scanned)

    def stages(self, snapshot: Snapshot, machine: Machine) -> Sequence[Stage]:
        """Return a stage that reserves half a core per worker if the embed pass runs on the same cores, else a core."""
        cpus = 1.0 if machine.gpu and EMBED.uses_gpu(snapshot.recipe) else 0.5
        return [Stage(Scan, (snapshot.store, snapshot.recipe), ScanUnit, cpus)]

    def outlook(self, snapshot: Snapshot) -> Outlook:
        parts = source_parts(snapshot.sources, snapshot.recipe)
        pending, total = (
            float(pc.sum(rows["seconds"]).as_py() or 0.0) for rows in (not_scanned(parts, snapshot.scanned), parts)
        )
        current = self.fingerprint(snapshot.recipe)
        fragments = committed.read_fragments(snapshot.store, "state/scan")
        other_options = snapshot.store.exists("dataset.json") and any(
            fragment.done.get("fingerprint") != current for fragment in fragments
        )
        return Outlook(pending, total, "scan options or filters changed" if other_options else "new sources")


def source_parts(sources: pa.Table, recipe: Recipe) -> pa.Table:
    """Return the parts of all usable sources, rows of PARTS ordered by source_id and time. Each segment of a long
    source is a part; any other source is one part."""
    rows = sources.filter(pc.equal(sources["status"], "ok"))
    long = pc.greater(rows["duration"], recipe.scan.segment_seconds)
    split = []
    for row in rows.filter(long).to_pylist():
        spans = segments(row["start"], row["duration"], recipe.scan.segment_seconds)
        for span in spans if len(spans) > 1 else [None]:
            part = Part(Source(row["source_id"], ""), row["duration"], span)
            first, last = span or (None, None)
            split.append({**row, "key": part.key, "seconds": part.seconds, "first": first, "last": last})
    short = rows.filter(pc.invert(long))
    short = short.append_column("key", short["source_id"]).append_column("seconds", short["duration"])
    for name in ("first", "last"):
        short = short.append_column(name, pa.nulls(short.num_rows, pa.float64()))
    parts = pa.concat_tables([pa.Table.from_pylist(split, schema=PARTS), short.select(PARTS.names).cast(PARTS)])
    return parts.sort_by([("source_id", "ascending"), ("first", "ascending")])


def not_scanned(parts: pa.Table, done: committed.ScanState) -> pa.Table:
    return parts.filter(pc.invert(pc.is_in(parts["key"], done.keys)))


def scan_units(parts: pa.Table, recipe: Recipe, workers: int) -> Iterator[ScanUnit]:
    """Group parts into units of at most `segment_seconds` of video, small enough that every worker receives several,
    including workers that join later."""
    spread = (pc.sum(parts["seconds"]).as_py() or 0.0) / (2 * max(LEAST_WORKERS, workers))
    size = min(recipe.scan.segment_seconds, max(spread, SMALLEST_UNIT))
    unit: list[Part] = []
    filled = 0.0
    for part in _objects(parts):
        if unit and filled + part.seconds > size:
            yield ScanUnit(tuple(unit))
            unit, filled = [], 0.0
        unit.append(part)
        filled += part.seconds + OPENING
    if unit:
        yield ScanUnit(tuple(unit))


def _objects(parts: pa.Table) -> Iterator[Part]:
    for batch in parts.to_batches(max_chunksize=ROWS_AT_ONCE):
        for row in batch.to_pylist():
            segment = None if row["first"] is None else (row["first"], row["last"])
            yield Part(Source(row["source_id"], row["source_uri"]), row["duration"], segment)


def with_errors(sources: pa.Table, done: committed.ScanState) -> pa.Table:
    """Return the rows of tables/sources after the scan. The status is `failed` if no part of a source could be scanned;
    if some parts could, `error` lists the errors of the others."""
    errors = {**done.errors, **done.unreachable}
    messages = {**errors, **done.notes}
    parts: dict[str, list[str]] = defaultdict(list)
    for key in sorted(messages):
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
                f"{key.partition('@')[2]} s: {messages[key]}" if "@" in key else messages[key] for key in keys
            )
    usable = pc.equal(sources["status"], "ok")
    for name, values in (("error", error), ("status", status)):
        positions = pc.index_in(sources["source_id"], pa.array(list(values), pa.string()))
        new = pa.array(list(values.values()), pa.string()).take(positions)
        sources = replace_column(sources, name, pc.if_else(usable, pc.coalesce(new, sources[name]), sources[name]))
    return sources
