"""The interface of encoders of frames and texts, and a function that loads an encoder by name."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

FrameTags = list[tuple[str, float]]  # labels with probabilities, most likely first


class EncoderOutput(NamedTuple):
    """An encoder's output for n frames."""

    embedding: np.ndarray  # (n, d) float32, rows of unit norm: semantic, comparable with texts
    appearance: np.ndarray  # (n, a) float32, rows of unit norm: visual, comparable with other frames
    tags: list[FrameTags]  # about ten per frame


class TextVideoEncoder(Protocol):
    """Embeds frames and texts in one space, where the cosine measures how well they match. Scores of different encoders
    are not comparable, so `id` is stored with scores."""

    id: str  # name, model and identity of the weights
    dim: int

    def frames(self, rgb: np.ndarray) -> np.ndarray:
        """Embed frames, (n, h, w, 3) uint8 RGB: (n, d) float32, rows of unit norm."""
        ...

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: (n, d) float32, rows of unit norm. Texts are truncated to the model's context."""
        ...

    def look(self, frames: Sequence[np.ndarray]) -> EncoderOutput:
        """Return embedding, appearance and tags of frames (h, w, 3) uint8 RGB, from one forward pass."""
        ...


class Declared(NamedTuple):
    """An encoder of the recipe that is not loaded. Filters get one if only their columns are needed."""

    id: str
    dim: int = 0  # 0: unknown


class EncoderEntry(NamedTuple):
    """Import path of an encoder's class, and whether it runs on a GPU if there is one."""

    path: str
    gpu: bool = False


ENCODERS = {
    "conse": EncoderEntry("filters.encoders.conse:Conse"),
    "openclip": EncoderEntry("filters.encoders.openclip:OpenClip", gpu=True),
}


@functools.cache
def load_encoder(name: str = "conse", model: str = "ViT-L-14", pretrained: str = "openai") -> TextVideoEncoder:
    """Return the encoder `name`: "conse" (ignores the other arguments) or "openclip" (architecture, and tag or file).

    There is one instance per process. Raises KeyError for an unknown name, RuntimeError if weights cannot be loaded.
    """
    if name not in ENCODERS:
        raise KeyError(f"no encoder called {name!r}: there are {' and '.join(ENCODERS)}")
    module, _, attribute = ENCODERS[name].path.partition(":")
    encoder = getattr(importlib.import_module(module), attribute)
    loaded: TextVideoEncoder = encoder() if name == "conse" else encoder(model, pretrained)
    return loaded


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread, so that sums are computed in the same order on every machine."""
    import torch  # imported late because it takes two seconds, and most importers only read a filter's attributes

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable(embedding: np.ndarray, dim: int | None = None) -> bool:
    """Return whether the embedding has rows, is finite, and has dimension `dim` (None: any)."""
    return len(embedding) > 0 and dim in (None, embedding.shape[1]) and bool(np.isfinite(embedding).all())
