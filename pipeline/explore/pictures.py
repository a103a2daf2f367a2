"""Still pictures of clips, from the frames that the scan pass sampled."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import pyarrow.parquet as pq

from pipeline.explore.catalog import Catalog
from pipeline.report.clips import film_strip
from pipeline.storage.store import Store
from pipeline.tables.fragments import Fragment, frames_of, read_sampled_frames

THUMBNAIL = 360  # pixels of the longer side
QUALITY = 80  # JPEG quality of thumbnails, 1..100
THUMBNAILS, STRIPS = 4096, 512  # cached at most: some 10 kB and 60 kB each
LARGEST = 64 << 20  # bytes of an uploaded picture


class Pictures:
    """Thumbnails and film strips of clips. Safe for use from several threads."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._store, self._catalog = store, catalog
        self.thumbnail = functools.lru_cache(THUMBNAILS)(self._thumbnail)
        self.strip = functools.lru_cache(STRIPS)(self._strip)

    def _strip(self, row: int, clip_id: str) -> bytes:
        """Return a JPEG of several frames side by side, empty if no frame was sampled."""
        return (film_strip(self._frames(row, clip_id)) or (b"", 0, 0.0))[0]

    def _thumbnail(self, row: int, clip_id: str) -> bytes:
        """Return a JPEG of the clip's middle frame, empty if no frame was sampled."""
        jpegs = self._frames(row, clip_id)
        if not jpegs:
            return b""
        picture = cv2.imdecode(np.frombuffer(jpegs[len(jpegs) // 2], np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            return b""
        scale = min(1.0, THUMBNAIL / max(picture.shape[:2]))
        size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])

    def _frames(self, row: int, clip_id: str) -> list[bytes]:
        """Return the sampled frames of a clip as JPEGs, ordered by time."""
        unit = self._unit(row)
        if unit is None:
            return []
        try:
            with self._store.open(frames_of(unit)) as opened, pq.ParquetFile(opened) as file:
                table = read_sampled_frames(file, [clip_id]).sort_by("time")
        except FileNotFoundError:  # deleted by a concurrent build
            return []
        return list(table["jpeg"].to_pylist())

    def _unit(self, row: int) -> str | None:
        """Return the name of the scan unit that stores the clip's frames, None if there is none."""
        codes, names = self._units
        return names[codes[row]] if codes[row] >= 0 else None

    @functools.cached_property
    def _units(self) -> tuple[np.ndarray, list[str]]:
        """Return the number of each clip's scan unit, (clips,) int32, -1 for none, and the names of the units."""
        codes, names = np.full(len(self._catalog), -1, np.int32), dict[str, int]()
        for name in self._store.list("state/scan", ".parquet"):
            table = Fragment(name, {}).rows(self._store, ["clip_id", "unit"])
            units = table["unit"].combine_chunks().dictionary_encode()
            numbers = [names.setdefault(unit, len(names)) for unit in units.dictionary.to_pylist()]
            rows = np.asarray(self._catalog.rows_of_column(table["clip_id"]))
            present = rows >= 0
            codes[rows[present]] = np.asarray(numbers, np.int32)[units.indices.to_numpy()][present]
        return codes, list(names)


def decode_picture(data: bytes) -> np.ndarray:
    """Decode a picture to (h, w, 3) uint8 RGB. Raises ValueError if it is not a picture or larger than LARGEST."""
    if len(data) > LARGEST:
        raise ValueError(f"larger than {LARGEST >> 20} MB")
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if bgr is None:
        raise ValueError("not a picture that can be decoded")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
