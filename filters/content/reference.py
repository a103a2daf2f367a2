"""Similarity to reference pictures, to select clips by example.

Pictures are compared by their appearance embeddings, as for duplicates: content, colours and style all count.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown
from filters.encoders.base import Declared, TextVideoEncoder, usable
from pipeline.storage.store import Store

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MOST = 1000  # largest number of pictures in a folder


class Reference:
    """Similarity to the pictures in `folder`, a local folder or a URL of an object store. Columns, cosines in -1..1 of
    the recipe's encoder:

    - `reference_mean`: cosine of each frame with its most similar picture, mean over frames;
    - `reference_max`: the same, maximum over frames.

    Scores of different encoders are not comparable: look at the percentiles of your own clips before setting a
    threshold. `digest`, which the build sets, is a fingerprint of the pictures, so that changed pictures change the
    options. The first call of `score` raises ValueError if the folder's pictures do not match it.
    """

    name = "reference"
    version = 1
    needs = frozenset({Track.EMBEDDING})

    def __init__(self, encoder: TextVideoEncoder | Declared, folder: str = "", digest: str = ""):
        self.columns: Mapping[str, pa.DataType] = (
            {"reference_mean": pa.float32(), "reference_max": pa.float32()} if folder else {}
        )
        self.encoder, self.folder, self.digest = encoder, folder, digest

    @functools.cached_property
    def appearances(self) -> np.ndarray:
        """The appearance embeddings of the pictures, (pictures, a) float32, rows of unit norm."""
        assert not isinstance(self.encoder, Declared), "scores need a loaded encoder"
        if self.digest and pictures_digest(self.folder) != self.digest:
            raise ValueError(f"filters.reference.folder: {self.folder} has other pictures here than where the build is")
        pictures = list(read_pictures(self.folder).values())
        return np.concatenate([self.encoder.look([picture]).appearance for picture in pictures])

    def score(self, clip: ClipView) -> dict[str, Score]:
        if not self.columns:
            return {}
        if not usable(clip.appearance):
            return unknown(self, "no usable embedding")
        nearest = (clip.appearance @ self.appearances.T).max(axis=1)  # (k,)
        return {"reference_mean": float(nearest.mean()), "reference_max": float(nearest.max())}


def read_pictures(folder: str) -> dict[str, np.ndarray]:
    """Return the pictures of a folder by name, (h, w, 3) uint8 RGB each. Raises ValueError if there are none or more
    than MOST, or one cannot be decoded."""
    pictures = {}
    for name, data in _files(folder).items():
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if bgr is None:
            raise ValueError(f"{folder}: {name} is not a picture that can be decoded")
        pictures[name] = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return pictures


def pictures_digest(folder: str) -> str:
    """Return 16 hex digits: a hash of a folder's pictures, independent of their names. Raises ValueError if there are
    none or more than MOST."""
    digests = sorted(hashlib.sha256(data).digest() for data in _files(folder).values())
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _files(folder: str) -> dict[str, bytes]:
    store = Store(folder)
    names = [name for name in store.list("") if name.lower().endswith(ENDINGS)]
    if not names:
        raise ValueError(f"{folder}: there is no folder with pictures ({', '.join(ENDINGS)})")
    if len(names) > MOST:
        raise ValueError(f"{folder}: more than {MOST} pictures")
    return {name: data for name in names if (data := store.read(name))}
