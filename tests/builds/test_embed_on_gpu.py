"""The embed pass in two stages, as where the encoder runs on a GPU, gives the rows of the one-stage pass."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

from light_recipe import GOLDEN_OPTIONS

from pipeline.config.recipe import load_recipe
from pipeline.engine.base import Machine
from pipeline.passes.embed import EMBED
from pipeline.passes.embed_on_gpu import EncodeClips, EncodeUnit, ScoreFrames
from pipeline.state.units import Handoff, UnitClips, UnitResult
from pipeline.storage.store import Store
from pipeline.tables.fragments import read_fragments

RECIPE = load_recipe("embedded", [*GOLDEN_OPTIONS, "select.thresholds.colour_saturation.min=0.2"])


def rows_of(store: Store) -> dict[str, dict[str, Any]]:
    rows = [row for fragment in read_fragments(store, "state/embed") for row in fragment.rows(store).to_pylist()]
    return {row["clip_id"]: {**row, "scored": set(row["scored"])} for row in rows}


def test_two_stages_score_and_embed_as_one_does(golden_dataset, tmp_path):
    store = Store(shutil.copytree(golden_dataset, tmp_path / "dataset").as_posix())
    units = [UnitClips(Path(f.name).stem, f.name) for f in read_fragments(store, "state/scan")]
    one_stage = EMBED.stages(store, RECIPE, Machine(cpus=2, widest=2, gpu=True))  # no model for a GPU in this recipe
    assert len(one_stage) == 1
    shutil.rmtree(tmp_path / "dataset" / "state" / "embed")
    worker = one_stage[0].worker(*one_stage[0].args)
    amounts = [worker(unit).amount for unit in units]
    expected = rows_of(store)
    assert {row["frame_embeddings"] is None for row in expected.values()} == {True, False}

    shutil.rmtree(tmp_path / "dataset" / "state" / "embed")
    first, second = ScoreFrames(store, RECIPE), EncodeClips(store, RECIPE)
    steps: set[str] = set()
    for unit, amount in zip(units, amounts, strict=True):
        scored = first(unit)
        assert isinstance(scored, Handoff)
        assert isinstance(scored.unit, EncodeUnit)
        result = second(pickle.loads(pickle.dumps(scored.unit)))
        assert isinstance(result, UnitResult)
        assert (result.of, result.amount) == ("embed", amount)
        steps |= result.filters.keys()
    assert steps == {"colour", "tags", "encoder"}
    assert rows_of(store) == expected


def test_on_a_gpu_a_cpu_filter_holds_none():
    machine = Machine(cpus=16, widest=16, gpu=True)
    stages = EMBED.stages(Store("/nowhere"), load_recipe("standard"), machine)
    assert [(stage.worker, stage.gpus, stage.cpus > 0) for stage in stages] == [
        (ScoreFrames, 0.0, True),
        (EncodeClips, 0.5, False),
    ]
