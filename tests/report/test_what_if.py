"""Counterfactuals: the answer to "what if" is what a selection with those options gives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import recipe as recipes
from pipeline.report.what_if import compare, notches, what_if
from pipeline.selection.select import select

RECIPE = recipes.from_dict(
    {
        "select": {
            "duplicates": False,
            "thresholds": {
                "motion_object": {"min": 0.25},
                "exposure_luma": {"min": 0.1, "max": 0.8},
                "text_area": {"max": 0.5},
            },
        }
    }
)


def clips_table(count: int = 200) -> pa.Table:
    """Clips of 3 s with even scores; `text_area` was measured, and a caption made, only where the others kept the clip,
    as in a build."""
    rows = []
    for i in range(count):
        motion, luma = i / count, (i * 7 % count) / count
        cheap = motion >= 0.25 and 0.1 <= luma <= 0.8
        text = (i * 13 % count) / count if cheap else None
        rows.append(
            {
                "clip_id": hashlib.sha256(str(i).encode()).hexdigest()[:20],
                "source_id": f"s{i % 9}", "source_uri": f"/raw/{i % 9}.mp4", "start": 3.0 * i, "end": 3.0 * i + 3,
                "crop_w": 1280, "crop_h": 720, "frames": 75, "dropped": "duration" if i % 50 == 3 else None,
                "motion_object": motion, "exposure_luma": luma, "text_area": text, "exposure_dark": 0.5,
                "caption": "words" if cheap and text is not None and text <= 0.5 else None,
            }
        )  # fmt: skip
    schema = pa.schema([("dropped", pa.string())])
    table = pa.Table.from_pylist(rows)
    return table.set_column(table.column_names.index("dropped"), schema[0], table["dropped"].cast(pa.string()))


CLIPS = clips_table()


def kept(clips: pa.Table, overrides: list[str]) -> set[str]:
    chosen = select(clips, recipes.from_dict(recipes.to_dict(RECIPE), overrides))
    return set(chosen.filter(chosen["keep"])["clip_id"].to_pylist())


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["motion_object.min", "exposure_luma.min", "exposure_luma.max", "text_area.max"]), st.floats(0, 1)
)
def test_what_is_dropped_and_added_is_what_selection_says(key: str, value: float) -> None:
    override = f"select.thresholds.{key}={value}"
    answer = compare(CLIPS, RECIPE, [override])
    before, after = kept(CLIPS, []), kept(CLIPS, [override])
    assert answer.kept == len(before)
    assert answer.dropped.clips == len(before - after)
    assert answer.added.clips - answer.uncaptioned == len(after - before)
    assert answer.dropped.hours == pytest.approx(len(before - after) * 3 / 3600)
    assert set(answer.dropped.examples) <= before - after
    assert answer.dropped.examples == tuple(sorted(before - after)[:5])


def test_clips_without_a_caption_yet_count_as_added_and_are_said_to_need_one() -> None:
    answer = compare(CLIPS, RECIPE, ["text_area.max=0.6"])
    assert answer.added.clips == answer.uncaptioned > 0
    assert answer.dropped.clips == 0
    minutes, seconds = divmod(3 * answer.added.clips, 60)
    assert f"clips of {minutes}:{seconds:02} in all, of which {answer.uncaptioned} have no caption yet" in str(answer)


def test_clips_that_dear_filters_skipped_are_not_promised() -> None:
    answer = compare(CLIPS, RECIPE, ["motion_object.min=0.2"])
    assert answer.added.clips == 0
    motion, luma = (CLIPS[name].to_numpy() for name in ("motion_object", "exposure_luma"))
    let_through = (motion >= 0.2) & (motion < 0.25) & (luma >= 0.1) & (luma <= 0.8) & (np.arange(len(CLIPS)) % 50 != 3)
    assert answer.unscored.clips == let_through.sum() > 0
    assert "their other filters have not run yet" in str(answer)


def test_short_keys_mean_thresholds_and_selection() -> None:
    whole = compare(CLIPS, RECIPE, ["select.thresholds.motion_object.min=0.5", "select.val_fraction=0.5"])
    assert compare(CLIPS, RECIPE, ["motion_object.min=0.5", "val_fraction=0.5"]) == whole


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scan.max_seconds=5", "only keys under select"),
        ("motion_objekt.min=0.5", "did you mean 'motion_object'"),
        ("motion_object.mni=0.5", "did you mean 'min'"),
        ("motion_object", "look like"),
    ],
)
def test_an_option_that_cannot_be_tried_is_named(override: str, message: str) -> None:
    with pytest.raises(recipes.RecipeError, match=message):
        compare(CLIPS, RECIPE, [override])


def test_each_threshold_moves_by_a_twentieth_of_the_clips_both_ways() -> None:
    moves = {(notch.column, notch.side): notch for notch in notches(CLIPS, RECIPE)}
    assert set(moves) == {
        ("motion_object", "min"),
        ("exposure_luma", "min"),
        ("exposure_luma", "max"),
        ("text_area", "max"),
    }
    motion = moves["motion_object", "min"]
    assert motion.looser is not None
    assert motion.stricter is not None
    looser, stricter = (float(change.overrides[0].partition("=")[2]) for change in (motion.looser, motion.stricter))
    scores = CLIPS["motion_object"].to_numpy()
    assert [round(float(np.mean(scores < t)), 2) for t in (looser, 0.25, stricter)] == [0.2, 0.25, 0.3]
    assert motion.stricter == compare(CLIPS, RECIPE, [f"motion_object.min={stricter}"])
    assert motion.stricter.dropped.clips > 0


def test_a_threshold_beyond_all_scores_has_no_looser_notch() -> None:
    loose = recipes.from_dict(recipes.to_dict(RECIPE), ["select.thresholds.motion_object.min=-1"])
    notch = next(n for n in notches(CLIPS, loose) if n.column == "motion_object")
    assert notch.looser is None


def test_a_dataset_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tables/clips").mkdir(parents=True)
    pq.write_table(CLIPS, tmp_path / "tables/clips/00000.parquet")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert what_if(tmp_path, RECIPE, ["motion_object.min=0.5"]) == compare(CLIPS, RECIPE, ["motion_object.min=0.5"])
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    with pytest.raises(recipes.RecipeError, match="did you mean 'exposure_dark'"):
        what_if(tmp_path, RECIPE, ["exposure_darkk.min=0.5"])
    with pytest.raises(FileNotFoundError, match="build it first"):
        what_if(tmp_path / "none", RECIPE, [])
