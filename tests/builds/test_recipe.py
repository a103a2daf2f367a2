"""Recipes: typed, in one place, and an error says what was meant."""

from __future__ import annotations

import hashlib
import importlib.resources
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters import filter_of
from pipeline.config.recipe import Bounds, RecipeError, from_dict, load_recipe, presets, to_dict
from pipeline.config.video_models import resolved
from pipeline.state import fingerprints


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_and_survives_json(name):
    recipe = load_recipe(name)
    assert from_dict(json.loads(json.dumps(to_dict(recipe)))) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scan.max_second=8", "did you mean 'max_seconds'"),
        ("scann.max_seconds=8", "did you mean 'scan'"),
        ("scan.max_seconds=long", "scan.max_seconds: expected a valid number"),
        ("scan.max_seconds.x=1", "scan.max_seconds: expected a valid number"),
        ("select.thresholds.motion_object.mim=1", "did you mean 'min'"),
        ("nonsense", "overrides look like"),
        ("scan.shots=cuts", "scan.shots: expected 'cascade'.* got 'cuts'"),
        ("pack.codec=h266", "pack.codec: expected 'h264'.* got 'h266'"),
        ("select.thresholds.motion_object.missing=drop", "missing: expected 'reject' or 'keep', got 'drop'"),
        ("pack.audio=yes", "pack.audio: expected 'drop' or 'keep', got True"),
        ("pack.heights=[720", "pack.heights: while parsing"),
        ("pack.heights=[]", "pack.heights: expected at least one"),
        ("scan.max_seconds=0", "scan.max_seconds: expected greater than 0"),
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


def test_a_recipe_that_is_not_there_names_the_nearest_preset():
    with pytest.raises(RecipeError, match="did you mean 'embedded'"):
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


def test_a_dataset_of_an_earlier_version_with_retired_options_is_read():
    stored = {**to_dict(load_recipe("embedded")), "canaries": False}
    assert from_dict(stored) == load_recipe("embedded")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("select.val_fraction=7", "select.val_fraction: expected less than or equal to 1, got 7"),
        ("scan.jpeg_quality=900", "scan.jpeg_quality: expected less than or equal to 100, got 900"),
        ("scan.frames_peaks=-3", "scan.frames_peaks: expected greater than or equal to 0, got -3"),
        ("sources.delay=-1", "sources.delay: expected greater than or equal to 0, got -1"),
        ("sources.cache_gb=-1", "sources.cache_gb: expected greater than or equal to 0"),
        ("scan.min_seconds=-2", "scan.min_seconds: expected greater than or equal to 0, got -2"),
        ("scan.min_seconds=20", "scan: min_seconds=20 is above max_seconds=10"),
        ("scan.memory_mb=1.5", "scan.memory_mb: expected a valid integer, got 1.5"),
        ("scan.max_seconds=true", "scan.max_seconds: expected a valid number, got True"),
        ("scan.max_seconds=.inf", "scan.max_seconds: expected a finite number"),
        ("pack.heights=1", "pack.heights.0: expected greater than or equal to 16, got 1"),
        ("pack.heights=720,high", "pack.heights.1: expected a valid integer, got 'high'"),
        ("pack.durations=4,-1", "pack.durations.1: expected greater than 0"),
        ("pack.fps=0", "pack.fps: expected greater than 0"),
        ("select.duplicate_bits=65", "select.duplicate_bits: expected less than or equal to 64"),
        ("select.duplicate_similarity=3", "select.duplicate_similarity: expected less than or equal to 1"),
        ("select.balance_cap=-1", "select.balance_cap: expected greater than or equal to 0"),
        ("select.thresholds.x={min: 2, max: 1}", "select.thresholds.x: min=2 is above max=1"),
        ("caption.audit=1", "caption.audit: expected a valid boolean, got 1"),
        ("select=5", "select: expected a section, got 5"),
    ],
)
def test_a_number_out_of_range_is_named_before_any_work(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("embedded", [override])


# Fingerprints hash these options with their order, except thresholds: a change here makes existing datasets score their
# clips again, and one of an early filter scans them again.
@pytest.mark.parametrize(
    ("name", "sections"),
    [
        (
            "embedded",
            {
                "encoder": "aba4978cf059",
                "filters": "89339d0f9d86",
                "thresholds": "b274d0f4ac0b",
                "caption": "82bd6fec8697",
            },
        ),
        (
            "standard",
            {
                "encoder": "c7ebc5f26bb9",
                "filters": "219285770626",
                "thresholds": "780c5a40a1c2",
                "caption": "51798edd2be6",
            },
        ),
    ],
)
def test_the_options_that_fingerprints_hash_are_as_they_were(name, sections):
    tree = to_dict(load_recipe(name))
    tree["thresholds"] = tree["select"]["thresholds"]
    hashes = {key: hashlib.sha256(json.dumps(tree[key]).encode()).hexdigest()[:12] for key in sections}
    assert hashes == sections, f"if the change is meant, write here: {hashes}"


def test_a_recipe_extends_another_and_its_filters_stand_where_it_names_them(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "extends: embedded\nname: base\nselect: {thresholds: {text_overlay: {max: 0.01}}}\n"
    )
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nname: mine\nfilters: {motion:, aesthetics:}\n")
    recipe, base = load_recipe(str(tmp_path / "mine.yaml")), load_recipe("embedded")
    names = list(base.filters)
    names.insert(names.index("motion") + 1, "aesthetics")
    assert list(recipe.filters) == names
    assert recipe.select.thresholds["text_overlay"] == Bounds(max=0.01, missing="keep")
    assert recipe.scan == base.scan


def test_a_recipe_that_extends_itself_or_nothing_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: mine.yaml\n")
    with pytest.raises(RecipeError, match=r"extends .*mine\.yaml"):
        load_recipe(str(path))
    path.write_text("extends: [embedded]\n")
    with pytest.raises(RecipeError, match="expected the name of a recipe"):
        load_recipe(str(path))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    ),
    st.sampled_from(
        [
            "scan",
            "scan.max_seconds",
            "sources.connections",
            "pack.heights",
            "pack.durations",
            "filters",
            "filters.motion",
            "select.thresholds",
            "select.thresholds.x",
            "select.thresholds.x.any_of",
            "caption.options",
            "name",
        ]
    ),
)
def test_any_value_is_read_or_refused_with_its_key(value, key):
    tree = {}
    section = tree
    *above, last = key.split(".")
    for name in above:
        section = section.setdefault(name, {})
    section[last] = value
    try:
        recipe = from_dict(tree)
    except RecipeError as error:
        message = str(error)
        assert above[0] in message if above else last in message
    else:
        assert from_dict(to_dict(recipe)) == recipe or "nan" in repr(recipe).lower()


@pytest.mark.parametrize("name", ["embedded", "small"])
def test_a_preset_names_filters_options_and_columns_that_exist(name):
    fingerprints.check(load_recipe(name))


@pytest.mark.parametrize("name", ["svd", "moviegen", "panda70m", "hunyuanvideo", "opensora"])
def test_a_published_method_names_its_source_and_what_cannot_be_had(name):
    text = (importlib.resources.files("pipeline.config") / "recipes" / f"{name}.yaml").read_text()
    assert "arXiv" in text or "hpcaitech" in text
    assert "# As published:" in text
    assert "# Not reproduced:" in text
    recipe = load_recipe(name)
    scores = {filter_of(column) for column in recipe.select.thresholds}
    assert scores <= set(recipe.filters), "every threshold's filter runs"
    resolved(recipe.pack)
