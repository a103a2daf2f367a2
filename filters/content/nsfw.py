"""Explicit pictures by LAION's detector on top of CLIP's image embeddings, for those who have its weights.

Four layers over ViT-L/14 (768 numbers) or ViT-B/32 (512), trained on embeddings of OpenAI's weights
(https://github.com/LAION-AI/CLIP-based-NSFW-Detector; MIT). It was published for Keras: `weights` is its port to torch,
a state dict with norm.mean, norm.variance and linear_1 to linear_N. The filter `safety` needs no such file.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown
from filters.encoders.base import Declared, TextVideoEncoder, usable
from filters.weights import load_state, weights_file

KEY = "weights"


class Nsfw:
    """`nsfw_max` and `nsfw_mean` over the sampled frames, probabilities in 0..1. Raises ValueError, before any work,
    if the weights are not available or were trained for another encoder than the recipe's."""

    name = "nsfw"
    version = 1
    needs = frozenset({Track.EMBEDDING})
    columns: Mapping[str, pa.DataType] = {"nsfw_max": pa.float32(), "nsfw_mean": pa.float32()}

    def __init__(self, encoder: TextVideoEncoder | Declared, weights: str):
        if not encoder.id.startswith("openclip:"):
            raise ValueError(f"nsfw reads OpenCLIP embeddings, and the recipe's encoder is {encoder.id}")
        self.detector = load_detector(weights)
        if encoder.dim not in (0, self.detector.dim):
            raise ValueError(f"{weights} reads {self.detector.dim} dimensions, and {encoder.id} has {encoder.dim}")

    def score(self, clip: ClipView) -> dict[str, Score]:
        if not usable(clip.embedding, self.detector.dim):
            return unknown(self, "no usable embedding")
        chances = self.detector(clip.embedding)
        return {"nsfw_max": float(chances.max()), "nsfw_mean": float(chances.mean())}


class Detector:
    """Standardised embeddings through linear layers with ReLU between them, then a logistic curve."""

    def __init__(self, mean: np.ndarray, variance: np.ndarray, layers: Sequence[tuple[np.ndarray, np.ndarray]]):
        self.dim = mean.size
        self._mean, self._deviation, self._layers = mean.reshape(-1), np.sqrt(variance.reshape(-1)), layers

    def __call__(self, embedding: np.ndarray) -> np.ndarray:
        """(n, d) float32 of unit rows -> (n,) probabilities."""
        x = (embedding - self._mean) / self._deviation
        for weight, bias in self._layers[:-1]:
            x = np.maximum(x @ weight.T + bias, 0)
        weight, bias = self._layers[-1]
        return 1 / (1 + np.exp(-(x @ weight.T + bias)[:, 0]))


@functools.cache
def load_detector(name: str) -> Detector:
    """Load the detector. Raises ValueError for a missing file or another type of network."""
    path = weights_file(name, KEY)
    state = {key: value.numpy() for key, value in load_state(path, KEY).items()}
    names = sorted(key.removesuffix(".weight") for key in state if key.startswith("linear_") and key.endswith("weight"))
    try:
        layers = [(state[f"{n}.weight"], state[f"{n}.bias"]) for n in names]
        widths = [state["norm.mean"].size, *(w for weight, _ in layers for w in weight.shape[::-1]), 1]
        if not layers or widths[::2] != widths[1::2]:
            raise KeyError
        return Detector(state["norm.mean"], state["norm.variance"], layers)
    except KeyError as error:
        raise ValueError(
            f"{KEY}: {path} is not LAION's NSFW detector: expected norm.mean, norm.variance and linear layers that end "
            "in one number"
        ) from error
