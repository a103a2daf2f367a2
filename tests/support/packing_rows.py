"""Rows of a clips table for tests of selection and packing."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.media.video import Video
from pipeline.tables.fragments import CLIPS, clip_id


def rows_of(path: Path, spans: list[tuple[int, int]], **columns: Any) -> list[dict[str, Any]]:
    """Rows for spans (numbers of frames, from and to) of the video at `path`, as the scan would write them."""
    with Video(str(path)) as video:
        probe = video.probe
        pts = [frame.pts for frame in video.frames()]
    step = round(np.median(np.diff(pts))) if len(pts) > 1 else 1
    pts.append(pts[-1] + step)
    source = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    base = Fraction(probe.time_base)
    rows = []
    for index, (first, last) in enumerate(spans):
        a, b = pts[first], pts[last]
        rows.append(
            {
                "clip_id": clip_id(source, a, b, str(base)),
                "source_id": source,
                "source_uri": str(path),
                "shot_index": index,
                "start": float(a * base),
                "end": float(b * base),
                "start_pts": a,
                "end_pts": b,
                "time_base": str(base),
                "fps": probe.fps,
                "frames": last - first,
                "width": probe.width,
                "height": probe.height,
                "crop_x": 0,
                "crop_y": 0,
                "crop_w": probe.width,
                "crop_h": probe.height,
                "dropped": None,
                "caption": f"clip {index} of {path.stem}",
                "caption_short": f"clip {index}",
                "caption_json": '{"camera": "static"}',
                "motion_object": 0.1 * index,
                "camera_label": "static" if index == 2 else None,
                **columns,
            }
        )
    return rows


def clips_table(rows: list[dict[str, Any]]) -> pa.Table:
    extra = pa.Table.from_pylist([{k: v for k, v in row.items() if k not in CLIPS.names} for row in rows])
    table = pa.Table.from_pylist([{name: row.get(name) for name in CLIPS.names} for row in rows], schema=CLIPS)
    for name in extra.column_names:
        table = table.append_column(name, extra[name])
    return table
