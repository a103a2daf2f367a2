"""Fragments merged or not, and wherever merging was stopped, are the same rows."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.storage.store import Store
from pipeline.tables import compaction
from pipeline.tables.compaction import Runs, current, id_ranges, merge
from pipeline.tables.fragments import Fragment, IdRange, write_fragment


def name(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()


def commit(store: Store, sources: range, again: str = "") -> None:
    """A fragment of `sources`, three clips each, and one source without any; `again`: by another unit."""
    unit = name(sources, again)[:16]
    ids = [(name(s)[:32], name(s, i)[:20], 100 * i) for s in sources for i in range(3)]
    rows = [
        {"source_id": s, "clip_id": c, "start_pts": at, "end_pts": at + 100, "unit": unit, "score": float(at)}
        for s, c, at in ids
    ]
    parts = [{"key": name(s)[:32], "unit": unit} for s in sources]
    parts.append({"key": name("failed", sources)[:32] + "@0-60", "unit": unit, "error": "broken"})
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: str(row["clip_id"])))
    write_fragment(store, f"state/scan/{unit}.parquet", table, {"fingerprint": "now", "parts": parts})


def everything(store: Store) -> tuple[list[dict[str, object]], set[str]]:
    """Rows, range by range of ids, and the keys of parts."""
    fragments = list(current(store, "state/scan", "now"))
    with Runs(store, fragments) as opened:
        tables = [opened.rows(ids) for ids in id_ranges(200)]
    rows = [row for table in tables if table is not None for row in table.drop_columns(["at"]).to_pylist()]
    return rows, {part["key"] for fragment in fragments for part in fragment.done["parts"]}


def merged(store: Store) -> list[Fragment]:
    merge(store, "state/scan", "now")
    return list(current(store, "state/scan", "now"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(compaction, "LOOSE", 4)
    monkeypatch.setattr(compaction, "FULL_ROWS", 40)
    monkeypatch.setattr(compaction, "RANGE_ROWS", 10)
    monkeypatch.setattr(compaction, "GROUP", 4)
    store = Store(str(tmp_path / "dataset"))
    for first in range(0, 40, 4):
        commit(store, range(first, first + 4))
    commit(store, range(0, 4), "twice")
    rows = pa.table({"source_id": [name(99)[:32]], "clip_id": [name(99, 0)[:20]]})
    write_fragment(store, "state/scan/other.parquet", rows, {"fingerprint": "before", "parts": []})
    return store


def test_merged_fragments_hold_every_clip_once_and_every_part(store):
    before = everything(store)
    assert len(before[0]) == 120
    assert [row["source_id"] for row in before[0]] == sorted(row["source_id"] for row in before[0])
    files = merged(store)
    assert 3 <= len(files) <= 5
    assert sum(file.count for file in files) == 120
    assert everything(store) == before
    assert [file.name for file in files] == [f.name for f in merged(store)]
    assert store.exists("state/scan/other.parquet")


def test_a_range_of_ids_reads_its_sources_and_no_others(store):
    rows, _ = everything(store)
    ids = IdRange(str(rows[30]["source_id"]), str(rows[60]["source_id"]))
    for _ in range(2):
        with Runs(store, merged(store)) as opened:
            table = opened.rows(ids)
        assert table is not None
        assert table.drop_columns(["at"]).to_pylist() == rows[30:60]


@pytest.mark.parametrize("deleted", [0, 3, 11])
def test_merging_that_was_stopped_is_done_again(store, deleted, tmp_path):
    """After the merged files, and `left` of the loose ones, are written and not yet deleted."""
    before = everything(store)
    loose = shutil.copytree(store.path("state/scan"), tmp_path / "loose")
    merged(store)
    for path in sorted(loose.iterdir())[:deleted]:
        shutil.copy(path, store.path("state/scan"))
    assert everything(store) == before
    merged(store)
    assert everything(store) == before


def test_small_increments_are_written_again_a_few_times_only(store):
    sizes = []
    for first in range(40, 400, 4):
        commit(store, range(first, first + 4))
        sizes.append(len(merged(store)))
    assert max(sizes) < 45
    assert len(everything(store)[0]) == 1200
    assert np.unique([row["clip_id"] for row in everything(store)[0]]).size == 1200
