"""Passes: which clips go on to the expensive filters, now and when thresholds change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.recipe import Recipe, load_recipe
from pipeline.passes.registry import PASSES
from pipeline.state import fingerprints

ROW = {"dropped": None, "exposure_luma": 0.5, "scored": None, "sharpness_detail": None, "text_overlay": None}

KINDS = pa.schema(
    [
        ("dropped", pa.string()),
        ("scored", pa.list_(pa.string())),
        *((name, pa.float32()) for name in ("exposure_luma", "sharpness_detail", "text_overlay")),
    ]
)


@pytest.fixture
def recipe() -> Recipe:
    filters = ["filters.exposure={}", "filters.sharpness={}", "filters.text={}"]
    bounds = ["exposure_luma.min=0.1", "sharpness_detail.min=0.3", "text_overlay.max=0.1"]
    thresholds = [f"select.thresholds.{bound}" for bound in bounds]
    return load_recipe("embedded", ["filters={}", "select.thresholds={}", *filters, *thresholds])


def lacks(recipe: Recipe, by_hand: bool = False, **scores: object) -> bool:
    table = pa.Table.from_pylist([{**ROW, **scores}], schema=KINDS)
    return bool(fingerprints.needs_scoring(table, recipe, np.array([by_hand]))[0])


def test_a_scanned_clip_that_was_not_scored_yet_is_scored_unless_the_scan_speaks_against_it(recipe):
    assert lacks(recipe)
    assert not lacks(recipe, exposure_luma=0.05)
    assert not lacks(recipe, dropped="duration")


def test_a_clip_that_a_cheap_filter_stopped_goes_on_when_its_threshold_falls(recipe):
    stopped = {"scored": ["sharpness"], "sharpness_detail": 0.2}
    assert not lacks(recipe, **stopped)
    lower = fingerprints.thresholds_of(recipe, ["sharpness_detail"])
    assert lower["sharpness_detail"].min == 0.3
    assert lacks(recipe, scored=["sharpness"], sharpness_detail=0.4)
    assert not lacks(recipe, scored=["sharpness", "text"], sharpness_detail=0.4, text_overlay=0.0)


def test_a_clip_kept_by_hand_is_scored_by_every_filter_whatever_rejected_it(recipe):
    stopped = {"scored": ["sharpness"], "sharpness_detail": 0.2}
    for scores in ({"exposure_luma": 0.05}, {"dropped": "duration"}, stopped):
        assert lacks(recipe, by_hand=True, **scores)
    assert not lacks(recipe, by_hand=True, dropped="error")
    assert not lacks(recipe, by_hand=True, scored=["sharpness", "text"], sharpness_detail=0.2)


def test_with_score_all_no_threshold_stops_a_clip(recipe):
    recipe = dataclasses.replace(recipe, score_all=True)
    assert lacks(recipe, exposure_luma=0.05)
    assert lacks(recipe, scored=["sharpness"], sharpness_detail=0.2)
    assert not lacks(recipe, scored=["sharpness", "text"], sharpness_detail=0.2)
    assert not lacks(recipe, dropped="duration")


def test_fingerprints_follow_what_a_pass_does_and_not_what_it_is_compared_with(recipe):
    def prints(*overrides: str) -> tuple[str, str, str]:
        recipe = load_recipe("embedded", overrides)
        return (
            fingerprints.scan_fingerprint(recipe),
            fingerprints.embed_fingerprint(recipe),
            fingerprints.caption_fingerprint(recipe),
        )

    usual = prints()
    assert prints("select.thresholds.exposure_luma.min=0.2", "scan.deadline_seconds=5", "pack.codec=av1") == usual
    scan, embed, caption = prints("scan.min_seconds=1")
    assert (scan != usual[0], embed != usual[1], caption != usual[2]) == (True, True, True)
    scan, embed, caption = prints("filters.text.frames=2")
    assert (scan == usual[0], embed != usual[1], caption != usual[2]) == (True, True, True)
    scan, embed, caption = prints("caption.options.confidence=numbers")
    assert (scan == usual[0], embed == usual[1], caption != usual[2]) == (True, True, True)


def test_only_a_pass_with_a_model_for_it_takes_a_gpu():
    def on_gpu(name: str, *overrides: str) -> set[str]:
        return {each.name for each in PASSES if each.uses_gpu(load_recipe(name, overrides))}

    assert on_gpu("standard") == {"embed", "caption"}
    assert on_gpu("standard", "caption={captioner: server}") == {"embed"}
    assert on_gpu("embedded") == set()
