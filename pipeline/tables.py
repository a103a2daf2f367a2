"""The tables of a dataset: what a row of each holds, and how ids are made."""

from __future__ import annotations

import hashlib

import pyarrow as pa

SOURCES = pa.schema(
    [
        ("source_id", pa.string()),
        ("source_uri", pa.string()),
        ("status", pa.string()),  # ok, failed or skipped
        ("error", pa.string()),  # why, in plain words; null when ok
        ("duration", pa.float64()),  # seconds
        ("fps", pa.float64()),
        ("width", pa.int32()),  # as displayed: rotation applied
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("metadata", pa.string()),  # JSON of the user's own columns
    ]
)

CLIPS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("source_uri", pa.string()),
        ("shot_index", pa.int32()),
        ("start", pa.float64()),  # seconds of presentation time in the source
        ("end", pa.float64()),  # of the first frame that is no longer part
        ("start_pts", pa.int64()),
        ("end_pts", pa.int64()),
        ("time_base", pa.string()),  # "1/30000"
        ("fps", pa.float64()),
        ("frames", pa.int32()),
        ("width", pa.int32()),  # of the source as displayed
        ("height", pa.int32()),
        ("crop_x", pa.int32()),  # the picture inside its borders, in displayed pixels
        ("crop_y", pa.int32()),
        ("crop_w", pa.int32()),
        ("crop_h", pa.int32()),
    ]
)

FRAMES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("index", pa.int32()),
        ("time", pa.float64()),  # seconds of presentation time in the source
        ("jpeg", pa.binary()),
    ]
)


def clip_id(source_id: str, start_pts: int, end_pts: int, time_base: str) -> str:
    """20 hex digits that name a span of a source's content, wherever the source lies."""
    return hashlib.sha256(f"{source_id} {start_pts} {end_pts} {time_base}".encode()).hexdigest()[:20]
