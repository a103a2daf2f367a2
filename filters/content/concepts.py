"""Concepts that the user names in words, scored zero-shot by the recipe's encoder."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown
from filters.encoders.base import TextVideoEncoder, usable

NEUTRAL = (
    "a photo",
    "a video of something",
    "an ordinary scene",
    "a landscape",
    "people",
    "an animal",
    "a vehicle",
    "an indoor scene",
)


class Concepts:
    """`prompts` maps a name to a description: {talking_head: "a person talking to the camera"}. The column
    `concepts_<name>` is the cosine of the description with the frames minus the mean cosine of neutral descriptions,
    averaged over frames: about 0 for absent concepts with any encoder. `neutral` replaces the neutral descriptions.

    Scores of different encoders are not comparable, and ConSE knows a thousand objects and no actions: check the
    percentiles of your own clips before setting a threshold. Raises ValueError for a name that is not a column name.
    """

    name = "concepts"
    version = 1
    needs = frozenset({Track.EMBEDDING})

    def __init__(
        self, encoder: TextVideoEncoder, prompts: Mapping[str, str] | None = None, neutral: Sequence[str] = NEUTRAL
    ):
        prompts = dict(prompts or {})
        for name in prompts:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
                raise ValueError(f"filters.concepts.prompts: {name!r} names a column: lower-case letters, digits and _")
        self.columns: Mapping[str, pa.DataType] = {f"concepts_{name}": pa.float32() for name in prompts}
        self.encoder, self.prompts, self.neutral = encoder, prompts, neutral

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """(d, prompts) float32."""
        against = self.encoder.texts(list(self.neutral)).mean(axis=0)
        return (self.encoder.texts([str(text) for text in self.prompts.values()]) - against).T

    def score(self, clip: ClipView) -> dict[str, Score]:
        if not self.columns:
            return {}
        if not usable(clip.embedding, self.encoder.dim):
            return unknown(self, "no usable embedding")
        scores = (clip.embedding @ self.directions).mean(axis=0)  # (prompts,)
        return {name: float(value) for name, value in zip(self.columns, scores, strict=True)}
