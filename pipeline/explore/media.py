"""Media of clips: packed clips are read from their shard, others are encoded from their source on demand."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.config.recipe import PackOptions, Recipe
from pipeline.pack.clip_encoder import ClipEncoder
from pipeline.pack.shards import index_path
from pipeline.selection.buckets import bucket_names
from pipeline.sources.source_sandbox import is_local
from pipeline.storage.store import Store
from pipeline.tables.published import open_published

HEIGHTS = (360, 240)  # pixels of the short side of a preview
PREVIEW = PackOptions(heights=HEIGHTS)
CACHED_PREVIEWS = 256  # largest number of encoded previews in memory, some 300 kB each
CACHED_INDEXES = 256  # largest number of shard indexes in memory
TYPES = {"mp4": "video/mp4", "jpg": "image/jpeg"}
NEEDED = (  # columns of a clip's row that `Media` reads
    *("clip_id", "source_uri", "start", "end", "start_pts", "end_pts", "time_base", "frames", "width", "height"),
    *("crop_x", "crop_y", "crop_w", "crop_h", "shard"),
)


class NoMedia(Exception):
    """A clip that cannot be played; the message gives the reason."""


class Media:
    """Finds or encodes the media of clips. Safe for use from several threads."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._recipe = store, recipe
        self._index = functools.lru_cache(CACHED_INDEXES)(self._read_index)
        self._preview = functools.lru_cache(CACHED_PREVIEWS)(self._encode)
        self._encoder: ClipEncoder | None = None
        self._encoding = threading.Lock()

    def read(self, row: Mapping[str, Any]) -> tuple[str, bytes]:
        """Return the type and the bytes of a clip's media; `row` has the columns NEEDED. Raises NoMedia or OSError."""
        if not row["shard"]:
            data = self._preview(tuple((name, row[name]) for name in NEEDED))
            return TYPES["jpg" if row["frames"] == 1 else "mp4"], data
        place = self._index(row["shard"]).get(row["clip_id"])
        if place is None:
            raise NoMedia(f"{row['shard']} does not contain the clip")
        media, offset, size = place
        with open_published(self._store, row["shard"]) as file:
            file.seek(offset)
            return TYPES[media], file.read(size)

    def close(self) -> None:
        """Wait for the current encode and end the child process."""
        with self._encoding:
            if self._encoder is not None:
                self._encoder.close()

    def _read_index(self, shard: str) -> dict[str, tuple[str, int, int]]:
        """Return the media, offset and size of each clip of a shard."""
        with open_published(self._store, str(index_path(Path(shard)))) as file:
            rows = pq.read_table(file, columns=["key", "media", "media_offset", "media_size"])
        columns = (column.to_pylist() for column in rows.columns)
        return {key: (media, offset, size) for key, media, offset, size in zip(*columns, strict=True)}

    def _encode(self, items: tuple[tuple[str, Any], ...]) -> bytes:
        """Encode a clip, the `items` of its row, at preview size in a child process without network access; one clip at
        a time."""
        row = dict(items)
        if not is_local(row["source_uri"]):
            raise NoMedia("its source is not on this machine: only its sampled frames can be shown")
        still = np.array([row["frames"] == 1])
        bucket = bucket_names(np.array([row["crop_w"]]), np.array([row["crop_h"]]), still, HEIGHTS)[0].as_py()
        if bucket is None:
            raise NoMedia("its frames are too small to encode")
        with self._encoding:
            if self._encoder is None:
                self._encoder = ClipEncoder(self._recipe.scan, self._recipe.sources)
            ((_, answer),) = self._encoder.encode_all([{**row, "bucket": bucket}], PREVIEW)
            self._encoder.errors.clear()
        if isinstance(answer, str):
            raise NoMedia(answer)
        return answer.data
