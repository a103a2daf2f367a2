"""The closing table of a build."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.config.recipe import load_recipe
from pipeline.dataset.finish import publish, read_info
from pipeline.report.summary import filter_rows
from pipeline.storage.store import Store
from pipeline.tables.fragments import SOURCES


def test_a_build_says_what_its_filters_cost() -> None:
    scan = {"filters": {"motion": {"seconds": 1.0, "clips": 50}}, "parts": {"decode": 20.0, "flow": 0.4}}
    embed = {
        "sharpness": {"seconds": 4.0, "clips": 40, "rejected": 2.0},
        "text": {"seconds": 3.8, "clips": 38, "rejected": 19.0},
        "encoder": {"seconds": 3.8, "clips": 19},
    }
    assert filter_rows({"scan": scan, "embed": {"filters": embed}}) == [
        ("filters: scan", "1, 28.0 ms a clip, 7.0% of decoding"),
        ("filters: embed", "290 ms a clip: sharpness 100 (-5%), text 100 (-50%), encoder 200"),
    ]
    assert filter_rows({}) == []


def test_a_dataset_keeps_the_order_of_its_filters(tmp_path: Path) -> None:
    recipe = load_recipe("embedded")
    kinds = {"start": pa.float64(), "end": pa.float64(), "keep": pa.bool_(), "rejected_by": pa.list_(pa.string())}
    clips = pa.schema({**kinds, "caption": pa.string(), "frames": pa.int64()}).empty_table()
    publish(Store(str(tmp_path)), recipe, SOURCES.empty_table(), clips, [clips], [], {})
    assert list(read_info(Store(str(tmp_path)))["recipe"]["filters"]) == list(recipe.filters)
