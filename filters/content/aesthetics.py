"""Aesthetics: LAION's predictors of human ratings of pictures, on top of OpenCLIP's image embeddings.

V2 ("sac+logos+ava1-l14-linearMSE", an MLP over ViT-L/14) rates from 1 to 10; V1 ("sa_0_4_vit_*_linear", one linear
layer over ViT-B/32 or ViT-L/14) likewise. https://github.com/christophschuhmann/improved-aesthetic-predictor and
https://github.com/LAION-AI/aesthetic-predictor. Both were trained on embeddings of OpenAI's weights.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown
from filters.encoders.base import Declared, TextVideoEncoder, usable
from filters.weights import load_state, weights_file

KEY = "head"
V2 = "hf://camenduru/improved-aesthetic-predictor/sac+logos+ava1-l14-linearMSE.pth"


class Aesthetics:
    """Columns: lowest, mean and median over the sampled frames, about 1..10.

    `head` is the file with the predictor's weights, V2's from the hub by default. Raises ValueError, before any work,
    if it is not available or was trained for another encoder than the recipe's.
    """

    name = "aesthetics"
    version = 1
    needs = frozenset({Track.EMBEDDING})
    columns: Mapping[str, pa.DataType] = {
        "aesthetics_min": pa.float32(),
        "aesthetics_mean": pa.float32(),
        "aesthetics_median": pa.float32(),
    }

    def __init__(self, encoder: TextVideoEncoder | Declared, head: str = V2):
        if not encoder.id.startswith("openclip:"):
            raise ValueError(
                f"aesthetics reads OpenCLIP embeddings, and the recipe's encoder is {encoder.id}: set encoder to "
                "{name: openclip, model: ViT-L-14, pretrained: openai}, or leave aesthetics out"
            )
        self.layers = load_head(head)
        self.dim = self.layers[0][0].shape[1]
        if encoder.dim not in (0, self.dim):
            raise ValueError(
                f"{KEY}: {head} reads embeddings of {self.dim} dimensions, and {encoder.id} has {encoder.dim}; 768 go "
                "with ViT-L-14, 512 with ViT-B-32"
            )

    def score(self, clip: ClipView) -> dict[str, Score]:
        if not usable(clip.embedding, self.dim):
            return unknown(self, "no usable embedding")
        ratings = rate(self.layers, clip.embedding)
        return {
            "aesthetics_min": float(ratings.min()),
            "aesthetics_mean": float(ratings.mean()),
            "aesthetics_median": float(np.median(ratings)),
        }


Layers = list[tuple[np.ndarray, np.ndarray]]  # (out, in) and (out,) float32


@functools.cache
def load_head(name: str) -> Layers:
    """Load the layers of a predictor in order. Raises ValueError for a missing file or another type of network."""
    path = weights_file(name, KEY)
    state = load_state(path, KEY)
    names = [key.removesuffix("weight") for key in state if key.endswith("weight")]
    try:
        layers = [(state[f"{n}weight"].numpy(), state[f"{n}bias"].numpy()) for n in names]
        widths = [weight.shape for weight, _ in layers] + [(0, 1)]
        chained = all(after[1] == before[0] for before, after in itertools.pairwise(widths))
    except (KeyError, IndexError):
        chained = False
    if not names or not chained:
        raise ValueError(f"{KEY}: {path} is not an aesthetics head: expected linear layers that end in one number")
    return layers


def rate(layers: Layers, embedding: np.ndarray) -> np.ndarray:
    """Rate embeddings: (n, d) float32 of unit rows -> (n,) ratings. The layers have no activations between them, and
    their dropout has no effect after training."""
    x = embedding
    for weight, bias in layers:
        x = x @ weight.T + bias
    return x[:, 0]
