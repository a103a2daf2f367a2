"""The pass `embed`: embeddings, hashes and expensive scores of the clips that pass the scan's thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from filters.content.reference import pictures_digest
from pipeline.config.recipe import Recipe, RecipeError
from pipeline.engine.base import Machine, Stage
from pipeline.passes.base import Outlook, Pass
from pipeline.passes.embed_on_gpu import UNITS_AT_ONCE, EncodeClips, EncodeUnit, ScoreFrames
from pipeline.passes.embed_worker import Embed
from pipeline.passes.snapshot import Snapshot
from pipeline.state import committed, fingerprints
from pipeline.state.units import UnitClips, plain_columns, units_of
from pipeline.storage.store import Store


class EmbedPass(Pass):
    name, measure = "embed", "clips"

    def fingerprint(self, recipe: Recipe) -> str:
        return fingerprints.embed_fingerprint(recipe)

    def uses_gpu(self, recipe: Recipe) -> bool:
        return fingerprints.embed_uses_gpu(recipe)

    def pending(self, snapshot: Snapshot, workers: int) -> Iterator[UnitClips]:
        return embed_units(snapshot)

    def stages(self, snapshot: Snapshot, machine: Machine) -> Sequence[Stage]:
        """Return two stages with a GPU, the second with one worker per GPU; else one stage.

        Without a GPU the stage shares the cores with the scan. On two cores it has one worker, because loading models
        takes as long as a small build; on more cores nearly as many as the scan.
        """
        recipe = snapshot.recipe
        args = (snapshot.store, recipe, snapshot.kept_by_hand)
        if machine.gpu and self.uses_gpu(recipe):
            return [
                Stage(ScoreFrames, args, UnitClips, cpus=1.0, own_process=True),
                Stage(EncodeClips, args, EncodeUnit, cpus=0.0, gpus=1.0, at_once=UNITS_AT_ONCE),
            ]
        return [Stage(Embed, args, UnitClips, cpus=min(0.7, machine.widest / 2))]

    def outlook(self, snapshot: Snapshot) -> Outlook:
        pending = sum(unit.amount for unit in embed_units(snapshot))
        return Outlook(pending, snapshot.clip_count, "new clips, or clips that changed thresholds admit")


EMBED = EmbedPass()


def with_reference_digest(recipe: Recipe) -> Recipe:
    """Return `recipe` with the absolute path and a digest of the pictures in the options of the filter `reference`.

    Changed pictures then change the fingerprint, so that scores are computed again. A recipe without the filter is
    returned unchanged. Raises RecipeError for a folder without pictures.
    """
    options = recipe.filters.get("reference") or {}
    if not options.get("folder"):
        return recipe
    store = Store(str(options["folder"]))
    folder = str(store.local or store.uri)
    try:
        options = {**options, "folder": folder, "digest": pictures_digest(folder)}
    except ValueError as error:
        raise RecipeError(f"filters.reference.folder: {error}") from error
    return replace(recipe, filters={**recipe.filters, "reference": options})


def embed_units(snapshot: Snapshot) -> Iterator[UnitClips]:
    """Yield the scanned clips that lack a score and that no threshold has rejected or a person keeps, by the unit with
    their frames."""
    recipe, kept_by_hand = snapshot.recipe, pa.array(snapshot.kept_by_hand, pa.string())
    column_types = {**fingerprints.columns_of(recipe, "scan"), **fingerprints.columns_of(recipe, "embed")}
    columns = {"dropped", "scored", *fingerprints.thresholds_of(recipe, column_types)}
    for rows in committed.clips(snapshot.store, recipe, snapshot.sources, columns):
        by_hand = pc.is_in(rows["clip_id"], kept_by_hand).to_numpy()
        pending = rows.filter(pa.array(fingerprints.needs_scoring(rows, recipe, by_hand)))
        yield from units_of(plain_columns(pending, ("scan_fragment", "unit", "source_id", "clip_id")))
