"""Recipes: typed, in one place, and an error says what was meant."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.recipe import Bounds, RecipeError, from_dict, load_recipe, presets, to_dict


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_and_survives_json(name):
    recipe = load_recipe(name)
    assert from_dict(json.loads(json.dumps(to_dict(recipe)))) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scan.max_second=8", "did you mean 'max_seconds'"),
        ("scann.max_seconds=8", "did you mean 'scan'"),
        ("scan.max_seconds=long", "scan.max_seconds: expected float"),
        ("scan.max_seconds.x=1", "scan.max_seconds: expected float"),
        ("select.thresholds.motion_object.mim=1", "did you mean 'min'"),
        ("nonsense", "overrides look like"),
        ("scan.shots=cuts", "scan.shots: 'cuts' is none of cascade"),
        ("pack.codec=h266", "pack.codec: 'h266' is none of h264"),
        ("select.thresholds.motion_object.missing=drop", "missing: 'drop' is none of reject, keep"),
        ("pack.heights=[720", "pack.heights: while parsing"),
        ("pack.heights=[]", "pack.heights: expected at least one"),
        ("scan.max_seconds=0", "scan.max_seconds: expected more than 0"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_was_meant(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("embedded", [override])


def test_a_recipe_that_is_no_yaml_says_where(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("scan:\n  shots: [cascade\nname: x\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml.*line 3"):
        load_recipe(str(path))


def test_a_recipe_that_is_not_there_lists_the_presets():
    with pytest.raises(RecipeError, match="presets are embedded"):
        load_recipe("embeded")


def test_overrides_reach_every_depth():
    recipe = load_recipe("embedded", ["scan.max_seconds=8", "select.thresholds.motion_object.min=0.25", "pack.fps=24"])
    assert (recipe.scan.max_seconds, recipe.pack.fps) == (8.0, 24.0)
    assert recipe.select.thresholds["motion_object"].min == 0.25
    assert load_recipe("embedded", ["pack.heights=720,360"]).pack.heights == (720, 360)


@given(st.floats() | st.none(), st.floats(-10, 10) | st.none(), st.floats(-10, 10) | st.none())
def test_bounds_admit_what_lies_within_them_and_never_a_missing_score(score, low, high):
    admitted = Bounds(min=low, max=high).admit(score)
    if score is None or score != score:
        assert not admitted
        assert Bounds(min=low, max=high, missing="keep").admit(score)
    else:
        assert admitted == ((low is None or score >= low) and (high is None or score <= high))


def test_labels_are_admitted_by_name():
    assert Bounds(none_of=("handheld",)).admit("static")
    assert not Bounds(none_of=("handheld",)).admit("handheld")
    assert not Bounds(any_of=("pan_left",)).admit(None)
