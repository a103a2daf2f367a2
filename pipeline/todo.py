"""What is to be done: the units of each pass that no earlier build has finished. The driver's side, before any work."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import passes, state
from pipeline.captioning import caption_schema, chosen_text
from pipeline.recipe import Recipe
from pipeline.scan import segments
from pipeline.sources import Found, Source
from pipeline.storage import Store
from pipeline.units import CaptionPart, CaptionUnit, EmbedUnit, IdentifyUnit, Part, ScanUnit

IDENTIFY_UNIT = 32  # sources
BATCH = 100_000  # rows that are Python objects at once
CAPTION_UNIT = 64  # clips at least
SMALLEST_UNIT = 10.0  # seconds of video: less is not worth a commit
OPENING = 1.0  # seconds of video that opening a file costs as much as


def identify_units(found: Sequence[Found], store: Store) -> list[IdentifyUnit]:
    """Files that no build has looked at since they last changed."""
    _, missing = state.identified(store, found)
    return [IdentifyUnit(tuple(missing[at : at + IDENTIFY_UNIT])) for at in range(0, len(missing), IDENTIFY_UNIT)]


def source_rows(found: Sequence[Found], store: Store) -> list[dict[str, Any]]:
    """Rows of tables/sources, in order of URI, with `size`. Of several files with one content the first is used;
    files that are not identified yet are left out."""
    known, _ = state.identified(store, found)
    first: dict[str, str] = {}
    rows = []
    for item in found:
        if item.uri not in known:
            continue
        row = dict(known[item.uri])
        row["source_uri"] = row.pop("uri")
        row["metadata"] = json.dumps(dict(item.metadata), sort_keys=True, default=str) if item.metadata else None
        if row["status"] == "ok":
            same = first.setdefault(row["source_id"], item.uri)
            if same != item.uri:
                row |= {"status": "skipped", "error": f"the same content as {same}"}
        rows.append(row)
    return rows


def parts_of(sources: Sequence[dict[str, Any]], recipe: Recipe) -> list[Part]:
    """What there is to scan: every usable source, long ones in segments; in order of source_id and time."""
    parts = []
    for row in sorted((r for r in sources if r["status"] == "ok"), key=lambda r: str(r["source_id"])):
        metadata = json.loads(row["metadata"]) if row["metadata"] else {}
        source = Source(row["source_id"], row["source_uri"], row["size"], metadata)
        spans = segments(row["start"], row["duration"], recipe.scan.segment_seconds)
        parts += [Part(source, row["duration"], span if len(spans) > 1 else None) for span in spans]
    return parts


def scan_units(parts: Sequence[Part], recipe: Recipe, workers: int) -> list[ScanUnit]:
    """Parts grouped to units of up to `segment_seconds` of video, and small enough that every worker gets some."""
    spread = sum(part.seconds for part in parts) / max(1, 2 * workers)
    size = min(recipe.scan.segment_seconds, max(spread, SMALLEST_UNIT))
    units: list[list[Part]] = []
    filled = size
    for part in parts:
        if filled + part.seconds > size:
            units.append([])
            filled = 0.0
        units[-1].append(part)
        filled += part.seconds + OPENING
    return [ScanUnit(tuple(unit)) for unit in units]


def embed_units(parts: Sequence[Part], done: state.Scanned, store: Store, recipe: Recipe) -> list[EmbedUnit]:
    """Clips of earlier scans that are still in question and lack a score, by the fragment that has their frames."""
    rows = state.scan_rows(store, done, {part.source.source_id: part.source.uri for part in parts})
    if rows is None:
        return []
    rows = state.join(rows, state.embed_rows(store, recipe), passes.embed_schema(recipe))
    filters, bounds = passes.filters_of(recipe, "embed"), passes.scan_bounds(recipe)
    asked = (
        "clip_id",
        "dropped",
        "fragment",
        "scored",
        *passes.thresholds_of(recipe, dict.fromkeys(rows.schema.names)),
    )
    by_fragment: dict[str, list[str]] = defaultdict(list)
    for batch in rows.select(list(dict.fromkeys(asked))).to_batches(max_chunksize=BATCH):
        for row in batch.to_pylist():
            if passes.lacks_scores(row, filters, bounds, recipe):
                by_fragment[row["fragment"]].append(row["clip_id"])
    return [EmbedUnit(name, tuple(clips)) for name, clips in sorted(by_fragment.items())]


def clip_rows(sources: Sequence[dict[str, Any]], store: Store, recipe: Recipe) -> pa.Table:
    """Every clip of the sources with all that the passes say of it; null where a pass has not seen it (yet)."""
    uris = {row["source_id"]: row["source_uri"] for row in sources if row["status"] == "ok"}
    rows = state.scan_rows(store, state.scanned(store, recipe), uris)
    if rows is None:
        rows = passes.scan_schema(recipe).append(pa.field("fragment", pa.string())).empty_table()
    said = {row["source_id"]: row["metadata"] for row in sources if row["status"] == "ok"}
    rows = rows.append_column("metadata", pa.array([said[s] for s in rows["source_id"].to_pylist()], pa.string()))
    embed = passes.embed_schema(recipe).append(pa.field("at", pa.string()))
    rows = state.join(rows, state.embed_rows(store, recipe), embed)
    rows = state.join(rows, state.caption_rows(store, recipe), caption_schema(recipe))
    return rows.append_column("caption", chosen_text(rows, recipe.caption.text))


def caption_units(clips: pa.Table, recipe: Recipe) -> list[CaptionUnit]:
    """Kept clips that have neither a caption nor a reason for none, by the fragments that have their frames."""
    silent = pc.and_(pc.is_null(clips["caption_json"]), pc.is_null(clips["caption_error"]))
    left = clips.filter(pc.and_(clips["keep"], silent))
    rows = sorted(zip(*(left[name].to_pylist() for name in ("fragment", "clip_id", "at")), strict=True))
    size = max(recipe.caption.batch, CAPTION_UNIT)
    return [CaptionUnit(_parts(rows[at : at + size])) for at in range(0, len(rows), size)]


def _parts(rows: Sequence[tuple[str, str, str]]) -> tuple[CaptionPart, ...]:
    """`rows` are (scan fragment, clip_id, embed fragment), sorted."""
    by_fragment: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for fragment, clip, at in rows:
        by_fragment[fragment].append((clip, at))
    return tuple(
        CaptionPart(fragment, tuple(sorted({at for _, at in pairs})), tuple(clip for clip, _ in pairs))
        for fragment, pairs in by_fragment.items()
    )
