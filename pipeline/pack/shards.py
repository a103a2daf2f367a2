"""Shards: the grouping of clips, and the tar and index written for each. A shard is a function of its clips."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.recipe import PackOptions, Recipe
from pipeline.config.video_models import resolved
from pipeline.media import encode
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
        ("fps", pa.float64()),  # mean; 0 for a still image
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("duration", pa.float64()),  # seconds; 0 for a still image
    ]
)
BITS_A_PIXEL = {"fast_loading": 0.12, "small": 0.07}  # of encoded video, for estimates before it exists
STILL = 20.0  # frames of video that take as many bytes as a still image
FULL = math.sqrt(2)  # factor of the target size at which a shard is split in two, so that sizes centre on the target
META = b"clipmill"  # key of the index file's metadata: the ShardResult
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
        """Path and content fingerprint: if a shard of this name exists, there is nothing to write."""
        return f"{self.path}#{content(self.rows(), self.options)}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "table": self.rows().combine_chunks(), "clips": np.arange(len(self.clips))}


@dataclass(frozen=True)
class ShardResult:
    """A written shard, without the clips that failed. If all failed, there is an empty index and no tar."""

    name: str  # of its plan
    path: str
    sha256: str = ""
    bytes: int = 0
    clips: int = 0
    seconds: float = 0.0  # of video
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


@dataclass(frozen=True)
class _Spooled:
    """A clip's media in the spool file, until it is written to the tar."""

    offset: int
    size: int
    encoded: encode.Encoded  # without its data


def plan_shards(kept: pa.Table, recipe: Recipe) -> list[ShardPlan]:
    """Return the shards of `kept` (clips with bucket and split), in order of path, for any order of its rows.

    Clips are ordered by clip_id, which is a hash and therefore a shuffle. The clips of a bucket and split are one
    shard, number 1, until its estimated size exceeds `FULL` times the target. Then they are split by the next bit of
    the clip_id into shards 2 and 3, numbered like the children of a heap, and so on. So adding or removing a clip
    changes or splits its own shard only, and all have about the same size because ids are uniformly distributed.
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
    sizes = np.concatenate([[0.0], np.cumsum(_estimated_bytes(kept, options)[order])])
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
    """Encode the clips of `plan` and write its tar and index below `folder`, each atomically.

    Members are KEY.mp4 (or KEY.jpg), KEY.txt and KEY.json, without times or owners. Media in `reuse` that was encoded
    the same way is copied; if it has changed, the clip is encoded again. A clip that cannot be encoded is omitted and
    reported. Raises OSError if the shard cannot be written or a source cannot be reached; then there is no tar and no
    index. Without an `encoder` a new one is started.
    """
    if encoder is None:
        with ClipEncoder() as own:
            return write_shard(plan, folder, reuse, own)
    table = plan.rows()
    samples = {document["clip_id"]: document for document in documents(table, plan.options)}
    media: dict[str, _Spooled] = {}
    failures: list[tuple[str, str]] = []
    target = folder / plan.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=target.parent) as spool:
        for key, stored in (reuse or {}).items():
            if key in samples and (encoded := _read_stored(stored, key, samples[key]["encoding"])):
                media[key] = _spool(spool, encoded)
        reused = len(media)
        pending = [row for row in table.to_pylist() if row["clip_id"] not in media]
        for key, answer in encoder.encode_all(pending, plan.options):
            if isinstance(answer, str):
                failures.append((key, answer))
            else:
                media[key] = _spool(spool, answer)
        result = ShardResult(plan.name, plan.path, failures=sorted(failures), reused=reused)
        if not media:
            _write_index(target, result, [])
            return result
        with atomic(target) as temporary:
            index = _write_tar(temporary, [samples[key] for key in samples if key in media], media, spool)
            with open(temporary, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size, seconds = temporary.stat().st_size, sum(row["duration"] for row in index)
            result = replace(result, sha256=digest, bytes=size, clips=len(index), seconds=seconds)
            _write_index(target, result, index)
    return result


def listed(store: Store) -> dict[str, ShardResult]:
    """Return the finished shards of a dataset, by the name of their plan. A shard is unfinished if its tar is missing
    or does not have the size in its index."""
    sizes = {name: size for name, size, _ in store.stat("shards")}
    finished = {}
    for name in sizes:
        if not name.endswith(".parquet"):
            continue
        try:
            with store.open(name) as file:
                result = ShardResult(**json.loads((pq.read_schema(file).metadata or {})[META]))
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError):
            continue
        if sizes.get(result.path, 0) == result.bytes and name == str(index_path(Path(result.path))):
            finished[result.name] = result
    return finished


def stored_clips(store: Store, tars: Sequence[str], wanted: pa.ChunkedArray) -> dict[str, Stored]:
    """Return the locations of the `wanted` clip ids in the finished shards `tars`, for `write_shard` to reuse."""
    clips = {}
    columns = ("key", "media_offset", "media_size", "json_offset", "json_size")
    for tar in tars:
        with store.open(str(index_path(Path(tar)))) as file:
            index = pq.read_table(file, columns=list(columns))
        index = index.filter(pc.is_in(index["key"], wanted.combine_chunks()))
        for key, *where in zip(*(index[name].to_pylist() for name in columns), strict=True):
            clips[key] = Stored(store.path(tar), *where)
    return clips


def index_path(tar: Path) -> Path:
    return tar.with_suffix(".parquet")


def _write_index(target: Path, result: ShardResult, rows: list[dict[str, Any]]) -> None:
    lasting = {**asdict(result), "reused": 0}  # the bytes must not depend on how the shard was made
    table = pa.Table.from_pylist(rows, schema=INDEX).replace_schema_metadata({META: json.dumps(lasting).encode()})
    with atomic(index_path(target)) as temporary:
        temporary.write_bytes(to_parquet(table))


def _leaves(words: np.ndarray, sizes: np.ndarray, limit: float) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start, end): rows of sorted `words` that share a prefix and whose total size is within `limit`;
    `sizes` are (n + 1,) cumulative."""
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


def _estimated_bytes(clips: pa.Table, options: PackOptions) -> np.ndarray:
    buckets = clips["bucket"].combine_chunks().dictionary_encode()
    sizes = [bucket_size(name) for name in buckets.dictionary.to_pylist()]
    pixels = np.array([width * height for width, height in sizes], np.float64)[buckets.indices.to_numpy()]
    frames = clips["frames"].to_numpy().astype(np.float64)
    if options.fps:
        seconds = clips["end"].to_numpy() - clips["start"].to_numpy()
        frames = np.where(frames > 1, seconds * options.fps, frames)
    return pixels * np.where(frames > 1, frames, STILL) * BITS_A_PIXEL[options.preset] / 8 + 4 * TAR_BLOCK


def _spool(spool: IO[bytes], encoded: encode.Encoded) -> _Spooled:
    offset = spool.seek(0, io.SEEK_END)
    spool.write(encoded.data)
    return _Spooled(offset, len(encoded.data), replace(encoded, data=b""))


def _read_stored(stored: Stored, key: str, encoding: Mapping[str, Any]) -> encode.Encoded | None:
    """Return the clip at the location `stored`; None if it is not there or has another `encoding`."""
    try:
        with open_file(stored.uri) as file:
            file.seek(stored.media_offset - TAR_BLOCK)
            member = tarfile.TarInfo.frombuf(file.read(TAR_BLOCK), "utf-8", "strict")
            data = file.read(stored.media_size)
            file.seek(stored.json_offset)
            document = json.loads(file.read(stored.json_size))
            video = encode.Encoded(data=data, **document["video"])
    except (OSError, ValueError, KeyError, TypeError, tarfile.HeaderError):
        return None
    is_same_clip = member.name == f"{key}.{video.media}" and member.size == len(data) and document["clip_id"] == key
    return video if is_same_clip and document["encoding"] == encoding else None


def _write_tar(
    path: Path, samples: Sequence[Mapping[str, Any]], media: Mapping[str, _Spooled], spool: IO[bytes]
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
            key, spooled = document["clip_id"], media[document["clip_id"]]
            video = {name: value for name, value in asdict(spooled.encoded).items() if name != "data"}
            spool.seek(spooled.offset)
            members = {
                "media": add(f"{key}.{video['media']}", spool.read(spooled.size)),
                "text": add(f"{key}.txt", document.get("caption", "").encode()),
                "json": add(f"{key}.json", to_json({**document, "video": video})),
            }
            where = {
                f"{member}_{what}": value
                for member, at in members.items()
                for what, value in zip(("offset", "size"), at, strict=True)
            }
            rows.append({"key": key, **video, **where})
    return rows
