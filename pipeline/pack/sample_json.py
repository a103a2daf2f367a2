"""The contents of KEY.json: enough to trace a sample to its source, span, scores, versions and licence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.recipe import PackOptions
from pipeline.media import encode, sound
from pipeline.pack.companions import identities
from pipeline.selection.buckets import bucket_size
from pipeline.tables.fragments import fingerprint

VERSION = 3  # increase when `documents` changes for the same rows
SOURCE = ("source_id", "source_uri", "shot_index", "start", "end", "start_pts", "end_pts", "time_base")
PICTURE = (
    *("width", "height", "crop_x", "crop_y", "crop_w", "crop_h", "fps", "frames", "pack_frames"),
    *("color_matrix", "color_primaries", "color_transfer", "color_range"),
)
INTERNAL = (  # columns for the build itself, which are not published
    *("unit", "scan_fragment", "embed_fragment", "captioned"),
    *("scored", "embedding", "frame_embeddings", "phash"),
)
DECIDED = ("keep", "rejected_by", "duplicates_of", "dropped", "bucket", "split", "shard", "decision")
ADDED = {"audio": "drop", "companions": {}}  # options that do not affect a shard's fingerprint at these values
LICENCES = ("licence", "license", "rights")  # columns of the user's lists that may hold a licence
TEXTS = (
    "clip_id",
    "metadata",
    "caption",
    "caption_by",
    "caption_short",
    "caption_dense",
    "caption_others",
    "caption_json",
    "caption_error",
)


def documents(rows: pa.Table, options: PackOptions) -> list[dict[str, Any]]:
    """Return one document of JSON values for each row. A document depends on its row alone.

    Missing values (null, or a list without values) are omitted, because readers that infer a schema from the first
    samples fail at a null that later has a value. 32-bit floats are rounded to their seven significant digits.
    """
    rows = rows.drop_columns([name for name in INTERNAL if name in rows.column_names])
    described = {*SOURCE, *PICTURE, *DECIDED, *TEXTS}
    scores = sorted(name for name in rows.column_names if name not in described)
    types = {name: rows.schema.field(name).type for name in scores}
    short = {name for name in scores if pa.types.is_float32(getattr(types[name], "value_type", types[name]))}
    result = []
    for row in rows.to_pylist():
        plain = {name: _plain(value, name in short) for name, value in row.items()}
        values = {name: value for name, value in plain.items() if value is not None}
        result.append(
            {
                "clip_id": values["clip_id"],
                **{name: values[name] for name in TEXTS if name in values and name != "caption_others"},
                **_captions(values),
                **_licence(values.get("metadata")),
                "bucket": values["bucket"],
                "split": values["split"],
                "source": {name: values[name] for name in SOURCE if name in values},
                "picture": {name: values[name] for name in PICTURE if name in values},
                "scores": {name: values[name] for name in scores if name in values},
                "encoding": encoding(row, options),
                "versions": _versions(),
            }
        )
    return result


def _captions(values: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Return all captions of a clip in two lists: `short` (one sentence each) and `dense` (a paragraph each)."""
    short, dense = values.get("caption_short"), values.get("caption_dense")
    lists = {
        "short": [short] if short else [],
        "dense": [*([dense] if dense else []), *values.get("caption_others", ())],
    }
    return {"captions": lists} if any(lists.values()) else {}


def _licence(metadata: str | None) -> dict[str, str]:
    """Return the licence of a source from the metadata of the user's list, if there is one."""
    fields = json.loads(metadata) if metadata else {}
    licences = [str(fields[name]) for name in LICENCES if fields.get(name)]
    return {"licence": licences[0]} if licences else {}


def content(rows: pa.Table, options: PackOptions) -> str:
    """Return a fingerprint of everything that `documents` and the media depend on, including the order of the rows."""
    excluded = {*INTERNAL, *DECIDED} - {"bucket", "split"}
    digest = hashlib.sha256()
    for name in sorted(set(rows.column_names) - excluded):
        digest.update(name.encode())
        _add(digest, rows[name].combine_chunks())
    values = dataclasses.asdict(options)
    for name in [name for name, default in ADDED.items() if values[name] == default]:
        del values[name]
    return fingerprint(digest.hexdigest(), values, _versions() | _added(options), VERSION)


def _add(digest: Any, values: pa.Array) -> None:
    """Add values and nulls to the digest, independently of their memory layout."""
    data_type = values.type
    if pa.types.is_dictionary(data_type):
        _add(digest, values.cast(data_type.value_type))
    elif pa.types.is_list(data_type):
        digest.update(pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False))
        _add(digest, pc.list_flatten(values))
    elif pa.types.is_string(data_type) or pa.types.is_binary(data_type):
        digest.update(pc.fill_null(pc.binary_length(values), -1).to_numpy(zero_copy_only=False))
        digest.update(b"".join(values.drop_null().cast(pa.binary()).to_pylist()))
    else:
        digest.update(values.is_null().to_numpy(zero_copy_only=False))
        digest.update(values.drop_null().to_numpy(zero_copy_only=False))


def encoding(row: Mapping[str, Any], options: PackOptions) -> dict[str, Any]:
    """Return everything that determines the bytes of a clip's media, apart from its source and span."""
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
        **({"frames": row["pack_frames"]} if row.get("pack_frames") and not still else {}),
        **_added(options),
    }


def _added(options: PackOptions) -> dict[str, Any]:
    """Return what determines the bytes of sound and companions, if the options enable them."""
    audio = {"audio": sound.VERSION} if options.audio == "keep" else {}
    return audio | ({"companions": identities(options)} if options.companions else {})


def to_json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _versions() -> dict[str, Any]:
    """Return the encoder's version. clipmill's is in dataset.json only, so that a release need not rewrite shards."""
    return {"encoding": encode.VERSION}


def _plain(value: Any, short: bool) -> Any:
    if isinstance(value, float):
        return None if not math.isfinite(value) else float(f"{value:.7g}") if short else value
    if isinstance(value, list):
        items = [_plain(item, short) for item in value]
        return items if any(item is not None for item in items) else None
    return value
