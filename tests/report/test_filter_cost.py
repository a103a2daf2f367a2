"""The order of filters: the best one is the best of all, and a build's closing table says what it would save."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.recipe import load_recipe, to_dict
from pipeline.dataset.finish import publish, read_info
from pipeline.report.filter_cost import ENCODER, Cost, best, expected, lines, with_encoder
from pipeline.storage.store import Store
from pipeline.tables.fragments import SOURCES

NEEDS = ("tags", "concepts")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0, 0.9)), min_size=2, max_size=5))
def test_no_other_order_costs_less(drawn: list[tuple[float, float]]) -> None:
    measured = {f"f{i}": Cost(f"f{i}", *pair) for i, pair in enumerate(drawn)}
    least = min(expected(order) for order in itertools.permutations(measured.values()))
    assert expected(best(measured, ())) == pytest.approx(least)


def test_the_encoder_runs_before_the_first_that_needs_it_and_else_last() -> None:
    measured = {ENCODER: Cost(ENCODER, 0.2), "tags": Cost("tags", 0.01, 0.1), "text": Cost("text", 0.3, 0.5)}
    assert [cost.name for cost in best(measured, NEEDS)] == ["text", ENCODER, "tags"]
    assert [cost.name for cost in with_encoder([measured["text"]], measured, NEEDS)] == ["text", ENCODER]


def test_a_build_says_what_its_filters_cost_and_what_a_better_order_would() -> None:
    recipe = load_recipe("embedded")
    scan = {"filters": {"motion": {"seconds": 1.0, "clips": 50}}, "parts": {"decode": 20.0, "flow": 0.4}}
    embed = {
        "sharpness": {"seconds": 4.0, "clips": 40, "rejected": 2.0},
        "text": {"seconds": 3.8, "clips": 38, "rejected": 19.0},
        "encoder": {"seconds": 3.8, "clips": 19},
    }
    info = {"recipe": to_dict(recipe), "passes": {"scan": scan, "embed": {"filters": embed}}}
    assert lines(info) == [
        ("filters: scan", "1, 28.0 ms a clip, 7.0% of decoding"),
        ("filters: embed", "290 ms a clip: sharpness 100 (-5%), text 100 (-50%), encoder 200"),
        ("  in a better order", "245 ms a clip: text, sharpness"),
    ]
    assert lines({**info, "passes": {}}) == []


def test_a_dataset_keeps_the_order_of_its_filters(tmp_path: Path) -> None:
    recipe = load_recipe("embedded")
    kinds = {"start": pa.float64(), "end": pa.float64(), "keep": pa.bool_(), "rejected_by": pa.list_(pa.string())}
    clips = pa.schema({**kinds, "caption": pa.string(), "frames": pa.int64()}).empty_table()
    publish(Store(str(tmp_path)), recipe, SOURCES.empty_table(), clips, [clips], [], {})
    assert list(read_info(Store(str(tmp_path)))["recipe"]["filters"]) == list(recipe.filters)
