"""Similarity of a caption to the frames of its clip, and the encoder that text and pictures are compared with."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown, why_null

FrameTags = list[tuple[str, float]]  # labels with probabilities, most likely first


class Looked(NamedTuple):
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

    def look(self, frames: Sequence[np.ndarray]) -> Looked:
        """Embedding, appearance and tags of frames (h, w, 3) uint8 RGB, from one forward pass."""
        ...


class Declared(NamedTuple):
    """An encoder that is not loaded: what the recipe says of it. Filters get one when only their columns are asked."""

    id: str
    dim: int = 0  # not known


@functools.cache
def load_encoder(name: str = "conse", model: str = "ViT-L-14", pretrained: str = "openai") -> TextVideoEncoder:
    """The encoder called `name`: conse (embedded; ignores the rest) or openclip (architecture, tag or checkpoint).
    One instance a process. Raises KeyError for another name, RuntimeError when weights cannot be loaded."""
    if name == "conse":
        from filters.conse import Conse

        return Conse()
    if name == "openclip":
        from filters.openclip import OpenClip

        return OpenClip(model, pretrained)
    raise KeyError(f"no encoder called {name!r}: there are conse and openclip")


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


class Similarity:
    """Columns, all cosines in -1..1 by the recipe's encoder, which `similarity_encoder` names:

    - `similarity_clip`: the whole caption against the frames, mean over frames;
    - `similarity_sentence_min`: every sentence against the frame that shows it best; the worst sentence. Low when one
      sentence speaks of something that is nowhere in the clip. Sentences about the camera are left out: no single
      frame shows them.
    """

    name = "similarity"
    version = 1
    needs = frozenset({Track.EMBEDDING, Track.CAPTION})
    columns: Mapping[str, pa.DataType] = {
        "similarity_clip": pa.float32(),
        "similarity_sentence_min": pa.float32(),
        "similarity_encoder": pa.string(),
    }

    def __init__(self, encoder: TextVideoEncoder):
        self.encoder = encoder

    def score(self, clip: ClipView) -> dict[str, Score]:
        caption = (clip.caption or "").strip()
        if not usable(clip.embedding, self.encoder.dim) or not caption:
            return unknown(self, "no usable embedding" if caption else "no caption")
        parts = visual_sentences(caption)
        cosines = clip.embedding @ self.encoder.texts([caption, *parts]).T  # (k, 1 + sentences)
        return {
            "similarity_clip": float(cosines[:, 0].mean()),
            "similarity_sentence_min": float(cosines[:, 1:].max(axis=0).min()) if parts else None,
            "similarity_encoder": self.encoder.id,
            **({} if parts else {why_null(self.name): "no sentence that a frame could show"}),
        }


def usable(embedding: np.ndarray, dim: int | None = None) -> bool:
    """Whether there is an embedding, finite, of this dimension."""
    return len(embedding) > 0 and dim in (None, embedding.shape[1]) and bool(np.isfinite(embedding).all())


def visual_sentences(caption: str) -> list[str]:
    """The sentences of a caption that speak of what a frame can show."""
    sentences = [s.strip() for s in re.split(r"(?<=[.!?])\s+", caption)]
    return [
        s for s in sentences if re.search(r"\w", s) and not re.match(r"(the|a|static|handheld)\s+camera\b", s, re.I)
    ]
