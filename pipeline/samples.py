"""What KEY.json says of a sample: enough to trace it to its source, span, scores, versions and licence."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline import encode
from pipeline.buckets import bucket_size
from pipeline.recipe import PackOptions

SOURCE = ("source_id", "source_uri", "shot_index", "start", "end", "start_pts", "end_pts", "time_base")
PICTURE = ("width", "height", "crop_x", "crop_y", "crop_w", "crop_h", "fps", "frames")
INTERNAL = ("fragment", "at", "scored", "embedding", "frame_embeddings", "phash")  # of the build alone
DECIDED = ("keep", "rejected_by", "duplicates_of", "dropped", "bucket", "split", "shard")
SAID = ("clip_id", "metadata", "caption", "caption_short", "caption_dense", "caption_json", "caption_error")


def documents(rows: pa.Table, options: PackOptions) -> list[dict[str, Any]]:
    """One document a row, of plain JSON values: the same rows give the same documents, whatever else the table holds.

    Every document of a table has the same keys; what is not known is null. 32-bit floats are rounded to the seven
    digits that they have.
    """
    rows = rows.drop_columns([name for name in INTERNAL if name in rows.column_names])
    known = {*SOURCE, *PICTURE, *DECIDED, *SAID}
    scores = sorted(name for name in rows.column_names if name not in known)
    kinds = {name: getattr(rows.schema.field(name).type, "value_type", rows.schema.field(name).type) for name in scores}
    short = {name for name, kind in kinds.items() if pa.types.is_float32(kind)}
    versions = {"clipmill": importlib.metadata.version("clipmill"), "encoding": encode.VERSION}
    result = []
    for row in rows.to_pylist():
        values = {name: _plain(value, name in short) for name, value in row.items()}
        result.append(
            {
                "clip_id": values["clip_id"],
                "caption": values.get("caption"),
                "caption_short": values.get("caption_short"),
                "caption_dense": values.get("caption_dense"),
                "caption_fields": values.get("caption_json") or "",
                "bucket": values["bucket"],
                "split": values["split"],
                "source": {name: values.get(name) for name in SOURCE},
                "metadata": values.get("metadata") or "",
                "picture": {name: values.get(name) for name in PICTURE},
                "scores": {name: values[name] for name in scores},
                "encoding": encoding(row, options),
                "versions": versions,
            }
        )
    return result


def encoding(row: Mapping[str, Any], options: PackOptions) -> dict[str, Any]:
    """All that decides the bytes of a clip's media, beside its source and span."""
    width, height = bucket_size(row["bucket"])
    still = row["frames"] == 1
    return {
        "version": encode.VERSION,
        "codec": "jpeg" if still else options.codec,
        "preset": "" if still else options.preset,
        "fps": 0.0 if still else options.fps or 0.0,  # 0: the source's own
        "width": width,
        "height": height,
        "crop": [row["crop_x"], row["crop_y"], row["crop_w"], row["crop_h"]],
    }


def to_json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _plain(value: Any, short: bool) -> Any:
    if isinstance(value, float):
        return None if not math.isfinite(value) else float(f"{value:.7g}") if short else value
    if isinstance(value, list):
        return [_plain(item, short) for item in value]
    return value
