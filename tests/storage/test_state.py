"""What earlier builds left: shots numbered over segments, and every clip once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.config.recipe import Recipe
from pipeline.passes.identify import identify_units
from pipeline.passes.scan import with_errors
from pipeline.passes.snapshot import source_rows
from pipeline.sources.discover import DiscoveredFile
from pipeline.state import fingerprints
from pipeline.state.committed import _shot_numbers, join, scanned
from pipeline.storage.store import Store
from pipeline.tables.fragments import FRAMES, table_from, write_fragment


def test_shots_are_numbered_through_a_source_whatever_the_segments():
    sources = np.array([0, 0, 0, 0, 0, 1])
    counted = np.array([0, 0, 1, 0, 1, 0])  # a long shot in two parts, and another; the next segment counts from zero
    assert _shot_numbers(sources, counted).to_pylist() == [0, 0, 1, 2, 3, 0]


def test_a_join_keeps_every_row_and_fills_what_is_not_known_with_nulls():
    rows = pa.table({"clip_id": ["c", "a", "b"]})
    right = pa.table({"clip_id": ["a", "c"], "tags": [["x"], None], "score": [0.5, 1.0], "at": ["1", "2"]})
    fields = [pa.field("tags", pa.list_(pa.string())), pa.field("score", pa.float64())]
    assert join(rows, right, fields, "where").to_pylist() == [
        {"clip_id": "c", "tags": None, "score": 1.0, "where": "2"},
        {"clip_id": "a", "tags": ["x"], "score": 0.5, "where": "1"},
        {"clip_id": "b", "tags": None, "score": None, "where": None},
    ]
    assert join(rows, None, fields, "where")["score"].null_count == 3


def test_what_was_out_of_reach_is_a_failed_row_and_is_tried_again(tmp_path: Path):
    store, recipe = Store(str(tmp_path)), Recipe()
    far, near = DiscoveredFile("s3://films/far.mp4", 5, "one"), DiscoveredFile("s3://films/near.mp4", 5, "one")

    def identify(name: str, *rows: dict) -> None:
        write_fragment(store, f"state/sources/{name}.parquet", table_from(rows, fingerprints.IDENTIFIED), {})

    def status_and_error(sources: pa.Table) -> list[tuple[str, str | None]]:
        return [(row["status"], row["error"]) for row in sources.to_pylist()]

    same = {"size": 5, "stamp": "one", "start": 0.0, "duration": 1.0}
    lost = {**same, "uri": far.uri, "status": "unreachable", "error": "no answer"}
    identify("a", {**same, "uri": near.uri, "source_id": "n", "status": "ok"}, lost)
    assert [unit.files for unit in identify_units([far, near], store, recipe.scan)] == [(far,)]
    assert status_and_error(source_rows([far, near], store, recipe.scan)) == [("failed", "no answer"), ("ok", None)]
    identify("b", {**lost, "source_id": "f", "status": "ok", "error": None})
    assert list(identify_units([far, near], store, recipe.scan)) == []
    sources = source_rows([far, near], store, recipe.scan)
    assert status_and_error(sources) == [("ok", None), ("ok", None)]

    def scan(unit: str, **part: object) -> None:
        size = write_fragment(store, f"tables/frames/{unit}.parquet", table_from([], FRAMES), {}).size
        done = {
            "fingerprint": fingerprints.scan_fingerprint(recipe),
            "parts": [{"unit": unit, "frames_bytes": size, **part}],
        }
        write_fragment(store, f"state/scan/{unit}.parquet", table_from([], fingerprints.scan_schema(recipe)), done)

    scan("b", key="f", error="no answer", unreachable=True)
    scan("c", key="n")
    done = scanned(store, recipe)
    assert (done.keys.to_pylist(), done.errors, done.unreachable) == (["n"], {}, {"f": "no answer"})
    assert status_and_error(with_errors(sources, done)) == [("failed", "no answer"), ("ok", None)]
    scan("a", key="f")
    assert status_and_error(with_errors(sources, scanned(store, recipe))) == [("ok", None), ("ok", None)]
    frames = tmp_path / "tables" / "frames" / "c.parquet"
    frames.write_bytes(frames.read_bytes()[:-1])
    assert scanned(store, recipe).keys.to_pylist() == ["f"]
