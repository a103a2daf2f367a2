"""Parts of a shard: small shards that many workers write in parallel, and that are then joined by copying bytes.

A part is the unit of encoding and takes one core 10 to 20 seconds. All cores can work on one shard, and a build that is
killed loses only the unfinished parts. The clips of a part depend only on the clips of its shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.recipe import PackOptions
from pipeline.pack.shards import TAR_BLOCK, ShardResult, estimated_bytes, index_path, result_of, write_index
from pipeline.storage.store import Store, atomic
from pipeline.tables.fragments import fingerprint

SPOOL = "state/pack"  # has a folder for each unfinished shard, with the rows of its clips and its parts
PART_BYTES = 4e6  # target size of a part, estimated bytes
RECORD = 10_240  # bytes; the size of a tar file is a multiple of this


def spool_of(shard: str) -> str:
    """Return the folder of the rows and parts of a shard; `shard` is the name of its plan."""
    return f"{SPOOL}/{fingerprint(shard)}"


def rows_file(spool: str) -> str:
    return f"{spool}/rows.parquet"


def part_file(spool: str, number: int) -> str:
    return f"{spool}/{number:05d}.tar"


def parts_of(clips: pa.Table, options: PackOptions) -> list[np.ndarray]:
    """Split the clips of a shard into parts: row numbers of `clips`, ascending, (k,) int64 for each part.

    Clips are assigned in order of source and time, so that a part reads few sources and each stretch of them once.
    """
    keys = [(name, "ascending") for name in ("source_uri", "start_pts", "end_pts")]
    order = pc.sort_indices(clips, sort_keys=keys).to_numpy().astype(np.int64)
    sizes = estimated_bytes(clips, options)[order]
    numbers = np.floor((np.cumsum(sizes) - sizes / 2) / PART_BYTES)
    return [np.sort(rows) for rows in np.split(order, np.flatnonzero(np.diff(numbers)) + 1) if len(rows)]


def join_parts(store: Store, tars: Sequence[str], name: str, path: str, folder: Path) -> ShardResult:
    """Write the shard `path` of the plan `name` below `folder`, with the samples of the parts `tars` ordered by key.

    Tar and index have the same bytes as if `write_shard` had written all clips at once. The index is written first.
    Raises OSError if a part cannot be read or the shard cannot be written; no tar is written in that case.
    """
    samples: list[tuple[dict[str, Any], str]] = []  # each row of INDEX with the part that holds the sample
    failures: list[tuple[str, str]] = []
    for tar in tars:
        with store.open(str(index_path(Path(tar)))) as file:
            index = pq.read_table(file)
        failures += [(clip, reason) for clip, reason in result_of(index.schema).failures]
        samples += [(row, tar) for row in index.to_pylist()]
        schema = index.schema
    samples.sort(key=lambda sample: sample[0]["key"])
    result = ShardResult(name, path, failures=sorted(failures), clips=len(samples))
    target = folder / path
    if not samples:
        write_index(target, result, [], schema)
        return result
    digest, size, rows = hashlib.sha256(), 0, []
    with atomic(target) as temporary:
        with open(temporary, "wb") as out:
            for data, row in _copied(store, samples):
                rows.append(_moved(row, size))
                digest.update(data)
                size += out.write(data)
            end = bytes(2 * TAR_BLOCK + -(size + 2 * TAR_BLOCK) % RECORD)
            digest.update(end)
            size += out.write(end)
        seconds = sum(row["duration"] for row in rows)
        result = ShardResult(name, path, digest.hexdigest(), size, len(rows), seconds, result.failures)
        write_index(target, result, rows, schema)
    return result


def _copied(store: Store, samples: Sequence[tuple[dict[str, Any], str]]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the tar blocks of each sample, and its row of INDEX with offsets relative to the first of them."""
    for row, tar in samples:
        members = [name.removesuffix("_offset") for name, value in row.items() if name.endswith("_offset") and value]
        start = min(row[f"{member}_offset"] for member in members) - TAR_BLOCK
        end = max(row[f"{member}_offset"] + -(-row[f"{member}_size"] // TAR_BLOCK) * TAR_BLOCK for member in members)
        with store.open(tar) as file:
            file.seek(start)
            data = file.read(end - start)
        if len(data) < end - start:
            raise OSError(f"{store.path(tar)} is cut off: delete {store.path(SPOOL)} and run the build again")
        yield data, _moved(row, -start)


def _moved(row: dict[str, Any], by: int) -> dict[str, Any]:
    """Return the row of INDEX with all offsets increased by `by` bytes."""
    return {name: value + by if name.endswith("_offset") and value else value for name, value in row.items()}
