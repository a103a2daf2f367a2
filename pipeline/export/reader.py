"""A reader of finished datasets for exporters: clips in the order of the shards, with media and texts from the tars."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.finish import DatasetError, read_info
from pipeline.pack.shards import INDEX, index_path
from pipeline.storage.store import Store
from pipeline.tables.published import open_published

FACTS = ("key", "media", "frames", "fps", "width", "height", "duration")  # columns of INDEX that are fields of Clip


@dataclass(frozen=True)
class Clip:
    """A sample of a shard. `fps` is the rate of its frames without gaps, and `duration` is in seconds; both are 0 for a
    still image. `caption` is one line."""

    key: str
    shard: str
    media: str  # mp4 or jpg
    frames: int
    fps: float
    width: int
    height: int
    duration: float
    caption: str
    _tar: BinaryIO = field(repr=False)
    _places: dict[str, int] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.key}.{self.media}"

    @property
    def size(self) -> int:
        """The size of the media in bytes."""
        return self._places["media_size"]

    @property
    def split(self) -> str:
        """train or val."""
        return Path(self.shard).name.partition("-")[0]

    @property
    def bucket(self) -> str:
        return Path(self.shard).parent.name

    def data(self, member: str = "media") -> bytes:
        """Read the media file, or another member: `text`, `json`, or a companion that it has."""
        offset, size = self.place(member)
        self._tar.seek(offset)
        return self._tar.read(size)

    def captions(self) -> list[str]:
        """Return the distinct captions of the clip, each on one line; the dataset's choice comes first."""
        given = json.loads(self.data("json")).get("captions", {})
        lines = [joined_lines(text) for texts in given.values() for text in texts]
        return [text for text in dict.fromkeys([self.caption, *lines]) if text]

    def has(self, companion: str) -> bool:
        """Whether the clip has a companion of this name: first, canny ..."""
        return self._places.get(f"{companion}_size") is not None

    def place(self, member: str) -> tuple[int, int]:
        """Return offset and size in the tar of a member's data."""
        return self._places[f"{member}_offset"], self._places[f"{member}_size"]


@dataclass(frozen=True)
class Dataset:
    """A dataset folder, the content of its dataset.json, and the rows of all shard indexes with the column `shard`."""

    store: Store
    info: dict[str, Any]
    index: pa.Table

    @property
    def shards(self) -> list[dict[str, Any]]:
        return [shard for shard in self.info["shards"] if shard["clips"]]

    @property
    def moving(self) -> np.ndarray:
        """(n,) bool: which clips are videos, not still images."""
        return np.asarray(self.index["media"].to_numpy() == "mp4", bool)

    def clips(self) -> Iterator[Clip]:
        """Yield every clip, shard by shard. A clip can be read until the next shard begins.

        Raises DatasetError for a shard that is missing or whose bytes are not those that dataset.json names.
        """
        for shard in self.shards:
            rows = _index(self.store, shard["path"]).to_pylist()
            with open_listed(self.store, shard["path"]) as tar:
                if hashlib.file_digest(tar, "sha256").hexdigest() != shard["sha256"]:  # type: ignore[arg-type]
                    raise DatasetError(f"{shard['path']} is damaged: run `clipmill verify {self.store.uri}`")
                for row in rows:
                    places = {name: value for name, value in row.items() if name.endswith(("_offset", "_size"))}
                    tar.seek(row["text_offset"])
                    caption = joined_lines(tar.read(row["text_size"]).decode())
                    facts = {name: row[name] for name in FACTS}
                    yield Clip(shard=shard["path"], caption=caption, _tar=tar, _places=places, **facts)


def read_dataset(uri: str) -> Dataset:
    """Open the dataset at `uri`. Raises DatasetError where there is none, or where a shard's index cannot be read."""
    store = Store(uri)
    info = read_info(store)
    tables = [INDEX.empty_table().append_column("shard", pa.array([], pa.string()))]
    for shard in info["shards"]:
        if shard["clips"]:
            table = _index(store, shard["path"]).select(INDEX.names)
            tables.append(table.append_column("shard", pa.array([shard["path"]] * len(table), pa.string())))
    return Dataset(store, info, pa.concat_tables(tables).combine_chunks())


def open_listed(store: Store, name: str) -> BinaryIO:
    """Open a file that dataset.json names. Raises DatasetError if it is missing."""
    try:
        return open_published(store, name)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{name} of the dataset {store.uri} is missing: `clipmill verify {store.uri}` checks all shards, and the "
            "next build makes missing ones again"
        ) from error


def joined_lines(text: str) -> str:
    """Replace line breaks in `text` by spaces, for formats with one caption a line."""
    return " ".join(text.split())


def _index(store: Store, tar: str) -> pa.Table:
    name = str(index_path(Path(tar)))
    try:
        with open_published(store, name) as file:
            return pq.read_table(file).replace_schema_metadata()
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{store.path(name)} cannot be read ({error}): run `clipmill verify {store.uri}`") from error
