"""What earlier builds left: shots numbered over segments, and every clip once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.state import _shot_numbers, join


def test_shots_are_numbered_through_a_source_whatever_the_segments():
    sources = np.array([0, 0, 0, 0, 0, 1])
    counted = np.array([0, 0, 1, 0, 1, 0])  # a long shot in two parts, and another; the next segment counts from zero
    assert _shot_numbers(sources, counted).to_pylist() == [0, 0, 1, 2, 3, 0]


def test_a_join_keeps_every_row_and_fills_what_is_not_known_with_nulls():
    left = pa.table({"clip_id": ["c", "a", "b"]})
    right = pa.table({"clip_id": ["a", "c"], "tags": [["x"], None], "score": [0.5, 1.0], "at": ["1", "2"]})
    fields = [pa.field("tags", pa.list_(pa.string())), pa.field("score", pa.float64())]
    assert join(left, right, fields, "where").to_pylist() == [
        {"clip_id": "c", "tags": None, "score": 1.0, "where": "2"},
        {"clip_id": "a", "tags": ["x"], "score": 0.5, "where": "1"},
        {"clip_id": "b", "tags": None, "score": None, "where": None},
    ]
    assert join(left, None, fields, "where")["score"].null_count == 3
