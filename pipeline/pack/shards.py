"""Shards: group clips into shards, and write the tar and index of each. A shard is a pure function of its clips."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.recipe import PackOptions, Recipe
from pipeline.config.video_models import resolved
from pipeline.media import encode
from pipeline.pack import companions
from pipeline.pack.clip_encoder import ClipEncoder
from pipeline.pack.sample_json import content, documents, to_json
from pipeline.selection.buckets import bucket_size
from pipeline.sources.discover import open_file
from pipeline.storage.store import Store, atomic
from pipeline.tables.fragments import id_prefix_u64, to_parquet

INDEX = pa.schema(
    [
        ("key", pa.string()),  # clip_id
        ("media", pa.string()),  # mp4 or jpg
        ("media_offset", pa.int64()),  # of the member's data in the tar, bytes
        ("media_size", pa.int64()),
        ("text_offset", pa.int64()),
        ("text_size", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("frames", pa.int32()),
        ("fps", pa.float64()),  # of the frames without gaps; 0 for a still image
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("duration", pa.float64()),  # seconds; 0 for a still image
    ]
)
SOUND_INDEX = pa.schema(  # additional columns of the index and of tables/clips with pack.audio=keep
    [
        ("has_audio", pa.bool_()),
        ("audio_loudness", pa.float64()),  # LUFS, integrated; null without a block that BS.1770 counts
        ("audio_silence", pa.float64()),  # share of the clip below -60 dB; null without sound
        ("audio_error", pa.string()),  # why the source's sound is missing, or which part of it was replaced by silence
    ]
)
BITS_A_PIXEL = {"fast_loading": 0.12, "small": 0.07}  # preset -> bits per pixel of encoded video, for estimates
STILL = 20.0  # frames of video that take as many bytes as a still image
FULL = math.sqrt(2)  # a shard is split in two at this multiple of the target size, so that sizes centre on the target
VIDEO = ("media", "frames", "fps", "width", "height", "duration")  # fields of Encoded in KEY.json and the index
META = b"clipmill"  # metadata key of the index file that holds the ShardResult
TAR_BLOCK = 512  # bytes of a tar block


@dataclass(frozen=True)
class ShardPlan:
    """The clips of one shard, in order of clip_id. A pickle holds only the plan's own rows of the table."""

    path: str  # shards/16x9-720p/train-000001.tar
    options: PackOptions = field(repr=False)
    table: pa.Table = field(repr=False)
    clips: np.ndarray = field(repr=False)  # (k,) int64: rows of `table`

    def rows(self) -> pa.Table:
        return self.table.take(pa.array(self.clips))

    @cached_property
    def name(self) -> str:
        """Path and content fingerprint. A finished shard of the same name has the same content."""
        return f"{self.path}#{content(self.rows(), self.options)}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": self.rows().combine_chunks(), "clips": np.arange(len(self.clips))}


@dataclass(frozen=True)
class ShardResult:
    """A written shard, without the clips that failed. If all clips failed, it has an empty index and no tar."""

    name: str  # name of the plan
    path: str
    sha256: str = ""
    bytes: int = 0
    clips: int = 0
    seconds: float = 0.0  # duration of the video
    failures: Sequence[tuple[str, str]] = ()  # clip_id, reason
    reused: int = 0  # clips whose media was copied from an earlier shard


@dataclass(frozen=True)
class Stored:
    """Location of a clip in a finished shard; offsets and sizes in bytes."""

    uri: str  # of the tar: a path or a URL
    media_offset: int
    media_size: int
    json_offset: int
    json_size: int
    companions: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # member -> offset and size


def plan_shards(kept: pa.Table, recipe: Recipe) -> list[ShardPlan]:
    """Return the shards of `kept` (clips with bucket and split), ordered by path, for any order of the rows.

    Clips are ordered by clip_id, a hash, which shuffles them. The clips of a bucket and split are one shard, number 1,
    until its estimated size exceeds `FULL` times the target. Then they are split by the next bit of the clip_id into
    shards 2 and 3, numbered like the nodes of a binary heap, and so on. An added or removed clip therefore changes or
    splits only its own shard. Shards have about the same size, because the ids are uniformly distributed.
    """
    if not len(kept):
        return []
    words = id_prefix_u64(kept["clip_id"])
    buckets, splits = (kept[name].combine_chunks().dictionary_encode() for name in ("bucket", "split"))
    groups = buckets.indices.to_numpy().astype(np.int64) * len(splits.dictionary) + splits.indices.to_numpy()
    order = np.lexsort((words, groups))
    groups, words = groups[order], words[order]
    options = resolved(recipe.pack)
    limit = options.shard_mb * 1e6 * FULL
    sizes = np.concatenate([[0.0], np.cumsum(estimated_bytes(kept, options)[order])])
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    plans = []
    for start, end in zip(starts, [*starts[1:], len(groups)], strict=True):
        bucket, split = divmod(int(groups[start]), len(splits.dictionary))
        folder = f"shards/{buckets.dictionary[bucket]}/{splits.dictionary[split]}"
        for number, a, b in _leaves(words[start:end], sizes[start : end + 1], limit):
            plans.append(ShardPlan(f"{folder}-{number:06d}.tar", options, kept, order[start + a : start + b]))
    return sorted(plans, key=lambda plan: plan.path)


def write_shard(
    plan: ShardPlan, folder: Path, reuse: Mapping[str, Stored] | None = None, encoder: ClipEncoder | None = None
) -> ShardResult:
    """Encode the clips of `plan`, all of them in memory, and write their tar and index below `folder`, each atomically.

    Members are KEY.mp4 (or KEY.jpg), KEY.txt, KEY.json and companions, without times or owners. Media in `reuse` is
    copied if it was encoded with the same options, else the clip is encoded again. A clip that cannot be encoded is
    omitted and reported. The index is written before the tar, so that every tar has an index. Raises OSError if they
    cannot be written or a source cannot be reached; no tar is written in that case. Without an `encoder` a new one is
    started.
    """
    if encoder is None:
        with ClipEncoder() as own:
            return write_shard(plan, folder, reuse, own)
    table = plan.rows()
    samples = {document["clip_id"]: document for document in documents(table, plan.options)}
    media: dict[str, encode.Encoded] = {}
    failures: list[tuple[str, str]] = []
    for key, stored in (reuse or {}).items():
        if key in samples and (encoded := _read_stored(stored, key, samples[key]["encoding"], plan.options)):
            media[key] = encoded
    reused = len(media)
    pending = [row for row in table.to_pylist() if row["clip_id"] not in media]
    for key, answer in encoder.encode_all(pending, plan.options):
        if isinstance(answer, str):
            failures.append((key, answer))
        else:
            media[key] = answer
    result = ShardResult(plan.name, plan.path, failures=sorted(failures), reused=reused)
    target = folder / plan.path
    if not media:
        write_index(target, result, [], index_schema(plan.options))
        return result
    with atomic(target) as temporary:
        ordered = [samples[key] for key in samples if key in media]
        index = _write_tar(temporary, ordered, media, companions.endings(plan.options))
        with open(temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size, seconds = temporary.stat().st_size, sum(row["duration"] for row in index)
        result = replace(result, sha256=digest, bytes=size, clips=len(index), seconds=seconds)
        write_index(target, result, index, index_schema(plan.options))
    return result


def listed(store: Store) -> dict[str, ShardResult]:
    """Return the finished shards of a dataset by the name of their plan. A shard is unfinished if its tar is missing or
    differs in size from its index."""
    sizes = {name: size for name, size, _ in store.stat("shards")}
    indexes = [name for name in sizes if name.endswith(".parquet")]
    shards = [result for name in indexes if (result := _described(store, name))]
    return {shard.name: shard for shard in shards if sizes.get(shard.path, 0) == shard.bytes}


def is_finished(store: Store, path: str) -> bool:
    """Return whether the shard `path` is finished, as defined by `listed`."""
    shard, (size, _) = _described(store, str(index_path(Path(path)))), store.info(path) or (0, "")
    return shard is not None and size == shard.bytes


def _described(store: Store, index: str) -> ShardResult | None:
    """Return the shard that an index describes; None if the index is missing, damaged or belongs to another shard."""
    try:
        with store.open(index) as file:
            shard = result_of(pq.read_schema(file))
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None
    return shard if index == str(index_path(Path(shard.path))) else None


def stored_clips(store: Store, tars: Sequence[str], wanted: pa.ChunkedArray) -> dict[str, Stored]:
    """Return the locations of the `wanted` clip ids in the finished shards `tars`, for `write_shard` to reuse."""
    clips = {}
    columns = ("media_offset", "media_size", "json_offset", "json_size")
    for tar in tars:
        with store.open(str(index_path(Path(tar)))) as file:
            index = pq.read_table(file)
        extra = [name.removesuffix("_offset") for name in index.column_names if name.endswith("_offset")]
        extra = [name for name in extra if f"{name}_offset" not in INDEX.names]
        for row in index.filter(pc.is_in(index["key"], wanted.combine_chunks())).to_pylist():
            others = {name: (row[f"{name}_offset"], row[f"{name}_size"]) for name in extra if row[f"{name}_offset"]}
            places = {name: row[name] for name in columns}
            clips[row["key"]] = Stored(uri=store.path(tar), companions=others, **places)
    return clips


def index_path(tar: Path) -> Path:
    return tar.with_suffix(".parquet")


def result_of(index: pa.Schema) -> ShardResult:
    """Return the ShardResult in the metadata of an index. Raises KeyError, TypeError or ValueError."""
    return ShardResult(**json.loads((index.metadata or {})[META]))


def index_schema(options: PackOptions) -> pa.Schema:
    """Return the schema of the index of a shard that is packed with `options`."""
    places = [(f"{member}_{name}", pa.int64()) for member in companions.endings(options) for name in ("offset", "size")]
    return pa.schema([*INDEX, *(SOUND_INDEX if options.audio == "keep" else ()), *places])


def write_index(target: Path, result: ShardResult, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write the index of the tar `target` atomically."""
    fields = {**asdict(result), "reused": 0}  # the bytes must not depend on how many clips were copied
    table = pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata({META: json.dumps(fields).encode()})
    with atomic(index_path(target)) as temporary:
        temporary.write_bytes(to_parquet(table))


def _leaves(words: np.ndarray, sizes: np.ndarray, limit: float) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start, end) of each shard: rows of sorted `words` that share a prefix of bits and whose total size
    is at most `limit`. `sizes` are cumulative bytes, (n + 1,)."""
    stack = [(1, 0, len(words), 0, 64)]
    while stack:
        number, start, end, prefix, bits = stack.pop()
        if sizes[end] - sizes[start] <= limit or end - start < 2 or bits == 0:
            if end > start:
                yield number, start, end
            continue
        half = prefix + (1 << (bits - 1))
        middle = start + int(np.searchsorted(words[start:end], np.uint64(half)))
        stack.append((2 * number, start, middle, prefix, bits - 1))
        stack.append((2 * number + 1, middle, end, half, bits - 1))


def estimated_bytes(clips: pa.Table, options: PackOptions) -> np.ndarray:
    """Estimate the sizes of the samples of `clips` in a tar from their numbers of pixels: bytes, (n,) float64."""
    buckets = clips["bucket"].combine_chunks().dictionary_encode()
    sizes = [bucket_size(name) for name in buckets.dictionary.to_pylist()]
    pixels = np.array([width * height for width, height in sizes], np.float64)[buckets.indices.to_numpy()]
    frames = clips["frames"].to_numpy().astype(np.float64)
    if options.fps:
        seconds = clips["end"].to_numpy() - clips["start"].to_numpy()
        frames = np.where(frames > 1, seconds * options.fps, frames)
    return pixels * np.where(frames > 1, frames, STILL) * BITS_A_PIXEL[options.preset] / 8 + 4 * TAR_BLOCK


def _read_stored(stored: Stored, key: str, encoding: Mapping[str, Any], options: PackOptions) -> encode.Encoded | None:
    """Return the clip at the location `stored`; None if it is missing there or has another `encoding`."""
    try:
        with open_file(stored.uri) as file:
            name, data = _member(file, stored.media_offset, stored.media_size)
            file.seek(stored.json_offset)
            document = json.loads(file.read(stored.json_size))
            video = encode.Encoded(data=data, **document["video"], sound=document.get("audio"))
            others = {member: _member(file, *place) for member, place in stored.companions.items()}
    except (OSError, ValueError, KeyError, TypeError, tarfile.HeaderError):
        return None
    if document["clip_id"] != key or document["encoding"] != encoding or name != f"{key}.{video.media}":
        return None
    wanted = {member: f"{key}.{ending}" for member, ending in companions.endings(options).items()}
    if video.media == "mp4" and {member: name for member, (name, _) in others.items()} != wanted:
        return None
    return replace(video, companions={member: data for member, (_, data) in others.items()})


def _member(file: BinaryIO, offset: int, size: int) -> tuple[str, bytes]:
    """Return the name and data of a member of a tar. Raises ValueError or HeaderError for a wrong offset or size."""
    file.seek(offset - TAR_BLOCK)
    header, data = tarfile.TarInfo.frombuf(file.read(TAR_BLOCK), "utf-8", "strict"), file.read(size)
    if not header.size == len(data) == size:
        raise ValueError("the member has another size")
    return header.name, data


def _write_tar(
    path: Path,
    samples: Sequence[Mapping[str, Any]],
    media: Mapping[str, encode.Encoded],
    endings: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Write the tar; return the rows of INDEX."""
    rows = []
    with open(path, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> tuple[int, int]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            return tar.offset - -(-len(data) // TAR_BLOCK) * TAR_BLOCK, len(data)

        for document in samples:
            key, encoded = document["clip_id"], media[document["clip_id"]]
            video = {name: getattr(encoded, name) for name in VIDEO}
            sound = {name: value for name, value in (encoded.sound or {}).items() if value is not None}
            whole = {**document, "video": video, **({"audio": sound} if sound else {})}
            members = {
                "media": add(f"{key}.{encoded.media}", encoded.data),
                "text": add(f"{key}.txt", document.get("caption", "").encode()),
                "json": add(f"{key}.json", to_json(whole)),
                **{
                    m: add(f"{key}.{end}", encoded.companions[m])
                    for m, end in endings.items()
                    if m in encoded.companions
                },
            }
            places = {
                f"{member}_{name}": value
                for member, place in members.items()
                for name, value in zip(("offset", "size"), place, strict=True)
            }
            rows.append({"key": key, **video, **sound, **places})
    return rows
