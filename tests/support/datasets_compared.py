"""What has to be the same in two builds of one dataset."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pipeline.storage.store import Store
from pipeline.tables.published import read_table


def snapshot(dataset: Path) -> dict[str, str]:
    """Shards, indexes and card byte by byte, tables by their rows, dataset.json but for the times of its passes."""
    same = {}
    for path in [*sorted((dataset / "shards").rglob("*.*")), dataset / "README.md"]:
        same[str(path.relative_to(dataset))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for name, keys in (("clips", ["clip_id"]), ("sources", ["source_uri"]), ("frames", ["clip_id", "index"])):
        table = read_table(Store(str(dataset)), f"tables/{name}")
        assert table is not None
        rows = table.sort_by([(key, "ascending") for key in keys]).to_pylist()
        same[name] = hashlib.sha256(str(rows).encode()).hexdigest()
    info = json.loads((dataset / "dataset.json").read_text())
    info.pop("passes")
    return same | {"dataset.json": json.dumps(info, sort_keys=True)}
