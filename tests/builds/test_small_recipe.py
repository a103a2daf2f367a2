"""The recipe `small`, from scanned clips to captions, with tiny models in the format of the model hub."""

from __future__ import annotations

import shutil

from light_recipe import GOLDEN_OPTIONS
from tiny_models import caption_models
from tiny_models.tiny_clip import save_tiny_clip

from pipeline.config.recipe import load_recipe
from pipeline.engine.base import Machine
from pipeline.passes.caption import CaptionPass
from pipeline.passes.embed import EmbedPass
from pipeline.passes.snapshot import Snapshot
from pipeline.sources.discover import discover
from pipeline.storage.store import Store

TEXT = "A brown dog runs over the wet lawn."


def test_small_embeds_with_openclip_and_captions_with_smolvlm(golden_dataset, sample_videos, tmp_path):
    store = Store(shutil.copytree(golden_dataset, tmp_path / "dataset").as_posix())
    (tmp_path / "clip").mkdir()
    clip = save_tiny_clip(tmp_path / "clip")
    vlm = caption_models.save(*caption_models.speaking_smolvlm(TEXT), tmp_path / "vlm")
    models = [f"encoder.model=local-dir:{clip}", f"caption.options.model={vlm}", "caption.options.max_new_tokens=20"]
    recipe = load_recipe("small", [*GOLDEN_OPTIONS, *models])
    files = discover([str(sample_videos["bikes"])], recipe.sources)
    for each in (EmbedPass(), CaptionPass()):
        snapshot = Snapshot(store, recipe, files)
        (stage,) = each.stages(snapshot, Machine(cpus=2, widest=2, gpu=False))
        worker = stage.worker(*stage.args)
        for unit in each.pending(snapshot, 1):
            worker(unit)
    snapshot = Snapshot(store, recipe, files)
    kept = [row for table in snapshot.joined_rows(snapshot.selected) for row in table.to_pylist() if row["keep"]]
    assert kept
    assert {row["caption_dense"] for row in kept} == {TEXT}
    assert {row["caption_by"].partition(":")[0] for row in kept} == {"vlm"}
    assert {len(row["embedding"]) for row in kept} == {32}
