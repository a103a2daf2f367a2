"""Similarity search: the embeddings of clips as matrices, which are compared with a text or with pictures.

The matrices are float16 files in the user's cache folder, written by a thread when first needed, and mapped into
memory. A million clips of 384 dimensions take 0.8 GB on disk and under a second to compare with one vector.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
from pipeline.storage.store import Store, atomic
from pipeline.tables.fragments import DONE, fingerprint

BATCH = 8192  # clips read at once
COMPARED = 2048  # clips compared at once: their single-precision copy fits into a cache of the processor
PATIENCE = 1.0  # seconds that a search waits for its matrix before it reports progress


class SearchError(ValueError):
    """A search that is not possible; the message gives the reason."""


class NotReady(Exception):
    """A search whose matrix is still being written; the message gives the progress. Try again."""


class Vectors:
    """The embeddings of a dataset's clips, in the order of `catalog`. Safe for use from several threads.

    `version` changes with the tables; `embedded_by` is the fingerprint of the embed pass that wrote the embeddings of
    frames. The matrix `semantic` is the mean of a clip's unit-norm frame embeddings in the space shared with texts: its
    product with a text is the mean cosine, as in `similarity_clip`. `appearance` is the unit-norm mean appearance
    embedding.
    """

    def __init__(self, store: Store, catalog: Catalog, recipe: Recipe, version: str, embedded_by: str) -> None:
        self._store, self._catalog, self._recipe, self._embedded_by = store, catalog, recipe, embedded_by
        self._folder = cache_folder() / fingerprint(store.uri)
        self._version = version
        self._matrices: dict[str, Future[np.ndarray]] = {}
        self._written: dict[str, int] = {}  # matrix -> number of clips whose embedding has been read
        self._pool = ThreadPoolExecutor(1)
        self._closed = False
        self._lock, self._encoding = Lock(), Lock()

    def close(self) -> None:
        """Stop writing matrices."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)

    def prepare(self) -> None:
        """Load the encoder and begin to write the matrix of text searches. Raises SearchError as `encoder` does."""
        self._matrix("semantic")
        self.encoder()

    def encoder(self) -> TextVideoEncoder:
        """Return the recipe's encoder. Raises SearchError if its weights are not on this machine."""
        options = self._recipe.encoder
        try:
            return load_encoder(options.name, options.model, options.pretrained)
        except RuntimeError as error:
            raise SearchError(str(error)) from error

    def of_text(self, text: str) -> np.ndarray:
        """Return the similarity of every clip to `text`, (clips,) float32, NaN for a clip without an embedding.

        Raises SearchError if the dataset does not store frame embeddings of the recipe's encoder, and NotReady.
        """
        embeddings = self._ready("semantic")
        with self._encoding:
            return _compare(embeddings, self.encoder().texts([text]))

    def of_pictures(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return the similarity of every clip to the most similar of `pictures`, (h, w, 3) uint8 RGB each.

        The result is (clips,) float32. Raises SearchError if the dataset has no embeddings, and NotReady.
        """
        embeddings = self._ready("appearance")
        with self._encoding:
            return _compare(embeddings, self.encoder().look(pictures).appearance)

    def of_clip(self, row: int) -> np.ndarray:
        """Return the similarity of every clip to clip `row`, (clips,) float32. Raises SearchError if that clip has no
        embedding, and NotReady."""
        embeddings = self._ready("appearance")
        if not np.isfinite(embeddings[row]).all():
            raise SearchError("this clip has no embedding: a filter rejected it before the embed pass")
        return _compare(embeddings, np.asarray(embeddings[row : row + 1], np.float32))

    def _matrix(self, name: str) -> Future[np.ndarray]:
        """Return the matrix of that name, which a thread opens or writes; one that could not be is tried again."""
        with self._lock:
            matrix = self._matrices.get(name)
            if matrix is None or (matrix.done() and matrix.exception()):
                matrix = self._matrices[name] = self._pool.submit(self._opened, name)
            return matrix

    def _ready(self, name: str) -> np.ndarray:
        matrix = self._matrix(name)
        wait([matrix], PATIENCE)
        if not matrix.done():
            share = self._written.get(name, 0) / max(1, len(self._catalog))
            raise NotReady(f"reading the embeddings of the clips, {share:.0%}")
        return matrix.result()

    def _opened(self, name: str) -> np.ndarray:
        path = self._folder / f"{self._version}-{name}.npy"
        if not path.exists():
            self._write(path, self._counted(name))
        return np.asarray(np.load(path, mmap_mode="c"))

    def _counted(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self._written[name] = 0
        for rows, values in self._semantic_parts() if name == "semantic" else self._appearance_parts():
            if self._closed:
                raise SearchError("the explorer has ended, or the dataset was built again")
            self._written[name] += len(rows)
            yield rows, values

    def _write(self, path: Path, parts: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
        """Write a matrix from pairs of row numbers, (k,) int64, and values, (k, d) float."""
        first = next(parts, None)
        if first is None:
            raise SearchError("the dataset has no embeddings of this encoder: build it again to enable search")
        if path.parent.is_dir():  # delete the matrices of earlier builds
            for old in path.parent.glob("*.npy"):
                if not old.name.startswith(self._version):
                    old.unlink(missing_ok=True)
        shape = (len(self._catalog), first[1].shape[1])
        with atomic(path) as temporary:
            out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            missing = np.ones(shape[0], bool)
            for rows, values in itertools.chain([first], parts):
                out[rows], missing[rows] = values, False
            out[missing] = np.nan
            out.flush()
            del out

    def _appearance_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not self._catalog.has_embeddings:
            return
        for path, first in self._catalog.files:
            row = first
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH, columns=["embedding"]):
                    values = matrix(batch.column(0))
                    if values is not None:
                        yield np.arange(row, row + len(batch)), values
                    row += len(batch)

    def _semantic_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows and means of the frame embeddings in `state/embed` that have the fingerprint `embedded_by`."""
        width = 0
        for name in self._store.list("state/embed", ".parquet"):
            with self._store.open(name) as opened, pq.ParquetFile(opened) as file:
                done = json.loads((file.metadata.metadata or {}).get(DONE, b"{}"))
                if done.get("fingerprint") != self._embedded_by:
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
    """Return the user's cache folder, for files that can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipmill" / "explore"


def _means(clips: Sequence[bytes], width: int) -> np.ndarray:
    """Return the mean of each clip's unit-norm frame vectors, (n, width) float32.

    `clips` holds the bytes of a (k, width) float16 array for each clip.
    """
    if not clips:
        return np.zeros((0, width), np.float32)
    frames = np.frombuffer(b"".join(clips), np.float16).reshape(-1, width).astype(np.float32)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True).clip(1e-9)
    counts = np.array([len(data) // (2 * width) for data in clips])
    if (counts == counts[0]).all():
        return np.asarray(frames.reshape(len(clips), -1, width).mean(axis=1))
    return np.asarray(np.add.reduceat(frames, np.cumsum([0, *counts[:-1]])) / counts[:, None], np.float32)


def _compare(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the largest product of each row of `matrix` with any of `vectors`, (n,) float32.

    `matrix` is (n, d) float16, `vectors` (k, d) float32 with rows of unit norm.
    """
    best = np.empty(len(matrix), np.float32)
    for first in range(0, len(matrix), COMPARED):
        rows = matrix[first : first + COMPARED].astype(np.float32)
        best[first : first + COMPARED] = (rows @ vectors.T).max(axis=1)
    return best
