"""What an encoder of frames and texts is, and how one is loaded by its name."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

FrameTags = list[tuple[str, float]]  # labels with probabilities, most likely first


class EncoderOutput(NamedTuple):
    """What an encoder makes of one clip's frames."""

    embedding: np.ndarray  # (n, d) float32, unit rows: what the frames mean, to compare with texts
    appearance: np.ndarray  # (n, a) float32, unit rows: what they look like, to compare with other frames
    tags: list[FrameTags]  # about ten a frame


class TextVideoEncoder(Protocol):
    """Puts frames and texts into one space, where their cosine says how well they go together. Scores of different
    encoders are not comparable: `id` goes with every score."""

    id: str  # name, model and identity of the weights
    dim: int

    def frames(self, rgb: np.ndarray) -> np.ndarray:
        """(n, h, w, 3) uint8 RGB -> (n, d) float32, unit rows."""
        ...

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32, unit rows. What exceeds the model's context is cut off."""
        ...

    def look(self, frames: Sequence[np.ndarray]) -> EncoderOutput:
        """Embedding, appearance and tags of frames (h, w, 3) uint8 RGB, from one forward pass."""
        ...


class Declared(NamedTuple):
    """An encoder that is not loaded: what the recipe says of it. Filters get one when only their columns are asked."""

    id: str
    dim: int = 0  # not known


class EncoderEntry(NamedTuple):
    """Where an encoder's class is, and whether it runs on a GPU where there is one."""

    path: str
    gpu: bool = False


ENCODERS = {
    "conse": EncoderEntry("filters.encoders.conse:Conse"),
    "openclip": EncoderEntry("filters.encoders.openclip:OpenClip", gpu=True),
}


@functools.cache
def load_encoder(name: str = "conse", model: str = "ViT-L-14", pretrained: str = "openai") -> TextVideoEncoder:
    """Return the encoder called `name`: conse (embedded; ignores the rest) or openclip (architecture, tag or
    checkpoint). One instance a process. Raises KeyError for another name, RuntimeError when weights cannot be loaded.
    """
    if name not in ENCODERS:
        raise KeyError(f"no encoder called {name!r}: there are {' and '.join(ENCODERS)}")
    module, _, attribute = ENCODERS[name].path.partition(":")
    encoder = getattr(importlib.import_module(module), attribute)
    loaded: TextVideoEncoder = encoder() if name == "conse" else encoder(model, pretrained)
    return loaded


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread, so that sums are added up in the same order on every machine."""
    import torch  # two seconds: not for those who only ask what the filter needs

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable(embedding: np.ndarray, dim: int | None = None) -> bool:
    """Whether there is an embedding, finite, of this dimension."""
    return len(embedding) > 0 and dim in (None, embedding.shape[1]) and bool(np.isfinite(embedding).all())
