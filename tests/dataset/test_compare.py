"""Comparing datasets: what was added, removed and changed is counted and listed, whatever the order of rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_dataset import finished, footage

from pipeline.cli import main
from pipeline.dataset.compare import compare
from pipeline.dataset.finish import FORMAT, DatasetError

ROW = {"keep": True, "rejected_by": [], "caption": "A dog runs.", "motion_object": 0.5, "tags": ["dog"]}


def key(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}{number:04x}"


def dataset(folder: Path, rows: list[dict[str, Any]], recipe: dict[str, Any] | None = None, files: int = 2) -> str:
    """A dataset of these rows of tables/clips, in `files` files, without shards."""
    (folder / "tables" / "clips").mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    size = -(-len(rows) // files)
    for number in range(files):
        pq.write_table(table.slice(number * size, size), folder / "tables" / "clips" / f"{number:05}.parquet")
    info = {"format": FORMAT, "recipe": recipe or {}, "rows": {"clips": len(rows)}, "shards": []}
    (folder / "dataset.json").write_text(json.dumps(info))
    return str(folder)


def test_added_removed_and_changed_clips_are_counted_by_reason_and_listed(tmp_path):
    before = [{"clip_id": key(i), **ROW} for i in range(8)]
    before[5] |= {"keep": False, "rejected_by": ["text_area"]}
    after = [dict(row) for row in before[1:]] + [{"clip_id": key(20), **ROW}]
    after[0] |= {"caption": "A cat, asleep."}
    after[1] |= {"keep": False, "rejected_by": ["motion_object", "logo"], "motion_object": 0.25}
    after[2] |= {"motion_object": None}
    after[4] |= {"keep": True, "rejected_by": []}
    after[5] |= {"tags": ["dog", "park"]}
    np.random.default_rng(1).shuffle(after)
    a = dataset(tmp_path / "a", before, {"select": {"duplicates": True}, "name": "x"})
    b = dataset(tmp_path / "b", after, {"select": {"duplicates": False}, "name": "x"}, files=3)
    lines = compare(a, b, tmp_path / "changes.csv").splitlines()
    assert f"before  {a}: 8 clips, 7 kept" in lines
    assert "added   1 clips, 1 of them kept" in lines
    assert "removed 1 clips, 1 of them kept" in lines
    assert "in both 7 clips" in lines
    assert "kept before, rejected now: 1, by logo 1, motion_object 1" in lines
    assert "rejected before, kept now: 1, by text_area 1" in lines
    assert "caption: 1 changed" in lines
    assert "tags: 1 changed" in lines
    assert "motion_object: 2 changed, by 0.25 on average and 0.25 at most, 1 to null" in lines
    assert "keep: 2 changed, 1 from false to true, 1 from true to false" in lines
    assert "recipe select.duplicates: true -> false" in lines
    rows = list(csv.DictReader(open(tmp_path / "changes.csv", encoding="utf-8")))
    differences = {(row["clip_id"], row["what"]): (row["before"], row["after"]) for row in rows}
    assert differences[key(0), "removed"] == ("kept", "")
    assert differences[key(20), "added"] == ("", "kept")
    assert differences[key(1), "caption"] == ("A dog runs.", "A cat, asleep.")
    assert differences[key(2), "motion_object"] == ("0.5", "0.25")
    assert differences[key(3), "motion_object"] == ("0.5", "")
    assert differences[key(6), "tags"] == ('["dog"]', '["dog", "park"]')
    assert len(rows) == len(differences) == int(lines[-1].split()[0])


def test_sections_of_the_recipe_that_are_emptied_or_added_are_shown_option_by_option(tmp_path):
    rows = [{"clip_id": key(0), **ROW}]
    a = dataset(tmp_path / "a", rows, {"pack": {"companions": {"first_last": {}, "canny": {"low": 1}}, "fps": None}})
    b = dataset(tmp_path / "b", rows, {"pack": {"companions": {}, "fps": 24}, "name": "x"})
    options = [
        'recipe name: not set -> "x"',
        'recipe pack.companions.canny: {"low": 1} -> not set',
        "recipe pack.companions.first_last: {} -> not set",
        "recipe pack.fps: null -> 24",
    ]
    assert [line for line in compare(a, b).splitlines() if line.startswith("recipe")] == options


def test_a_dataset_does_not_differ_from_itself_with_rows_in_another_order(tmp_path):
    rows = [{"clip_id": key(i), **ROW, "motion_object": float("nan") if i % 3 else 0.1 * i} for i in range(50)]
    a = dataset(tmp_path / "a", rows)
    b = dataset(tmp_path / "b", rows[::-1], files=5)
    lines = compare(a, b).splitlines()
    assert [line for line in lines if "changed" in line or "recipe" in line or "by" in line] == []
    assert lines[-1] == "in both 50 clips"


def test_the_same_footage_packed_under_a_contract_differs_in_its_frames_alone(tmp_path, capsys):
    rows = footage(tmp_path / "sources", fps=(24,))
    finished(tmp_path / "free", rows)
    finished(tmp_path / "bound", rows, model="wan2.1")
    assert main(["compare", str(tmp_path / "free"), str(tmp_path / "bound")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "in both 4 clips" in lines
    assert not [line for line in lines if "changed" in line]
    assert "columns only after: pack_frames" in lines
    assert 'recipe pack.model: null -> "wan2.1"' in lines


def test_a_folder_that_is_no_dataset_is_said_so(tmp_path):
    with pytest.raises(DatasetError, match="is not a dataset"):
        compare(str(tmp_path), str(tmp_path))
