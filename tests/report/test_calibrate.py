"""Calibration: percentiles of scores, and thresholds against labels, on scores whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.config.recipe import Bounds, Recipe, to_dict
from pipeline.report.calibrate import calibrate, separation, separations, spreads
from pipeline.report.labels import LabelError, judge, read_file_labels, read_labels

CLIPS = pa.table(
    {
        "clip_id": [f"c{i:03}" for i in range(101)],
        "source_uri": ["/raw/a.mp4"] * 101,
        "start": [0.0] * 101,
        "sharp": [float(i) for i in range(101)],
        "end": [2.0] * 101,
        "rejected_by": [*[[]] * 100, ["exposure_luma"]],
        "noise": pa.array([None if i < 50 else 100 - i for i in range(101)], pa.int32()),
        "exposure_luma": [0.5] * 100 + [0.01],
        "label": ["x"] * 101,
    }
)


def test_percentiles_are_of_the_clips_that_have_the_score() -> None:
    sharp, noise, _ = spreads(CLIPS)
    assert (sharp.name, sharp.count, sharp.missing) == ("sharp", 101, 0)
    assert sharp.percentiles == (1, 5, 10, 25, 50, 75, 90, 95, 99)
    assert (noise.count, noise.missing, noise.percentiles[4]) == (51, 50, 25)


def test_a_perfect_score_has_a_threshold_between_good_and_bad() -> None:
    by_name = {score.name: score for score in separations(CLIPS, {f"c{i:03}": i >= 70 for i in range(40, 100)})}
    sharp = by_name["sharp"]
    assert (sharp.side, sharp.auc, sharp.good, sharp.bad) == ("min", 1.0, 30, 30)
    assert sharp.best is not None
    assert (sharp.best.threshold, sharp.best.precision, sharp.best.recall, sharp.best.lost) == (69.5, 1.0, 1.0, 0.0)
    noise = by_name["noise"]
    assert noise.best is not None
    assert (noise.side, noise.bad, noise.best.threshold) == ("max", 20, 30.5)


def test_a_score_without_labelled_clips_of_both_kinds_is_left_out() -> None:
    assert {score.name for score in separations(CLIPS, {"c000": True, "c001": False})} == {"sharp", "exposure_luma"}
    assert separations(CLIPS, {"c000": True}) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=60))
def test_every_point_says_what_rejecting_by_it_would_do(pairs: list[tuple[int, bool]]) -> None:
    values, good = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    if good.all() or not good.any():
        return
    result = separation("x", values, good)
    expected = np.mean([(b < g) + 0.5 * (b == g) for b in values[~good] for g in values[good]])
    assert result.auc == pytest.approx(max(expected, 1 - expected))
    if result.best is None:
        assert (len(set(values)), result.curve) == (1, ())
        return
    for point in (result.best, *result.curve):
        rejected = values < point.threshold if result.side == "min" else values > point.threshold
        assert point.precision == pytest.approx((~good)[rejected].mean())
        assert point.recall == pytest.approx(rejected[~good].mean())
        assert point.lost == pytest.approx(rejected[good].mean())
    sign = 1 if result.side == "min" else -1
    for threshold in range(-1, 14):
        rejected = sign * values < sign * (threshold + 0.5)
        if rejected.any() and not rejected.all():
            precision, recall = (~good)[rejected].mean(), rejected[~good].mean()
            assert result.best.f1 >= 2 * precision * recall / ((precision + recall) or 1) - 1e-9


def test_no_threshold_is_recommended_where_all_scores_are_equal(tmp_path: Path) -> None:
    (tmp_path / "tables/clips").mkdir(parents=True)
    clips = pa.table({"clip_id": ["a", "b", "c"], "flicker_luma": [0.0] * 3})
    pq.write_table(clips, tmp_path / "tables/clips/00000.parquet")
    (tmp_path / "dataset.json").write_text(json.dumps({"recipe": to_dict(Recipe())}))
    (tmp_path / "labels.csv").write_text("clip_id,label\na,good\nb,bad\nc,bad\n")
    lines = calibrate(tmp_path, tmp_path / "labels.csv").splitlines()
    assert ["flicker_luma", "1", "2", "0.500", "–", "none", *"––––"] in [line.split() for line in lines]
    assert lines[-1].endswith("no threshold separates them")


def test_labels_come_in_words_or_digits(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("\ufeffclip_id,label,who\na,good,me\nb,0,me\nc, Bad ,me\nd,1,\n", encoding="utf-8")
    assert read_labels(path) == {"a": True, "b": False, "c": False, "d": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\na,good\n", "name the columns"),
        ("", "name the columns"),
        ("clip_id,label\na,good\nb,maybe\n", "line 3: label 'maybe'"),
        ("clip_id,label\na,good\na,bad\n", "line 3: a is labelled good and bad"),
    ],
)
def test_labels_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(LabelError, match=message):
        read_labels(path)
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


def test_the_recipes_own_threshold_is_judged_too() -> None:
    labels = {f"c{i:03}": i >= 70 for i in range(40, 100)}
    thresholds = {"sharp": Bounds(min=80.0, max=90.0), "noise": Bounds(min=5.0)}
    by_name = {score.name: score for score in separations(CLIPS, labels, thresholds)}
    sharp = by_name["sharp"].recipe
    assert sharp is not None
    assert (sharp.threshold, sharp.precision, sharp.recall, sharp.lost) == (80.0, 30 / 40, 1.0, 10 / 30)
    assert by_name["noise"].recipe is None
    none = separation("x", np.array([1.0, 2.0]), np.array([False, True]), Bounds(min=0.5)).recipe
    assert none is not None
    assert (np.isnan(none.precision), none.recall, none.f1) == (True, 0.0, 0.0)


def test_the_table_has_all_clips_and_says_which_labels_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "tables/clips").mkdir(parents=True)
    pq.write_table(CLIPS, tmp_path / "tables/clips/00000.parquet")
    rows = "".join(f"c{i:03},{'good' if i >= 50 else 'bad'}\n" for i in range(100))
    (tmp_path / "dataset.json").write_text(json.dumps({"recipe": to_dict(Recipe())}))
    (tmp_path / "labels.csv").write_text(f"clip_id,label\n{rows}elsewhere,good\n")
    lines = calibrate(tmp_path, tmp_path / "labels.csv").splitlines()
    assert lines[1].split()[:3] == ["sharp", "101", "0"]
    assert "100 labelled clips, 1 that this dataset lacks" in lines
    best = next(line for line in lines if line.startswith("sharp") and "1.000" in line)
    assert best.split() == ["sharp", "50", "50", "1.000", "below", "*", "49.5", "1.000", "1.000", "0.000", "1.000"]
    (tmp_path / "others.csv").write_text("clip_id,label\nelsewhere,good\n")
    with pytest.raises(LabelError, match=r"others\.csv has no clip_id of .*: labels of another dataset\?"):
        calibrate(tmp_path, tmp_path / "others.csv")
    with pytest.raises(FileNotFoundError, match="build it first"):
        calibrate(tmp_path / "none")


def test_labels_that_cannot_be_read_are_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tables/clips").mkdir(parents=True)
    pq.write_table(CLIPS, tmp_path / "tables/clips/00000.parquet")
    (tmp_path / "dataset.json").write_text(json.dumps({"format": 1, "recipe": to_dict(Recipe())}))
    assert main(["calibrate", str(tmp_path), "--labels", str(tmp_path / "none.csv")]) == 2
    assert "none.csv cannot be read" in capsys.readouterr().err


def test_labels_of_files_judge_every_threshold_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "tables/clips").mkdir(parents=True)
    uris, logo = ["/raw/a/1.mp4", "/raw/a/1.mp4", "/raw/b/2.mp4", "/raw/c.mp4"], [0.1, 0.0, 0.1, 0.1]
    table = pa.table(
        {
            "clip_id": [f"c{i}" for i in range(4)],
            "source_uri": uris,
            "rejected_by": [["logo_area"], [], ["logo_area"], ["logo_area"]],
            "logo_area": logo,
            "noise_sigma": [1.0, 1.0, 9.0, 9.0],
        }
    )
    pq.write_table(table, tmp_path / "tables/clips/00000.parquet")
    recipe = to_dict(Recipe()) | {"select": {"thresholds": {"logo_area": {"max": 0.03}, "noise_sigma": {"max": 5.0}}}}
    (tmp_path / "dataset.json").write_text(json.dumps({"recipe": recipe}))
    rows = [
        {"file": "a/1.mp4", "single_shot": True, "kind": "filmed", "overlay_logo": True, "overlay_text": False},
        {"file": "b/2.mp4", "single_shot": True, "kind": "filmed", "overlay_logo": False, "overlay_text": False},
        {"file": "none.mp4", "single_shot": False},
    ]
    (tmp_path / "labels.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    lines = calibrate(tmp_path, tmp_path / "labels.jsonl").splitlines()
    note = "3 clips of 2 labelled files, 1 that this dataset lacks; 1 clip of filmed single shots"
    assert any(line.startswith(note) for line in lines)
    cells = {line.split()[0]: line.split()[-6:] for line in lines if line}
    (tmp_path / "others.jsonl").write_text('{"file": "elsewhere.mp4"}\n')
    with pytest.raises(LabelError, match="no label names a source of the dataset"):
        calibrate(tmp_path, tmp_path / "others.jsonl")
    assert cells["logo_area"] == ["1", "1", "0", "0.500", "2", "0.500"]
    assert cells["noise_sigma"] == ["0", "1", "0", "0.000", "0", "–"]


def test_labels_of_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    for text, message in (
        ('{"file": "a"}\n{"file": "a"}\n', "line 2: a is labelled twice"),
        ('{"name": "a"}\n', "line 1: not a JSON object with the key file"),
        ("nothing\n", "line 1: not a JSON object with the key file"),
    ):
        path.write_text(text)
        with pytest.raises(LabelError, match=message):
            read_file_labels(path)
    with pytest.raises(LabelError, match="cannot be read"):
        read_file_labels(tmp_path / "none.jsonl")


def test_a_score_that_is_null_or_a_defect_that_no_label_names_decides_nothing() -> None:
    label = {"kind": "filmed", "single_shot": False, "overlay_logo": None, "overlay_text": False}
    rows = [({"logo_area": None}, label), ({"logo_area": float("nan")}, label), ({"logo_area": 0.5}, label)]
    judged = judge(rows, {"logo_area": Bounds(max=0.03)})[0]
    assert (judged.right, judged.wrong, judged.undecided, judged.bad) == (0, 0, 1, 0)
    assert np.isnan(judged.precision)
    assert np.isnan(judged.recall)


@pytest.mark.parametrize(("single_shot", "undecided"), [(True, 0), (False, 1), (None, 1)])
def test_a_file_of_several_shots_that_is_no_still_picture_may_have_a_still_shot(single_shot, undecided):
    label = {"kind": "filmed", "single_shot": single_shot, "static_picture": False}
    (judged,) = judge([({"frozen_share": 1.0}, label)], {"frozen_share": Bounds(max=0.98)})
    assert (judged.wrong, judged.undecided) == (1 - undecided, undecided)
