"""The clips that the report shows: their choice, and their pictures and video for data: URIs."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filters import filter_of
from filters.base import evenly, why_null
from pipeline.report.histogram import Histogram, number
from pipeline.sources.names import printable
from pipeline.storage.store import Store
from pipeline.tables.columns import rows_of_clips
from pipeline.tables.fragments import Fragment, frames_of

JOIN = "\x1f"  # separator of reasons
KEPT_LOOKED_AT = 5000
VIDEO_BYTES = 15_000_000  # of encoded clips in the page, before base64 makes them a third larger
STRIP_WIDTH = 320  # of one frame of an animated strip, pixels
STRIP_FRAMES = 6
STRIP_QUALITY = 72


@dataclass(frozen=True)
class Score:
    """A clip's score, and the share of all clips that score lower; `fails`: the clip is rejected by it."""

    name: str
    text: str
    value: float | None
    percentile: float | None
    fails: bool


@dataclass(frozen=True)
class Shown:
    """One clip on the page."""

    clip_id: str
    kept: bool
    reasons: tuple[str, ...]
    title: str  # the source's name
    source: str  # its whole URI
    start: float
    end: float
    caption: str
    size: str  # "1920x1080, 30 fps"
    place: str  # bucket and split
    strip: str  # a JPEG of `strip_frames` sampled frames side by side, base64; empty when there are none
    strip_frames: int
    aspect: float  # width over height of one frame
    media: str  # mp4, jpg or none
    video: str  # base64
    scores: tuple[Score, ...] = field(default=())


def choose(clips: pa.Table, count: int) -> list[str]:
    """Choose up to `count` clips, half of them kept; return their ids. Kept ones are taken from the sources in turn,
    rejected ones from their first reasons in turn, each by id: rare reasons appear, and the choice is deterministic.
    Only the first KEPT_LOOKED_AT kept clips by id are considered."""
    keep = pc.fill_null(clips["keep"], False)
    ids = clips.select(["clip_id"])
    kept: dict[str, list[str]] = defaultdict(list)
    for row in _first(clips.select(["clip_id", "source_id"]).filter(keep), KEPT_LOOKED_AT).to_pylist():
        kept[row["source_id"]].append(row["clip_id"])
    joined = pc.fill_null(pc.binary_join(clips["rejected_by"], JOIN), "")
    first = pc.struct_field(pc.extract_regex(joined, f"^(?P<first>[^{JOIN}]*)"), "first")
    rejected = {
        reason: _first(ids.filter(pc.and_(pc.invert(keep), pc.equal(first, reason))), count)["clip_id"].to_pylist()
        for reason in pc.unique(first).to_pylist()
    }
    chosen, others = in_turn(kept), in_turn(rejected)
    half = max(count // 2, count - len(others))
    chosen = chosen[:half]
    return chosen + others[: count - len(chosen)]


def _first(rows: pa.Table, count: int) -> pa.Table:
    """Return the first `count` rows by clip_id."""
    return rows.take(pc.select_k_unstable(rows, k=count, sort_keys=[("clip_id", "ascending")])) if len(rows) else rows


def in_turn(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the first of each group in order of name, then the second of each, and so on."""
    ordered = [groups[name] for name in sorted(groups)]
    longest = max(map(len, ordered), default=0)
    return [group[i] for i in range(longest) for group in ordered if i < len(group)]


def show(
    store: Store, chosen: Sequence[Mapping[str, Any]], histograms: Sequence[Histogram], labels: Sequence[str]
) -> list[Shown]:
    """Return these rows of the clips table with scores, strips of frames and, up to VIDEO_BYTES in all, video."""
    strips = _strips(store, {clip["clip_id"] for clip in chosen})
    videos = _videos(store, chosen)
    shown = []
    for clip in chosen:
        strip, frames, aspect = strips.get(clip["clip_id"], (b"", 0, clip["width"] / max(1, clip["height"])))
        media, video = videos.get(clip["clip_id"], ("", b""))
        shown.append(
            Shown(
                clip_id=clip["clip_id"],
                kept=bool(clip["keep"]),
                reasons=tuple(clip["rejected_by"] or ()),
                title=printable(clip["source_uri"].rstrip("/").rsplit("/", 1)[-1]),
                source=printable(clip["source_uri"]),
                start=clip["start"],
                end=clip["end"],
                caption=clip["caption"] or "",
                size=f"{clip['width']}×{clip['height']}, {number(clip['fps'])} fps",
                place=" · ".join(p for p in (clip["bucket"], clip["split"]) if p),
                strip=base64.b64encode(strip).decode(),
                strip_frames=frames,
                aspect=round(aspect, 4),
                media=media,
                video=base64.b64encode(video).decode(),
                scores=_scores(clip, histograms, labels),
            )
        )
    return shown


def _scores(clip: Mapping[str, Any], histograms: Sequence[Histogram], labels: Sequence[str]) -> tuple[Score, ...]:
    """Return the clip's scores, those with a threshold first."""
    words, reasons = {True: "yes", False: "no"}, clip["rejected_by"] or ()
    scores = [
        Score(name, words.get(clip[name], clip[name]), None, None, False) for name in labels if clip[name] is not None
    ]
    for histogram in sorted(histograms, key=lambda histogram: not histogram.lines):
        value = clip[histogram.name]
        if value is None or not np.isfinite(value):
            if histogram.lines:
                why = clip.get(why_null(filter_of(histogram.name))) or "not asked"
                scores.append(Score(histogram.name, f"no score: {why}", None, None, histogram.name in reasons))
            continue
        fails = histogram.name in reasons
        scores.append(Score(histogram.name, number(value), float(value), round(histogram.percentile(value), 4), fails))
    return tuple(scores)


def _strips(store: Store, wanted: set[str]) -> dict[str, tuple[bytes, int, float]]:
    """Return by clip id: (JPEG, number of frames in it, width over height of one)."""
    frames: dict[str, list[tuple[float, bytes]]] = defaultdict(list)
    for row in rows_of_clips(store, _frames_with(store, wanted), wanted):
        frames[row["clip_id"]].append((row["time"], row["jpeg"]))
    return {clip: strip for clip in sorted(frames) if (strip := film_strip([jpeg for _, jpeg in sorted(frames[clip])]))}


def _frames_with(store: Store, wanted: set[str]) -> list[str]:
    """Return the files with frames of these clips, or all files if state/scan, which names them, is missing."""
    names, units = store.list("state/scan", ".parquet"), set[str]()
    for name in names:
        rows = Fragment(name, {}).rows(store, ["clip_id", "unit"])
        units |= set(rows.filter(pc.is_in(rows["clip_id"], pa.array(sorted(wanted), pa.string())))["unit"].to_pylist())
    files = store.list("tables/frames", ".parquet")
    return [file for file in files if file in map(frames_of, units)] if names else files


def film_strip(jpegs: Sequence[bytes]) -> tuple[bytes, int, float] | None:
    """Return up to STRIP_FRAMES of `jpegs` side by side as one JPEG, their number, and width over height of one; None
    where none can be decoded."""
    picked = [jpegs[i] for i in evenly(len(jpegs), STRIP_FRAMES)]
    pictures = [p for j in picked if (p := cv2.imdecode(np.frombuffer(j, np.uint8), cv2.IMREAD_COLOR)) is not None]
    if not pictures:
        return None
    height, width = pictures[0].shape[:2]
    scale = min(1.0, STRIP_WIDTH / width, STRIP_WIDTH / height)
    size = max(2, round(width * scale)), max(2, round(height * scale))
    row = np.hstack([cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures])
    return (
        cv2.imencode(".jpg", row, [cv2.IMWRITE_JPEG_QUALITY, STRIP_QUALITY])[1].tobytes(),
        len(pictures),
        size[0] / size[1],
    )


def _videos(store: Store, chosen: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, bytes]]:
    """Return by clip id: (mp4 or jpg, bytes from the shard), the smallest clips first, up to VIDEO_BYTES."""
    by_shard: dict[str, set[str]] = defaultdict(set)
    for clip in chosen:
        if clip["keep"] and clip["shard"]:
            by_shard[clip["shard"]].add(clip["clip_id"])
    members = []
    for shard, ids in sorted(by_shard.items()):
        with store.open(shard.removesuffix(".tar") + ".parquet") as file:
            index = pq.read_table(file, columns=["key", "media", "media_offset", "media_size"])
        members += [(row["media_size"], row["key"], shard, row) for row in index.to_pylist() if row["key"] in ids]
    videos, free_bytes = {}, VIDEO_BYTES
    for size, key, shard, row in sorted(members, key=lambda member: member[:2]):
        if size > free_bytes:
            break
        free_bytes -= size
        with store.open(shard) as file:
            file.seek(row["media_offset"])
            videos[key] = (row["media"], file.read(size))
    return videos
