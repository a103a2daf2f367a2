"""The embed pass in two stages, as where the encoder runs on a GPU, gives the rows of the one-stage pass."""

from __future__ import annotations

import pickle
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from light_recipe import GOLDEN_OPTIONS

from filters.encoders.base import EncoderOutput
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.engine.base import Machine, Stage
from pipeline.engine.local import LocalEngine
from pipeline.passes.embed import EMBED
from pipeline.passes.embed_on_gpu import EncodeClips, EncodeUnit, JoinedCalls, ScoreFrames
from pipeline.passes.snapshot import Snapshot
from pipeline.state.units import Handoff, UnitClips, UnitResult
from pipeline.storage.store import Store
from pipeline.tables.fragments import read_fragments
from pipeline.tables.published import read_table

RECIPE = load_recipe("embedded", [*GOLDEN_OPTIONS, "select.thresholds.colour_saturation.min=0.2"])


def two_stages(store: Store, recipe: Recipe, by_hand: frozenset[str] = frozenset()) -> list[Stage]:
    """The stages of the standard recipe on a GPU, for `recipe`."""
    stages = EMBED.stages(Snapshot(store, load_recipe("standard"), []), Machine(cpus=2, widest=2, gpu=True))
    return [replace(stage, args=(store, recipe, by_hand)) for stage in stages]


def rows_of(store: Store) -> dict[str, dict[str, Any]]:
    rows = [row for fragment in read_fragments(store, "state/embed") for row in fragment.rows(store).to_pylist()]
    return {row["clip_id"]: {**row, "scored": set(row["scored"])} for row in rows}


def test_two_stages_score_and_embed_as_one_does(golden_dataset, tmp_path):
    store = Store(shutil.copytree(golden_dataset, tmp_path / "dataset").as_posix())
    units = [UnitClips(Path(f.name).stem, f.name) for f in read_fragments(store, "state/scan")]
    machine = Machine(cpus=2, widest=2, gpu=True)
    one_stage = EMBED.stages(Snapshot(store, RECIPE, []), machine)  # the recipe has no model for a GPU
    assert len(one_stage) == 1
    clips = read_table(store, "tables/clips")
    assert clips is not None
    stopped = clips.filter(pc.less(clips["colour_saturation"], 0.2))["clip_id"].to_pylist()
    args = (store, RECIPE, frozenset(stopped[:1]))  # a person keeps one of the clips that the threshold stops
    shutil.rmtree(tmp_path / "dataset" / "state" / "embed")
    worker = one_stage[0].worker(*args)
    amounts = [worker(unit).amount for unit in units]
    expected = rows_of(store)
    assert {clip for clip, row in expected.items() if row["frame_embeddings"] is None} == set(stopped[1:])
    assert stopped[1:]

    shutil.rmtree(tmp_path / "dataset" / "state" / "embed")
    first, second = ScoreFrames(*args), EncodeClips(*args)
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

    shutil.rmtree(tmp_path / "dataset" / "state" / "embed")
    stages = two_stages(*args)
    results = list(LocalEngine(2).run(units, stages))
    assert sorted(result.amount for result in results) == sorted(amounts)
    assert rows_of(store) == expected, "units share calls of the encoder, CPU filters run in child processes"


class Look:
    """An encoder that gives each picture its own mean, waits for `gate`, and cannot take a picture of 13."""

    def __init__(self) -> None:
        self.sizes, self.gate = list[int](), threading.Event()

    def __call__(self, pictures: Sequence[np.ndarray]) -> EncoderOutput:
        self.sizes.append(len(pictures))
        self.gate.wait()
        means = np.array([[picture.mean()] for picture in pictures])
        if 13 in means:
            raise ValueError("13")
        return EncoderOutput(means, means, [[(str(mean), 1.0)] for (mean,) in means.tolist()])


def test_calls_that_wait_go_through_the_encoder_together_and_each_gets_its_own_part():
    look = Look()
    joined = JoinedCalls(look, most=10)
    pictures = [[np.full((2, 2), 10 * i + j) for j in range(i + 1)] for i in range(6)]
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(joined, pictures[0])
        while not look.sizes:
            time.sleep(0.001)
        others = [threads.submit(joined, of_one) for of_one in pictures[1:]]
        while len(joined._waiting) < 5:
            time.sleep(0.001)
        look.gate.set()
        outputs = [call.result()[0] for call in (first, *others)]
    assert look.sizes[0] == 1
    assert sum(look.sizes) == 21
    assert max(look.sizes) <= 10
    assert len(look.sizes) < 6
    for of_one, output in zip(pictures, outputs, strict=True):
        assert output.embedding[:, 0].tolist() == [picture.mean() for picture in of_one]
        assert [tags[0][0] for tags in output.tags] == [str(picture.mean()) for picture in of_one]


def test_a_call_that_fails_fails_for_all_that_share_it_and_not_for_the_next():
    look = Look()
    look.gate.set()
    joined = JoinedCalls(look, most=10)
    with pytest.raises(ValueError, match="13"):
        joined([np.full((2, 2), 13)])
    assert joined([np.full((2, 2), 5)])[0].embedding.tolist() == [[5.0]]


def test_on_a_gpu_a_cpu_filter_holds_none():
    machine = Machine(cpus=16, widest=16, gpu=True)
    stages = EMBED.stages(Snapshot(Store("/nowhere"), load_recipe("standard"), []), machine)
    assert [(stage.worker, stage.gpus, stage.cpus > 0) for stage in stages] == [
        (ScoreFrames, 0.0, True),
        (EncodeClips, 1.0, False),
    ]
