"""What earlier builds left: shots numbered over segments, and every clip once."""

from __future__ import annotations

import pyarrow as pa

from pipeline.state import _shot_numbers, first_of_each, join


def test_shots_are_numbered_through_a_source_whatever_the_segments_and_the_order_of_rows():
    rows = [
        ("a", 0, 0), ("a", 10, 0), ("a", 20, 1),  # a long shot in two parts, and another
        ("a", 30, 0), ("a", 40, 1),  # the next segment counts from zero again
        ("b", 0, 0),
    ]  # fmt: skip
    names = ("source_id", "start_pts", "shot_index")
    for order in (rows, rows[::-1], rows[3:] + rows[:3]):
        table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in order])
        numbers = dict(
            zip(
                zip(*(table[n].to_pylist() for n in names[:2]), strict=True),
                _shot_numbers(table).to_pylist(),
                strict=True,
            )
        )
        assert numbers == {("a", 0): 0, ("a", 10): 0, ("a", 20): 1, ("a", 30): 2, ("a", 40): 3, ("b", 0): 0}


def test_a_join_keeps_every_row_and_fills_what_is_not_known_with_nulls():
    left = pa.table({"clip_id": ["c", "a", "b"]})
    right = pa.table({"clip_id": ["a", "c"], "tags": [["x"], None], "score": [0.5, 1.0]})
    schema = pa.schema([("clip_id", pa.string()), ("tags", pa.list_(pa.string())), ("score", pa.float64())])
    assert join(left, right, schema).to_pylist() == [
        {"clip_id": "c", "tags": None, "score": 1.0},
        {"clip_id": "a", "tags": ["x"], "score": 0.5},
        {"clip_id": "b", "tags": None, "score": None},
    ]
    assert join(left, None, schema)["score"].null_count == 3


def test_of_rows_with_one_clip_the_first_stays():
    table = pa.table({"clip_id": ["a", "a", "b", "c", "c"], "n": [1, 2, 3, 4, 5]})
    assert first_of_each(table)["n"].to_pylist() == [1, 3, 4]
    assert first_of_each(table.slice(0, 0)).num_rows == 0
