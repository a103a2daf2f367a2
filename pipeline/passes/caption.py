"""The pass `caption`: audited captions of the clips that selection keeps, and the scores that need a caption."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from captioners import captioner_uses_gpu
from captioners.listed import listed_texts
from pipeline.config.recipe import Recipe, RecipeError
from pipeline.engine.base import Machine, Stage
from pipeline.passes.base import Outlook, Pass
from pipeline.passes.caption_worker import CaptionClips
from pipeline.passes.snapshot import Snapshot
from pipeline.sources.discover import DiscoveredFile
from pipeline.state import fingerprints
from pipeline.state.units import CaptionPart, CaptionUnit, plain_columns, units_of
from pipeline.tables.fragments import fingerprint

UNITS_AT_ONCE = 4  # in a worker: two in the captioner, one being read, and one being scored


class CaptionPass(Pass):
    name, measure = "caption", "clips"

    def fingerprint(self, recipe: Recipe) -> str:
        return fingerprints.caption_fingerprint(recipe)

    def uses_gpu(self, recipe: Recipe) -> bool:
        return captioner_uses_gpu(recipe.caption.captioner)

    def pending(self, snapshot: Snapshot, workers: int) -> Iterator[CaptionUnit]:
        return caption_units(snapshot.selected_before_captions(), snapshot.sources, snapshot.recipe)

    def stages(self, snapshot: Snapshot, machine: Machine) -> Sequence[Any]:
        """Return a stage whose workers hold the captioner, or, for `ray_llm`, a stage around Ray's LLM processor.

        Without a GPU a worker reserves two cores: it captions a unit on one, and reads the next unit and scores the
        previous one on the other.
        """
        store, recipe = snapshot.store, snapshot.recipe
        if recipe.caption.captioner == "ray_llm":
            from pipeline.passes.ray_llm import AskRay  # takes seconds to import

            return [AskRay(store, recipe)]
        gpu = machine.gpu and self.uses_gpu(recipe)
        cpus, gpus = (1.0, 1.0) if gpu else (min(2.0, machine.widest), 0.0)
        return [Stage(CaptionClips, (store, recipe), CaptionUnit, cpus, gpus, UNITS_AT_ONCE)]

    def outlook(self, snapshot: Snapshot) -> Outlook:
        clips = snapshot.selected_before_captions()
        pending = sum(unit.amount for unit in caption_units(clips, snapshot.sources, snapshot.recipe))
        return Outlook(pending, pc.sum(clips["keep"]).as_py() or 0, "kept clips without a caption by this captioner")


def with_listed_captions(recipe: Recipe, files: Sequence[DiscoveredFile]) -> Recipe:
    """Return `recipe` with a digest of all texts in the lists among the captioner's options, if it is `listed`.

    A changed text then changes the fingerprint, so that the captions are read again. Raises RecipeError if no file has
    a text in the captioner's column.
    """
    if recipe.caption.captioner != "listed":
        return recipe
    column = str(recipe.caption.options.get("column", "caption"))
    if not any(listed_texts(json.dumps({column: file.metadata.get(column)}, default=str), column) for file in files):
        raise RecipeError(
            f"caption.captioner: listed reads captions from the column {column!r} of a list (csv, jsonl, parquet) or "
            "from the texts in a tar, and none of the inputs has one"
        )
    texts = sorted((file.uri, json.dumps(file.metadata.get(column), default=str)) for file in files if file.metadata)
    options = {**recipe.caption.options, "digest": fingerprint(texts)}
    return replace(recipe, caption=replace(recipe.caption, options=options))


def caption_units(clips: pa.Table, sources: pa.Table, recipe: Recipe) -> Iterator[CaptionUnit]:
    """Yield units of the kept clips that have neither a caption nor a caption error.

    A unit is one batch of the captioner, so that a crash loses at most the current batches.
    """
    listed = dict[str, str]()
    if recipe.caption.captioner == "listed":
        columns = (sources[name].to_pylist() for name in ("source_id", "metadata"))
        listed = {source: metadata for source, metadata in zip(*columns, strict=True) if source and metadata}
    pending = clips.filter(pc.and_(clips["keep"], pc.invert(clips["captioned"])))
    size = recipe.caption.batch
    rows = plain_columns(pending, ("source_id", "clip_id", "scan_fragment", "unit", "embed_fragment"))
    rows = rows.sort_by([("source_id", "ascending"), ("clip_id", "ascending")])
    for first in range(0, rows.num_rows, size):
        unit_rows = rows.slice(first, size)
        parts = []
        for part in units_of(unit_rows):
            part_rows = unit_rows.filter(pc.is_in(unit_rows["clip_id"], pa.array(part.clip_ids)))
            metadata = {source: listed[source] for source in part_rows["source_id"].to_pylist() if source in listed}
            embedded = tuple(sorted(set(part_rows["embed_fragment"].drop_null().to_pylist())))
            parts.append(CaptionPart(part, embedded, metadata))
        yield CaptionUnit(tuple(parts))
