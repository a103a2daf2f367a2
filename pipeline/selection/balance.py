"""Balance: clusters of similar clips by their embeddings, so that common content does not outnumber rare content."""

from __future__ import annotations

import numpy as np

from pipeline.selection.duplicates import Vectors

SAMPLE = 64  # clips per cluster that the centres are fitted on
ROUNDS = 20  # iterations of k-means at most
CHUNK = 1 << 14  # rows compared with the centres at a time


def clusters(embedding: np.ndarray | Vectors, count: int) -> np.ndarray:
    """Return the cluster of each row of `embedding` ((n, d) float, unit rows): (n,) int32, -1 if the row is not finite.

    Spherical k-means (Dhillon and Modha 2001), started from distinct random rows and fitted on a sample, so that the
    cost of fitting does not grow with n. The same rows in the same order always get the same clusters.
    """
    blocks = [slice(i, i + CHUNK) for i in range(0, len(embedding), CHUNK)]
    finite = [np.isfinite(embedding[block]).all(axis=1) for block in blocks]
    finite_rows = np.flatnonzero(np.concatenate([*finite, np.zeros(0, bool)]))
    labels = np.full(len(embedding), -1, np.int32)
    if not len(finite_rows):
        return labels
    generator = np.random.default_rng(0)
    sample = embedding[np.sort(generator.permutation(finite_rows)[: count * SAMPLE])].astype(np.float32)
    distinct = np.unique(sample, axis=0)
    centres = distinct[generator.permutation(len(distinct))[:count]]
    for _ in range(ROUNDS):
        nearest = _nearest(sample, centres)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, sample)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        moved = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres)
        if np.allclose(moved, centres, atol=1e-6):
            break
        centres = moved
    for i in range(0, len(finite_rows), CHUNK):
        labels[finite_rows[i : i + CHUNK]] = _nearest(embedding[finite_rows[i : i + CHUNK]].astype(np.float32), centres)
    return labels


def weights(labels: np.ndarray) -> np.ndarray:
    """Return (n,) float32 sampling weights with mean 1: 1 / sqrt(size of the clip's cluster), as word2vec
    subsamples frequent words (Mikolov et al. 2013); 1 for clips in no cluster."""
    result = np.ones(len(labels), np.float32)
    inside = labels >= 0
    if inside.any():
        sizes = np.bincount(labels[inside])
        result[inside] = 1 / np.sqrt(sizes[labels[inside]])
        result[inside] /= result[inside].mean()
    return result


def over_cap(labels: np.ndarray, rank: np.ndarray, cap: int) -> np.ndarray:
    """Return (n,) bool: the clips to drop so that a cluster keeps at most `cap`, those with the smallest `rank`."""
    by_cluster = np.lexsort((rank, labels))
    sorted_labels = labels[by_cluster]
    starts = np.searchsorted(sorted_labels, sorted_labels)
    over = np.zeros(len(labels), bool)
    over[by_cluster] = (np.arange(len(labels)) - starts >= cap) & (sorted_labels >= 0)
    return over


def distribution(labels: np.ndarray, weight: np.ndarray | None = None) -> dict[str, float]:
    """Return statistics of the clusters, in which each clip counts with its `weight`: their number, the largest share,
    and the evenness (entropy of the shares over its maximum, 1 if all are equal)."""
    inside = labels >= 0
    sizes = np.bincount(labels[inside], None if weight is None else weight[inside]) if inside.any() else np.zeros(0)
    shares = sizes[sizes > 0] / max(1e-9, sizes.sum())
    entropy = float(-(shares * np.log(shares)).sum())
    even = entropy / float(np.log(len(shares))) if len(shares) > 1 else 1.0
    return {"clusters": float(len(shares)), "largest": float(shares.max(initial=0.0)), "evenness": even}


def _nearest(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.concatenate([(rows[i : i + CHUNK] @ centres.T).argmax(axis=1) for i in range(0, len(rows), CHUNK)])
