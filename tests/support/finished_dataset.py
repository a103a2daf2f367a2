"""A finished dataset for tests of what reads one: selected, packed and finished by the real code, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import packing_rows
import pyarrow as pa
from footage import videos

from pipeline.config.recipe import PackOptions, Recipe, SelectOptions
from pipeline.dataset.finish import publish
from pipeline.pack.clip_encoder import ClipEncoder
from pipeline.pack.shards import plan_shards, write_shard
from pipeline.selection.select import select
from pipeline.storage.store import Store
from pipeline.tables.fragments import SOURCES


def footage(folder: Path, fps: Sequence[float] = (24, 24), still: bool = True) -> list[dict[str, Any]]:
    """Rows of clips: three of each video, which lasts 100 frames at its rate, and one of a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed, rate in enumerate(fps):
        moving = videos.pan(videos.texture(seed, 96, 160), 100, 2)
        path = videos.write_video(folder / f"{seed}.mp4", moving, fps=rate, g="20", bf="0", preset="ultrafast")
        rows += packing_rows.rows_of(path, [(0, 90), (5, 60), (70, 100)])
    if still:
        import cv2

        cv2.imwrite(str(folder / "still.png"), videos.texture(8, 96, 160))
        rows += packing_rows.rows_of(folder / "still.png", [(0, 1)])
    return rows


def finished(out: Path, rows: Sequence[Mapping[str, Any]], val_fraction: float = 0.0, **pack: Any) -> Recipe:
    """Packs `rows` into the dataset `out`, with heights of 96 pixels and the options `pack`; returns the recipe."""
    options = SelectOptions(duplicates=False, val_fraction=val_fraction)
    recipe = Recipe(select=options, pack=PackOptions(heights=(96,), **pack))
    clips = select(packing_rows.clips_table([dict(row) for row in rows]), recipe)
    store = Store(str(out))
    kept = clips.filter(clips["keep"])
    plans = plan_shards(kept, recipe)
    with ClipEncoder() as encoder:
        shards = [write_shard(plan, out, None, encoder) for plan in plans]
    paths = {key: plan.path for plan in plans for key in plan.rows()["clip_id"].to_pylist()}
    clips = clips.append_column(
        "shard", pa.array([paths.get(key) for key in clips["clip_id"].to_pylist()], pa.string())
    )
    sources = [{"source_id": row["source_id"], "source_uri": row["source_uri"], "status": "ok"} for row in rows]
    unique = list({source["source_id"]: source for source in sources}.values())
    table = pa.Table.from_pylist([{name: row.get(name) for name in SOURCES.names} for row in unique], schema=SOURCES)
    publish(store, recipe, table, clips, [clips], shards, {})
    return recipe
