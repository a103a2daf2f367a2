"""The text encoders of a diffusers pipeline, used as the pipeline itself uses them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.backbones.adapter import word_layout
from model.backbones.base import Words, pad_words
from model.backbones.source import Source, first_line, load_diffusers, read_source
from model.errors import TextError

CACHED = 1000  # captions whose vectors are kept in memory; of T5-XXL up to 8 MB each


class PipelineText:
    """See `text.TextEncoder`. The empty caption is encoded like any other, as the pipelines do for guidance."""

    def __init__(self, path: str, tokens: int, device: str = "cpu") -> None:
        """path: folder or hub repository of the pipeline. Raises BaseError and TextError."""
        self.source = read_source(f"diffusers:{path}")
        diffusers = load_diffusers()
        import transformers

        transformers.utils.logging.disable_progress_bar()
        pipeline_class = getattr(diffusers, self.source.index["_class_name"])
        unused = ("transformer", "transformer_2", "unet", "vae", "safety_checker", "image_encoder")
        absent = {name: None for name in unused if name in self.source.index}
        dtype = torch.bfloat16 if device != "cpu" else torch.float32
        try:
            self.pipeline = pipeline_class.from_pretrained(path, torch_dtype=dtype, **absent)
        except (OSError, ValueError, ImportError) as error:
            raise TextError(f"cannot load the text encoders of {path}: {first_line(error)}") from error
        self.pipeline.to(device)
        self.layout = word_layout(self.source.family, self.source.transformer, tokens)
        self.id = text_id(self.source, tokens)
        self._tokens, self._device = tokens, device
        self._cached = functools.lru_cache(CACHED)(self._encode)

    def __call__(self, captions: Sequence[str]) -> Words:
        batch = pad_words(self.vectors(captions), self.layout)
        return {name: tensor.to(self._device) for name, tensor in batch.items()}

    def vectors(self, captions: Sequence[str]) -> list[Words]:
        return [self._cached(caption) for caption in captions]

    def longer(self, captions: Sequence[str]) -> int:
        return sum(len(self.pipeline.tokenizer(caption)["input_ids"]) > self._tokens for caption in captions)

    def parts(self) -> dict[str, Any]:
        """Return the text encoders and tokenizers by the names that the pipeline gives them."""
        return {k: v for k, v in self.pipeline.components.items() if k.startswith(("text_encoder", "tokenizer"))}

    @torch.no_grad()
    def _encode(self, caption: str) -> Words:
        family = self.source.family
        words = {name: w.float().cpu() for name, w in family.encode(self.pipeline, caption, self._tokens).items()}
        if family.padding_counts:
            return words
        count = _length(words, family.masked)
        per_token = [name for name, shape in family.layout(self.source.transformer).items() if shape[0] is None]
        return {name: w[:count].clone() if name in per_token else w for name, w in words.items()}


def text_id(source: Source, tokens: int) -> str:
    """Return the id of a pipeline's text encoders: a hash of their configurations, not of their weights, which are many
    gigabytes. Models with the same encoders have the same id. Raises TextError."""
    import transformers

    digest = hashlib.sha256(source.family.transformer.encode())
    for name in sorted(name for name in source.index if name.startswith("text_encoder") and source.index[name][0]):
        try:
            values = transformers.AutoConfig.from_pretrained(source.path, subfolder=name).to_dict()
        except (OSError, ValueError) as error:
            raise TextError(f"cannot read {name} of {source.path}: {first_line(error)}") from error
        for key in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
            values.pop(key, None)
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
    return f"{source.family.transformer}-{tokens}-{digest.hexdigest()[:12]}"


def _length(words: Words, masked: str | None) -> int:
    """The tokens before the padding, which is where the mask, or else the vectors, are zero to the end."""
    if masked is not None:
        used: Tensor = words[masked] != 0
    else:
        used = next(iter(words.values())).abs().sum(-1) != 0
    return int(used.nonzero().max()) + 1 if bool(used.any()) else 0
