"""Sweeping deletes what belongs to nothing any more, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.config.recipe import Recipe
from pipeline.dataset.sweep import sweep
from pipeline.state import fingerprints
from pipeline.state.error_log import FOLDER, logged_error, write_errors
from pipeline.storage.store import Store
from pipeline.tables.fragments import FRAMES, table_from, write_fragment, write_frames


def test_tracebacks_go_with_their_source_their_scan_or_their_error(tmp_path: Path) -> None:
    store, recipe = Store(str(tmp_path)), Recipe()
    rows = [("good.mp4", "g", "ok", None), ("bad.mp4", None, "failed", "not a video file")]
    names = ("source_uri", "source_id", "status", "error")
    sources = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    write_frames(store, "now", table_from([], FRAMES))
    part = {"key": "g", "unit": "now", "frames_bytes": None}
    done = {"fingerprint": fingerprints.scan_fingerprint(recipe), "parts": [part]}
    write_fragment(store, "state/scan/now.parquet", table_from([], fingerprints.scan_schema(recipe)), done)
    stays = {"sources/bad": "bad.mp4", "scan/now": "good.mp4", "pack/a": "good.mp4", "embed/a": "good.mp4"}
    goes = {"sources/good": "good.mp4", "scan/earlier": "good.mp4", "pack/b": "gone.mp4", "caption/b": "gone.mp4"}
    for name, uri in (stays | goes).items():
        write_errors(store, *name.split("/"), [logged_error(uri, ValueError("of an earlier build"))])
    sweep(store, recipe, sources)
    assert store.list(FOLDER) == sorted(f"{FOLDER}/{name}.jsonl" for name in stays)
