"""Embeddings of clips as matrices, which are compared with a text or a picture.

The matrices are half-precision files in the user's cache folder, mapped into memory: a million clips of 384 dimensions
are 0.8 GB on disk and take a fraction of a second to compare with one vector. They are written when first needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filters.encoders.base import TextVideoEncoder, load_encoder
from pipeline.config.recipe import Recipe
from pipeline.explore.catalog import Catalog
from pipeline.selection.duplicates import matrix
from pipeline.state import fingerprints
from pipeline.storage.store import Store, atomic
from pipeline.tables.fragments import DONE, fingerprint

BATCH = 8192  # clips read at once


class SearchError(ValueError):
    """A search that is not possible; the message says why."""


class Vectors:
    """The embeddings of the clips of a dataset, in the order of `catalog`. May be used from several threads.

    `semantic` is the mean over a clip's frames of what the encoder compares with texts, so that its product with a text
    is the mean cosine, as in `similarity_clip`. `appearance` is the mean appearance of the frames, of unit norm.
    """

    def __init__(self, store: Store, catalog: Catalog, recipe: Recipe, version: str) -> None:
        self._store, self._catalog, self._recipe = store, catalog, recipe
        self._folder = cache_folder() / fingerprint(store.uri)
        self._version = version
        self._matrices: dict[str, np.ndarray] = {}
        self._lock = Lock()

    def encoder(self) -> TextVideoEncoder:
        """Return the recipe's encoder. Raises SearchError where its weights are not on this machine."""
        options = self._recipe.encoder
        try:
            return load_encoder(options.name, options.model, options.pretrained)
        except RuntimeError as error:
            raise SearchError(str(error)) from error

    def of_text(self, text: str) -> np.ndarray:
        """Return the similarity of every clip to `text`, (clips,) float32, NaN where there is no embedding. Raises
        SearchError where the dataset does not keep what that needs."""
        embeddings = self._matrix("semantic")
        with self._lock:
            return _compare(embeddings, self.encoder().texts([text]))

    def of_pictures(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return the similarity of every clip to the picture that it resembles most; pictures are (h, w, 3) uint8 RGB.
        Raises SearchError where the dataset has no embeddings."""
        embeddings = self._matrix("appearance")
        with self._lock:
            return _compare(embeddings, self.encoder().look(pictures).appearance)

    def of_clip(self, row: int) -> np.ndarray:
        """Return the similarity of every clip to that of `row`. Raises SearchError where it has no embedding."""
        embeddings = self._matrix("appearance")
        if not np.isfinite(embeddings[row]).all():
            raise SearchError("this clip has no embedding: a cheap filter rejected it before")
        return _compare(embeddings, np.asarray(embeddings[row : row + 1], np.float32))

    def _matrix(self, name: str) -> np.ndarray:
        with self._lock:
            if name not in self._matrices:
                path = self._folder / f"{self._version}-{name}.npy"
                if not path.exists():
                    self._write(path, self._semantic_parts() if name == "semantic" else self._appearance_parts())
                self._matrices[name] = np.load(path, mmap_mode="c")
            return self._matrices[name]

    def _write(self, path: Path, parts: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
        """Write a matrix from pieces: row numbers (k,), and (k, d) values."""
        first = next(parts, None)
        if first is None:
            raise SearchError("the dataset has no embeddings of this encoder: search needs those that a build keeps")
        if path.parent.is_dir():  # of the dataset as it was before
            for old in path.parent.glob("*.npy"):
                if not old.name.startswith(self._version):
                    old.unlink(missing_ok=True)
        shape = (len(self._catalog), first[1].shape[1])
        with atomic(path) as temporary:
            out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            for begin in range(0, shape[0], BATCH):
                out[begin : begin + BATCH] = np.nan
            rows, values = first
            out[rows] = values
            for rows, values in parts:
                out[rows] = values
            out.flush()
            del out

    def _appearance_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not self._catalog.has_embeddings:
            return
        for path, first in self._catalog.files:
            at = first
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH, columns=["embedding"]):
                    values = matrix(batch.column(0))
                    if values is not None:
                        yield np.arange(at, at + len(batch)), values
                    at += len(batch)

    def _semantic_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read what the embed pass keeps of every frame: `state/embed`, of the recipe's own fingerprint."""
        width, wanted = 0, fingerprints.embed_fingerprint(self._recipe)
        for name in self._store.list("state/embed", ".parquet"):
            with self._store.open(name) as opened, pq.ParquetFile(opened) as file:
                done = json.loads((file.metadata.metadata or {}).get(DONE, b"{}"))
                if done.get("fingerprint") != wanted:
                    continue
                for batch in file.iter_batches(BATCH, columns=["clip_id", "frame_embeddings"]):
                    table = pa.Table.from_batches([batch]).drop_null()
                    table = table.filter(pc.greater(pc.binary_length(table["frame_embeddings"]), 0))
                    width = width or self.encoder().dim
                    rows = self._catalog.rows_of_column(table["clip_id"])
                    means = _means(table["frame_embeddings"].to_pylist(), width)
                    if (rows >= 0).any():
                        yield rows[rows >= 0], means[rows >= 0]


def cache_folder() -> Path:
    """Return the folder for files that can be made again, of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipmill" / "explore"


def _means(clips: Sequence[bytes], width: int) -> np.ndarray:
    """Return for each clip the mean of its frames' unit vectors, (n, width) float32; a clip is k * width float16."""
    if not clips:
        return np.zeros((0, width), np.float32)
    frames = np.frombuffer(b"".join(clips), np.float16).reshape(-1, width).astype(np.float32)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True).clip(1e-9)
    counts = np.array([len(data) // (2 * width) for data in clips])
    return np.asarray(np.add.reduceat(frames, np.cumsum([0, *counts[:-1]])) / counts[:, None], np.float32)


def _compare(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(n, d) float16 and (k, d) float32 unit rows -> (n,) float32: the largest of the k products of each row."""
    import torch  # its product in half precision is ten times as fast as NumPy's

    rows, best = torch.from_numpy(matrix), None
    for vector in torch.from_numpy(np.ascontiguousarray(vectors, np.float32)).half():
        products = (rows @ vector).float()
        best = products if best is None else torch.maximum(best, products)
    assert best is not None, "there is nothing to compare with"
    return best.numpy()
