"""Buckets: the picture sizes of a dataset, few enough that the clips of a batch can share one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ASPECTS = ("21x9", "2x1", "16x9", "3x2", "4x3", "5x4", "1x1", "4x5", "3x4", "2x3", "9x16", "1x2", "9x21")
MULTIPLE = 16  # both sides are multiples: 8 of a latent's stride times 2 of a patch


def bucket_names(width: np.ndarray, height: np.ndarray, still: np.ndarray, heights: Sequence[int]) -> pa.Array:
    """Return the buckets of pictures of (n,) `width` and `height` pixels: "16x9-720p", where 720 is the short side.

    The aspect ratio is the nearest by logarithm, so that at most an eighth of a picture between 21:9 and 9:21 is
    cropped, equally on both sides. The size is the largest of `heights` that needs no upscaling; a picture smaller than
    all of them gets its own short side, rounded down to a multiple of 16, and null if that is 0. Where `still` is true
    the name ends in "-still": images get their own shards, because readers expect the same files in every sample.
    """
    width, height = np.nan_to_num(np.asarray(width, np.float64)), np.nan_to_num(np.asarray(height, np.float64))
    ratios = np.array([_ratio(name) for name in ASPECTS])
    edges = np.sqrt(ratios[1:] * ratios[:-1])  # geometric means: halfway by logarithm
    with np.errstate(divide="ignore", invalid="ignore"):
        aspect = len(edges) - np.searchsorted(edges[::-1], width / np.maximum(height, 1))
    short = np.minimum(width, height).astype(np.int64)
    sizes = sorted({*heights, *range(MULTIPLE, min(heights), MULTIPLE)})
    names = [f"{name}-{side}p{end}" for end in ("", "-still") for name in ASPECTS for side in sizes]
    fits = np.zeros((len(ASPECTS), len(sizes), 2))
    for i, name in enumerate(ASPECTS):
        fits[i] = [bucket_size(f"{name}-{side}p") for side in sizes]
    level = np.searchsorted(sizes, short, side="right") - 1
    for _ in sizes:  # a picture narrower than its nominal aspect ratio may miss the size by a few pixels
        over = (level >= 0) & ((fits[aspect, level, 0] > width) | (fits[aspect, level, 1] > height))
        if not over.any():
            break
        level = level - over
    number = (np.asarray(still) * len(ASPECTS) + aspect) * len(sizes) + level
    indices = pa.array(number, pa.int32(), mask=level < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names))


def with_durations(names: pa.Array, seconds: np.ndarray, still: np.ndarray, edges: Sequence[float]) -> pa.Array:
    """Append to the bucket `names` of clips of (n,) `seconds` the largest of `edges` that a clip reaches: with (4, 8),
    "16x9-720p-0s" below four seconds, "16x9-720p-4s", and "16x9-720p-8s". Stills get no duration."""
    if not edges:
        return names
    lower = np.array([0.0, *sorted(edges)])
    ends = pa.array(["", *(f"-{edge:g}s" for edge in lower)])
    number = np.where(still, 0, np.searchsorted(lower, seconds, side="right"))
    return pc.binary_join_element_wise(names, ends.take(pa.array(number)), "")


def bucket_size(name: str) -> tuple[int, int]:
    """Return (width, height) in pixels of the clips in a bucket, both multiples of 16: (1280, 720) for "16x9-720p" and
    "16x9-720p-4s", (1920, 1072) for "16x9-1080p": pictures of the named size are cropped, not scaled."""
    aspect, side = name.split("-")[:2]
    ratio = _ratio(aspect)
    pixels = int(side.removesuffix("p"))
    short = pixels // MULTIPLE * MULTIPLE
    long = int(pixels * max(ratio, 1 / ratio) / MULTIPLE + 1e-9) * MULTIPLE  # rounded down: 426x240 is common
    return (long, short) if ratio >= 1 else (short, long)


def _ratio(aspect: str) -> float:
    width, height = aspect.split("x")
    return int(width) / int(height)
