"""Verification of a dataset against its dataset.json, including every decoded frame."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import decord
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.recipe import PackOptions, from_dict
from pipeline.config.video_models import resolved
from pipeline.dataset.finish import damage
from pipeline.media.sound import SoundReader
from pipeline.media.video import MediaError, Video
from pipeline.pack.companions import endings
from pipeline.pack.shards import TAR_BLOCK, index_path, index_schema
from pipeline.storage.store import Store
from pipeline.tables.published import read_table

DECORD_READS = ("h264", "hevc")  # its FFmpeg is of 2021 and has no AV1 decoder
COLUMNS = ("clip_id", "caption", "bucket", "split", "keep", "frames", "pack_frames")


def verify(dataset: str | Path, workers: int | None = None) -> list[str]:
    """Return the problems of a dataset, local or on an object store, one line each; none if it is intact.

    Compares the checksum of every shard with dataset.json, the offset of every member with the index, the frames and
    size of every fully decoded clip with the index, and every clip with its row of tables/clips: kept, of this bucket
    and split, with this caption. Clips of codecs that decord supports, which many trainers use, must have the same
    frames there. Runs one process a core, or `workers`.
    """
    store = Store(str(dataset))
    try:
        info = json.loads(store.read("dataset.json"))
        shards, options = info["shards"], resolved(from_dict(info["recipe"]).pack)
        if problems := damage(store, info):
            return problems
        clips = read_table(store, "tables/clips", lambda field: field.name in COLUMNS)
    except (OSError, ValueError, KeyError) as error:
        return [f"the dataset cannot be read: {error}"]
    if clips is None:
        return ["it has no tables/clips"]
    clips = clips.filter(pc.fill_null(clips["keep"], False))
    listed = {shard["path"] for shard in shards}
    problems = [f"{name}: not in dataset.json" for name in store.list("shards", ".tar") if name not in listed]
    jobs = [(store, shard, _rows_of(shard["path"], clips), options) for shard in shards]
    count = min(workers or os.cpu_count() or 1, max(1, len(jobs)))
    keys: Counter[str] = Counter()
    for shard, (shard_keys, wrong) in zip(shards, _mapped(jobs, count), strict=True):
        keys.update(shard_keys)
        problems += [f"{shard['path']}: {text}" for text in wrong]
    problems += [f"clip {key} is in {number} places" for key, number in sorted(keys.items()) if number > 1]
    absent = set(clips["clip_id"].to_pylist()) - keys.keys()
    return problems + [f"clip {key} is kept by the tables, and in no shard" for key in sorted(absent)]


def _rows_of(path: str, clips: pa.Table) -> pa.Table:
    _, bucket, name = path.split("/")
    split = name.partition("-")[0]
    return clips.filter(pc.and_(pc.equal(clips["bucket"], bucket), pc.equal(clips["split"], split)))


def _mapped(jobs: Sequence[Any], workers: int) -> Iterator[tuple[list[str], list[str]]]:
    if workers == 1:
        yield from map(_verify_shard, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_verify_shard, jobs)


def _verify_shard(job: tuple[Store, Mapping[str, Any], pa.Table, PackOptions]) -> tuple[list[str], list[str]]:
    """Return keys and problems of one shard."""
    store, shard, clips, options = job
    cv2.setNumThreads(1)
    try:
        with store.open(str(index_path(Path(shard["path"])))) as file:
            index = pq.read_table(file)
        if index.schema.remove_metadata() != index_schema(options):
            return [], ["the index has other columns than it should"]
        with store.open(shard["path"]) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            problems = [] if digest == shard["sha256"] else ["its checksum is not the one in dataset.json"]
            rows = {row["clip_id"]: row for row in _chosen(clips, index["key"]).to_pylist()}
            for row in index.to_pylist():
                wrong = _verify_clip(file, row, rows.get(row["key"]), options)
                problems += [f"{row['key']}: {text}" for text in wrong]
            problems += _verify_members(file, index)
    except (OSError, pa.ArrowException) as error:
        return [], [f"cannot be read: {error}"]
    if len(index) != shard["clips"]:
        problems.append(f"{len(index)} clips, where dataset.json says {shard['clips']}")
    return index["key"].to_pylist(), problems


def _verify_clip(
    file: BinaryIO, row: Mapping[str, Any], clip: Mapping[str, Any] | None, options: PackOptions
) -> Iterator[str]:
    """Return the problems of the clip at `row` of the index; `clip` is its row of the tables."""
    data = {}
    companions = endings(options) if row["media"] == "mp4" else {}
    for member, ending in {"media": row["media"], "text": "txt", "json": "json", **companions}.items():
        if row[f"{member}_offset"] is None:
            yield f"it has no .{ending}"
            return
        file.seek(row[f"{member}_offset"] - TAR_BLOCK)
        try:
            header = tarfile.TarInfo.frombuf(file.read(TAR_BLOCK), "utf-8", "strict")
        except tarfile.HeaderError:
            header = tarfile.TarInfo()
        if header.name != f"{row['key']}.{ending}" or header.size != row[f"{member}_size"]:
            yield f"its .{ending} is not where the index says"
            return
        data[member] = file.read(row[f"{member}_size"])
    try:
        decoded, wanted = _decoded(data["media"], row["media"]), (row["frames"], row["width"], row["height"])
        if decoded != wanted:
            yield "{} frames of {}x{}, where the index says {} of {}x{}".format(*decoded, *wanted)
        for member, ending in companions.items():
            media = ending.rpartition(".")[2]
            if (decoded := _decoded(data[member], media)) != (wanted if media == "mp4" else (1, *wanted[1:])):
                yield "its .{} has {} frames of {}x{}".format(ending, *decoded)
        if "has_audio" in row and _has_whole_sound(data["media"], row["duration"]) != row["has_audio"]:
            yield "it has sound where the index says that it has none, or none where it has some"
    except MediaError as error:
        yield f"cannot be decoded: {error}"
    if clip is None:
        yield "the tables do not keep it, or in another bucket or split"
        return
    if data["text"].decode() != (clip["caption"] or ""):
        yield "its text is not the caption in the tables"
    planned = clip.get("pack_frames") or (clip["frames"] if options.fps is None else None)
    if planned and row["frames"] != planned:
        yield f"{row['frames']} frames, where the tables say {planned}"
    try:
        if json.loads(data["json"])["clip_id"] != row["key"]:
            yield "its .json is of another clip"
    except (ValueError, KeyError, TypeError):
        yield "its .json is damaged"


def _verify_members(file: BinaryIO, index: pa.Table) -> list[str]:
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            count = sum(1 for _ in tar)
    except tarfile.TarError as error:
        return [f"not a tar: {error}"]
    members = sum(len(index) - index[name].null_count for name in index.column_names if name.endswith("_offset"))
    return [] if count == members else [f"{count} members, where the index has {members} of {len(index)} clips"]


def _decoded(data: bytes, media: str) -> tuple[int, int, int]:
    """Return number of frames, width and height. Raises MediaError."""
    if media == "jpg":
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise MediaError("not a JPEG")
        return 1, picture.shape[1], picture.shape[0]
    with Video(BytesIO(data)) as video:
        frames, codec = sum(1 for _ in video.frames()), video.probe.codec
    if codec in DECORD_READS:
        try:
            reader = decord.VideoReader(BytesIO(data), num_threads=1)
            reader[len(reader) - 1]
        except (decord.DECORDError, IndexError) as error:
            raise MediaError(f"decord cannot read it: {error}") from error
        if len(reader) != frames:
            raise MediaError(f"decord sees {len(reader)} frames in it, of {frames}")
    return frames, video.probe.width, video.probe.height


def _has_whole_sound(data: bytes, seconds: float) -> bool:
    """Return whether a clip has sound, after decoding all of it. Raises MediaError if it is damaged."""
    reader = SoundReader(lambda: BytesIO(data))
    try:
        sound = reader.read(Fraction(0), Fraction(seconds))
    finally:
        reader.close()
    if sound is not None and sound.error:
        raise MediaError(sound.error)
    return sound is not None


def _chosen(clips: pa.Table, keys: pa.ChunkedArray) -> pa.Table:
    return clips.filter(pc.is_in(clips["clip_id"], value_set=keys.combine_chunks()))
