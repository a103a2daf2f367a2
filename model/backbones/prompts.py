"""The text encoders of a diffusers pipeline, used as the pipeline itself uses them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from model.backbones.adapter import word_layout
from model.backbones.base import Words, pad_words
from model.backbones.pretrained import Base, first_line, load_diffusers, read_base
from model.errors import TextError

SAMPLE, SAMPLES = 4096, 256  # bytes of a part of a weight file that is hashed, and parts
ENCODERS = ("text_encoder", "tokenizer", "image_encoder", "image_processor", "feature_extractor")
CACHED = 1000  # captions whose vectors are kept in memory; of T5-XXL up to 8 MB each


class PipelineText:
    """See `text.TextEncoder`. The empty caption is encoded like any other, as the pipelines do for guidance."""

    def __init__(self, path: str, tokens: int, device: str = "cpu") -> None:
        """path: folder or hub repository of the pipeline. Raises BaseError and TextError."""
        self.base = read_base(f"diffusers:{path}")
        diffusers = load_diffusers()
        import transformers

        transformers.utils.logging.disable_progress_bar()
        pipeline_class = getattr(diffusers, self.base.index["_class_name"])
        unused = ("transformer", "transformer_2", "unet", "vae", "safety_checker", "image_encoder")
        self._picture = self.base.family.picture
        needed = (*self.base.family.text_needs, *(("image_encoder",) if self._picture else ()))
        absent = {name: None for name in unused if name in self.base.index and name not in needed}
        dtype = torch.bfloat16 if device != "cpu" else torch.float32
        try:
            self.pipeline = pipeline_class.from_pretrained(path, dtype=dtype, **absent)
        except (OSError, ValueError, ImportError) as error:
            raise TextError(f"cannot load the text encoders of {path}: {first_line(error)}") from error
        if self._picture and getattr(self.pipeline, "image_encoder", None) is not None:
            self.pipeline.image_encoder.float()  # as diffusers' examples do
        for name in self.base.family.text_needs:
            setattr(self.pipeline, name, None)
        self.pipeline.to(device)
        self.layout = word_layout(self.base.family, self.base.transformer, tokens)
        self.id = text_id(self.base, tokens)
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
        """Return the encoders of text and pictures and the tokenizers by the names that the pipeline gives them."""
        return {k: v for k, v in self.pipeline.components.items() if k.startswith(ENCODERS)}

    @torch.no_grad()
    def embed_pictures(self, pictures: Tensor) -> Words:
        """Return what the transformer takes of pictures (b, h, w, 3) uint8 besides their latents, fp32."""
        if self._picture is None:
            return {}
        images = [Image.fromarray(picture.numpy()) for picture in pictures.cpu()]
        return {name: tensor.float() for name, tensor in self._picture.embed(self.pipeline, images).items()}

    @torch.no_grad()
    def _encode(self, caption: str) -> Words:
        family = self.base.family
        words = {name: w.float().cpu() for name, w in family.encode(self.pipeline, caption, self._tokens).items()}
        if family.padding_counts:
            return words
        count = _length(words, family.masked)
        per_token = [name for name, shape in family.layout(self.base.transformer).items() if shape[0] is None]
        return {name: w[:count].clone() if name in per_token else w for name, w in words.items()}


def text_id(base: Base, tokens: int) -> str:
    """Return the id of a pipeline's text encoders: a hash of their configurations and of samples of their weights,
    which are many gigabytes (`weights_sample`). Copies of an encoder have the same id. Raises TextError."""
    import transformers

    digest = hashlib.sha256(base.family.transformer.encode())
    encoders = ("text_encoder", "image_encoder") if base.family.picture else ("text_encoder",)
    for name in sorted(name for name in base.index if name.startswith(encoders) and base.index[name][0]):
        try:
            values = transformers.AutoConfig.from_pretrained(base.path, subfolder=name).to_dict()
        except (OSError, ValueError) as error:
            raise TextError(f"cannot read {name} of {base.path}: {first_line(error)}") from error
        for key in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
            values.pop(key, None)
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
        for file in weight_files(base.path, name):
            digest.update(weights_sample(file))
    return f"{base.family.transformer}-{tokens}-{digest.hexdigest()[:12]}"


def weight_files(path: str, component: str) -> list[Path]:
    """Return the weight files of a pipeline's component, in order: in a folder, or of a hub repository in the cache of
    this machine, where they are loaded to if they are not there. Raises TextError."""
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(path, allow_patterns=[f"{component}/*"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            raise TextError(f"cannot read {component} of {path}: {first_line(error)}") from error
    return sorted((folder / component).glob("*.safetensors")) or sorted((folder / component).glob("*.bin"))


def weights_sample(file: Path) -> bytes:
    """Return a hash of a file's size and of SAMPLES + 1 parts of SAMPLE bytes, from its first byte to its last.
    Training or quantising weights changes nearly every part; the first is the header of a safetensors file."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for i in range(SAMPLES + 1):
            opened.seek(max(0, size - SAMPLE) * i // SAMPLES)
            digest.update(opened.read(SAMPLE))
    return digest.digest()


def _length(words: Words, masked: str | None) -> int:
    """The tokens before the padding, which is where the mask, or else the vectors, are zero to the end."""
    if masked is not None:
        used: Tensor = words[masked] != 0
    else:
        used = next(iter(words.values())).abs().sum(-1) != 0
    return int(used.nonzero().max()) + 1 if bool(used.any()) else 0
