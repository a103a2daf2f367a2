"""Decisions by hand: a build follows them, says so, is deterministic, and loses none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from footage.videos import pan, texture, write_video
from light_recipe import GOLDEN_OPTIONS

from pipeline.build import build
from pipeline.config.recipe import load_recipe
from pipeline.dataset.finish import files_of
from pipeline.dataset.verify import verify
from pipeline.export.reader import read_dataset
from pipeline.plan import plan
from pipeline.report.summary import summary
from pipeline.storage.store import Store
from pipeline.tables.decisions import DecisionLog, read_decisions
from pipeline.tables.published import read_table

WRITTEN = "A person has written this."


@pytest.fixture(scope="module")
def sources(sample_videos: dict[str, Path]) -> list[str]:
    return [str(sample_videos[name]) for name in ("bikes", "bigbuckbunny")]


def rows(dataset: Path, table: str = "clips") -> dict[str, dict[str, Any]]:
    read = read_table(Store(str(dataset)), f"tables/{table}")
    assert read is not None
    return {row["clip_id"]: row for row in read.to_pylist()}


def decide(dataset: Path, clip: Mapping[str, Any], **change: Any) -> None:
    names = ("clip_id", "source_uri", "start", "end")
    DecisionLog(Store(str(dataset))).add([{**{name: clip[name] for name in names}, **change}])


def published(dataset: Path) -> dict[str, bytes]:
    """The tables and shards that a dataset names, with their bytes."""
    names = files_of(json.loads((dataset / "dataset.json").read_text()))
    return {name: (dataset / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def decided(golden_dataset: Path, sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden dataset, built again after four decisions: each of another type, one of a clip that is gone."""
    dataset = shutil.copytree(golden_dataset, tmp_path_factory.mktemp("decided") / "dataset")
    clips = list(rows(dataset).values())
    kept = [clip for clip in clips if clip["keep"]]
    rejected = next(clip for clip in clips if clip["rejected_by"] == ["duplicates"])
    decide(dataset, kept[0], decision="reject")
    decide(dataset, kept[1], caption=WRITTEN)
    decide(dataset, rejected, decision="keep")
    decide(dataset, {**kept[0], "clip_id": "f" * 20}, decision="keep")
    build(sources, str(dataset), load_recipe("embedded", GOLDEN_OPTIONS), cores=1, engine="local")
    return dataset


def test_clips_are_kept_rejected_and_captioned_by_hand(decided, golden_dataset):
    before, after = rows(golden_dataset), rows(decided)
    changed = {clip: row["decision"] for clip, row in after.items() if row["keep"] != before[clip]["keep"]}
    assert sorted(changed.values()) == ["keep", "reject"]
    for clip, decision in changed.items():
        assert after[clip]["rejected_by"] == (["hand"] if decision == "reject" else [])
    (edited,) = [row for row in after.values() if row["caption_by"] == "hand"]
    assert (edited["caption"], edited["caption_short"]) == (WRITTEN, None)
    assert (
        len([row for row in after.values() if row["caption"]]) == len([r for r in before.values() if r["caption"]]) + 1
    )


def test_shards_hold_what_was_decided(decided):
    clips = {clip.key: (clip.caption, clip.captions()) for clip in read_dataset(str(decided)).clips()}
    after = rows(decided)
    assert clips.keys() == {clip for clip, row in after.items() if row["keep"]}
    assert [texts for caption, texts in clips.values() if caption == WRITTEN] == [[WRITTEN]]
    assert verify(str(decided)) == []


def test_the_dataset_says_what_became_of_every_decision(decided):
    outcomes = rows(decided, "decisions")
    assert sorted(row["outcome"] for row in outcomes.values()) == ["kept", "kept", "rejected", "vanished"]
    assert outcomes["f" * 20]["outcome"] == "vanished"
    info = json.loads((decided / "dataset.json").read_text())
    assert {name: info["counts"][name] for name in info["counts"] if "hand" in name or "decisions" in name} == {
        "kept_by_hand": 1,
        "rejected_by_hand": 1,
        "captions_by_hand": 1,
        "decisions_not_followed": 0,
        "decisions_vanished": 1,
    }
    assert info["counts"]["rejected_by"]["hand"] == 1
    assert "| rejected by hand | 1 |" in (decided / "README.md").read_text()
    assert "decisions without a clip" in summary("x", info)
    report = (decided / "report.html").read_text()
    assert "Decisions by hand: kept regardless of scores 1, rejected 1, captions edited 1." in report
    assert "on clips that are no longer in the dataset 1" in report


def test_the_same_decisions_give_the_same_bytes_and_undone_ones_leave_nothing(
    decided, golden_dataset, sources, tmp_path
):
    recipe, again = load_recipe("embedded", GOLDEN_OPTIONS), tmp_path / "again"
    shutil.copytree(golden_dataset, again)
    log = DecisionLog(Store(str(again)))  # of one writer, where the others were of four
    log.add(read_decisions(Store(str(decided))).drop_columns(["time"]).to_pylist()[::-1])
    build(sources, str(again), recipe, cores=1, engine="local")
    assert published(again) == published(decided)
    shutil.rmtree(again / "decisions")
    build(sources, str(again), recipe, cores=1, engine="local")
    before, after = rows(golden_dataset), rows(again)
    assert {clip: row["rejected_by"] for clip, row in after.items()} == {c: r["rejected_by"] for c, r in before.items()}
    assert after[next(iter(after))].keys() == before[next(iter(before))].keys()
    shards = {name: data for name, data in published(golden_dataset).items() if name.startswith("shards/")}
    assert {name: data for name, data in published(again).items() if name.startswith("shards/")} == shards
    assert "decisions" not in json.loads((again / "dataset.json").read_text())["tables"]


def test_a_new_decision_is_noticed_and_an_unchanged_dataset_is_left_alone(decided, sources, tmp_path):
    recipe, dataset = load_recipe("embedded", GOLDEN_OPTIONS), tmp_path / "dataset"
    shutil.copytree(decided, dataset)
    build(sources, str(dataset), recipe, cores=1, engine="local")
    written = (dataset / "dataset.json").stat().st_mtime_ns
    build(sources, str(dataset), recipe, cores=1, engine="local")
    assert (dataset / "dataset.json").stat().st_mtime_ns == written
    kept = next(row for row in rows(dataset).values() if row["keep"])
    decide(dataset, kept, decision="reject")
    planned = plan(sources, str(dataset), recipe)
    assert "in shards to write" in planned
    assert "after the passes before" not in planned  # only shards are pending, which add no clips
    build(sources, str(dataset), recipe, cores=1, engine="local")
    assert rows(dataset)[kept["clip_id"]]["rejected_by"] == ["hand"]


def test_a_clip_kept_by_hand_gets_all_scores_also_in_a_new_folder_with_the_same_decisions(tmp_path):
    video = [str(write_video(tmp_path / "dark.mp4", pan(texture(1, 240, 426) // 8, 12, 3), fps=10))]
    recipe = load_recipe("embedded", (*GOLDEN_OPTIONS, "select.thresholds.exposure_luma.min=0.2"))
    build(video, str(tmp_path / "old"), recipe, cores=1, engine="local")
    (clip,) = rows(tmp_path / "old").values()
    assert (clip["rejected_by"], clip["embedding"], clip["colour_saturation"]) == (["exposure_luma"], None, None)
    decide(tmp_path / "old", clip, decision="keep", caption=WRITTEN)
    assert "embed     1 of 1 clip" in plan(video, str(tmp_path / "old"), recipe)
    build(video, str(tmp_path / "old"), recipe, cores=1, engine="local")
    (clip,) = rows(tmp_path / "old").values()
    needed = ("embedding", "phash", "colour_saturation", "tags_labels", "caption", "shard")
    assert [name for name in ("keep", *needed) if not clip[name]] == []

    shutil.copytree(tmp_path / "old" / "decisions", tmp_path / "new" / "decisions")
    build(video, str(tmp_path / "new"), recipe, cores=1, engine="local")
    assert published(tmp_path / "new") == published(tmp_path / "old")
