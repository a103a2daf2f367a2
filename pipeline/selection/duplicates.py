"""Duplicates over a whole corpus: clips that show the same pictures, detected without comparing all pairs.

Two signals. A perceptual hash of each sampled frame survives scaling, re-encoding and mirroring; a clip's mean
embedding survives crops and overlays. Either yields candidate pairs: entries are sorted by a prefix of their hash (or
of the signs of random projections of the embedding, Charikar 2002) and only neighbours in that order are compared,
several times with different prefixes. So the cost grows like that of a sort, even if thousands of clips share one title
card.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

HASH_TURNS = (0, 16, 32, 48)  # bits by which a hash is rotated before its prefix is taken
EMBEDDING_TURNS = (0, 8, 16, 24, 32, 40, 48, 56)  # bits, the same for the signs of projections
NEIGHBOURS = 4  # entries of the same prefix that an entry is compared with
FLAT = 4.0  # standard deviation of grey levels below which a picture has no usable hash
CROPPED_BITS = 16  # of 64 that may differ between a frame and its crop, if the embeddings are very similar
SHARE = 0.5  # share of frames that must match if there is no embedding
CHUNK = 1 << 18  # pairs compared at a time
VECTORS = 1 << 15  # embeddings in memory at a time


def frame_hashes(frames: Sequence[np.ndarray]) -> list[int]:
    """Return a 64-bit perceptual hash of each (h, w, 3) uint8 RGB frame; 0 for a flat one, which matches nothing.

    The hash holds the signs of the 64 lowest frequencies of a 32x32 DCT without the mean (pHash by Zauner 2010 compares
    with the median instead). Mirroring negates the odd horizontal coefficients; the signs of all of these are first
    flipped so that the largest is positive, which gives a picture and its mirror image the same hash.
    """
    return [_frame_hash(frame) for frame in frames]


def _frame_hash(rgb: np.ndarray) -> int:
    small = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    if small.std() < FLAT:
        return 0
    spectrum = cv2.dct(small.astype(np.float32))
    low = spectrum[:8, :8].copy()
    low[0, 0] = spectrum[8, 0]  # in place of the mean
    odd = low[:, 1::2].ravel()
    if odd[np.abs(odd).argmax()] < 0:
        low[:, 1::2] *= -1
    return int(np.packbits(low.ravel() > 0).view(">u8")[0])


@dataclass(frozen=True)
class Vectors:
    """`rows` of a (m, width) float32 array in a file; indexed like an array by positions in `rows`."""

    file: IO[bytes]
    width: int
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: np.ndarray | slice) -> np.ndarray:
        rows = self.rows[which]
        vectors = np.empty((len(rows), self.width), np.float32)
        edges = np.flatnonzero(np.diff(rows, prepend=-2, append=-2) != 1).tolist()  # runs of rows read in one call
        for first, end in itertools.pairwise(edges):
            os.preadv(self.file.fileno(), [vectors[first:end].data], int(rows[first]) * vectors.strides[0])
        return vectors


Embeddings = Callable[[np.ndarray], np.ndarray | Vectors]  # row numbers of a clips table -> their embeddings


@dataclass(frozen=True)
class Pictures:
    """Hashes and embeddings of n clips: the hashes of clip i are `hashes[offsets[i]:offsets[i + 1]]` (uint64),
    `embedding` is (n, d) float of any scale, or None; a row of NaN or zeros means none. `shot` is (n,) int64: clips
    with the same number are parts of one shot, naturally similar, and never compared."""

    hashes: np.ndarray
    offsets: np.ndarray
    embedding: np.ndarray | Vectors | None
    shot: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1


def near_pairs(pictures: Pictures, similarity: float, bits: int) -> np.ndarray:
    """Return (m, 2) int64 pairs of clips that are duplicates, i < j, sorted.

    Two clips are duplicates in one of these cases:
    - both have embeddings with a cosine of at least `similarity`, and a frame of one is within `bits` of the other's;
    - both have embeddings with a cosine of at least (1 + `similarity`) / 2, and two frames are within CROPPED_BITS;
    - both have embeddings with a cosine of at least `similarity`, and neither has a hash;
    - one has no embedding, and SHARE of the frames of the clip with fewer hashes are within `bits`.
    """
    n = len(pictures)
    if n < 2:
        return np.zeros((0, 2), np.int64)
    codes = np.zeros(0, np.uint64)
    for candidates in itertools.chain(_hash_candidates(pictures), _embedding_candidates(pictures.embedding)):
        codes = np.union1d(codes, candidates)
    pairs = np.stack([codes // np.uint64(n), codes % np.uint64(n)], axis=1).astype(np.int64)
    pairs = pairs[pictures.shot[pairs[:, 0]] != pictures.shot[pairs[:, 1]]]
    same = [_same(pictures, pairs[i : i + CHUNK], similarity, bits) for i in range(0, len(pairs), CHUNK)]
    return pairs[np.concatenate(same)] if same else pairs


def equal_pairs(words: np.ndarray) -> np.ndarray:
    """Return (m, 2) int64 pairs that link all equal rows of `words` ((n,) uint64)."""
    order = np.argsort(words, kind="stable")
    at = np.flatnonzero(words[order[1:]] == words[order[:-1]])
    return np.sort(np.stack([order[at], order[at + 1]], axis=1), axis=1)


def groups(pairs: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return the keeper of each clip, (n,) int64: of the clips connected to it by `pairs` the one with the smallest
    `rank` ((n,), distinct numbers); a clip in no pair keeps itself."""
    keeper = np.arange(len(rank))
    if not len(pairs):
        return keeper
    nodes = np.unique(pairs)
    nodes = nodes[np.argsort(rank[nodes])]  # best first: the smallest label of a group is its keeper
    position = np.full(len(rank), -1)
    position[nodes] = np.arange(len(nodes))
    a, b = position[pairs[:, 0]], position[pairs[:, 1]]
    labels = np.arange(len(nodes))
    while True:
        least = np.minimum(labels[a], labels[b])
        if (labels[a] == least).all() and (labels[b] == least).all():
            break
        np.minimum.at(labels, labels[a], least)
        np.minimum.at(labels, labels[b], least)
        while (labels[labels] != labels).any():
            labels = labels[labels]
    keeper[nodes] = nodes[labels]
    return keeper


def _hash_candidates(pictures: Pictures) -> Iterator[np.ndarray]:
    hashed = np.flatnonzero(pictures.hashes)
    owners = np.repeat(np.arange(len(pictures), dtype=np.int32), np.diff(pictures.offsets))[hashed]
    for turn in HASH_TURNS:
        yield _neighbours(_turned(pictures.hashes[hashed], turn), owners, len(pictures))


def _embedding_candidates(embedding: np.ndarray | Vectors | None) -> Iterator[np.ndarray]:
    """Yield neighbours by the signs of 64 random projections of the embedding minus the corpus's mean: embeddings of
    one encoder lie in a narrow cone, so without centring all would have the same signs."""
    if embedding is None:
        return
    n = len(embedding)
    sample = embedding[slice(0, n, n // VECTORS + 1)]
    sample = _unit(sample[_present(sample)])
    centre = sample.mean(axis=0) if len(sample) else 0
    normals = np.random.default_rng(0).standard_normal((sample.shape[1], 64)).astype(np.float32)
    signs, owners = [], []
    for i in range(0, n, VECTORS):
        block = embedding[slice(i, i + VECTORS)]
        present = _present(block)
        owners.append((i + np.flatnonzero(present)).astype(np.int32))
        signs.append(np.packbits((_unit(block[present]) - centre) @ normals > 0, axis=1).view(np.uint64)[:, 0])
    for turn in EMBEDDING_TURNS:
        yield _neighbours(_turned(np.concatenate(signs), turn), np.concatenate(owners), n)


def _neighbours(keys: np.ndarray, owners: np.ndarray, n: int) -> np.ndarray:
    """Return pairs of owners whose keys share a prefix and are close in sorted order: (m,) uint64, i * n + j, i < j.

    A prefix has four bits more than the entry numbers need, so that few pairs match by chance. Sorting prefixes with
    the entry's number in the free low bits is several times faster than an argsort.
    """
    if len(keys) < 2:
        return np.zeros(0, np.uint64)
    low = np.uint64(max(64 - (len(keys).bit_length() + 4), len(keys).bit_length()))
    mask = (np.uint64(1) << low) - np.uint64(1)
    packed = (keys & ~mask) | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    prefix = packed >> low
    who = owners[packed & mask]
    repeated = np.zeros(len(who), bool)  # the same clip again; else a static clip would only neighbour itself
    repeated[1:] = (prefix[1:] == prefix[:-1]) & (who[1:] == who[:-1])
    if repeated.any():
        prefix, who = prefix[~repeated], who[~repeated]
    pairs = []
    for distance in range(1, NEIGHBOURS + 1):
        at = np.flatnonzero(prefix[distance:] == prefix[:-distance])
        a, b = who[at].astype(np.uint64), who[at + distance].astype(np.uint64)
        pairs.append(np.minimum(a, b) * np.uint64(n) + np.maximum(a, b))
    return np.concatenate(pairs)


def _same(pictures: Pictures, pairs: np.ndarray, similarity: float, bits: int) -> np.ndarray:
    """Return (m,) bool: which candidates are duplicates, by the rule of `near_pairs`."""
    a, b = (_padded(pictures, pairs[:, side]) for side in (0, 1))
    apart = np.bitwise_count(a[:, :, None] ^ b[:, None, :])
    apart[(a == 0)[:, :, None] | (b == 0)[:, None, :]] = 64
    near = apart <= bits
    fewer = np.minimum((a != 0).sum(axis=1), (b != 0).sum(axis=1))
    matched = np.minimum(near.any(axis=2).sum(axis=1), near.any(axis=1).sum(axis=1))
    by_hash = (matched >= np.maximum(1, SHARE * fewer)) & (fewer > 0)
    if pictures.embedding is None:
        return by_hash
    no_hashes = ~((a != 0).any(axis=1) | (b != 0).any(axis=1))
    usual = (matched > 0) | no_hashes
    compared = np.flatnonzero(usual | (apart <= CROPPED_BITS).any(axis=(1, 2)))
    least = np.where(usual, similarity, (1 + similarity) / 2)
    same = by_hash
    for i in range(0, len(compared), VECTORS):
        block = compared[i : i + VECTORS]
        first, second = (pictures.embedding[pairs[block, side]] for side in (0, 1))
        both = _present(first) & _present(second)
        with np.errstate(invalid="ignore", divide="ignore"):
            alike = (_unit(first) * _unit(second)).sum(axis=1) >= least[block]
        same[block] = np.where(both, alike, by_hash[block])
    return same


def _padded(pictures: Pictures, clips: np.ndarray) -> np.ndarray:
    """Return the hashes of each clip, padded with 0: (m, k) uint64."""
    starts, counts = pictures.offsets[clips], np.diff(pictures.offsets)[clips]
    column = np.arange(max(1, counts.max(initial=0)))
    inside = column < counts[:, None]
    return np.where(inside, pictures.hashes[np.where(inside, starts[:, None] + column, 0)], np.uint64(0))


def _turned(keys: np.ndarray, bits: int) -> np.ndarray:
    return (keys << np.uint64(bits)) | (keys >> np.uint64(64 - bits)) if bits else keys


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _present(embedding: np.ndarray) -> np.ndarray:
    return np.isfinite(embedding).all(axis=1) & (embedding != 0).any(axis=1)


def pictures(clips: pa.Table, rows: np.ndarray, embeddings: Embeddings | None) -> Pictures:
    """Return the input of near_pairs for `rows` ((m,) int64, rising) of a clips table: `phash` (list of 64-bit
    integers) if there is such a column, and the rows' `embeddings`."""
    chosen = np.zeros(len(clips), bool)
    chosen[rows] = True  # filter, not take: take would first concatenate all chunks of the table
    columns = clips.select([c for c in ("phash", "source_id", "shot_index") if c in clips.column_names])
    columns = columns.filter(pa.array(chosen))
    hashes, offsets = np.zeros(0, np.uint64), np.zeros(len(rows) + 1, np.int64)
    if "phash" in columns.column_names and len(rows):
        offsets[1:] = np.cumsum(pc.fill_null(pc.list_value_length(columns["phash"]), 0).to_numpy())
        lists = [pc.list_flatten(chunk).to_numpy(zero_copy_only=False) for chunk in columns["phash"].chunks]
        hashes = np.concatenate(lists).astype(np.int64, copy=False).view(np.uint64)
    source = columns["source_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    shot = source * (1 << 32) + pc.fill_null(columns["shot_index"], 0).to_numpy()
    return Pictures(hashes, offsets, embeddings and embeddings(rows), shot)


def embeddings_of(clips: pa.Table) -> Embeddings | None:
    """Return a function of row numbers over the column `embedding`: rows that are null or shorter than the longest are
    NaN. None if there is no such column or no value in it."""
    if "embedding" not in clips.column_names:
        return None
    values = matrix(clips["embedding"].combine_chunks())
    return None if values is None else values.__getitem__


def matrix(column: pa.Array) -> np.ndarray | None:
    """Return lists of numbers as (n, d), with NaN rows for lists shorter than the longest; None if all are empty."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    width = int(lengths.max(initial=0))
    if not width:
        return None
    flat = pc.list_flatten(column).to_numpy(zero_copy_only=False)
    full = lengths == width
    if full.all():
        return flat.reshape(-1, width)
    result = np.full((len(column), width), np.nan, np.float32)
    result[full] = flat[np.repeat(full, lengths)].reshape(-1, width)
    return result
