"""Similarity of a caption to the frames of its clip."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown, why_null
from filters.encoders.base import TextVideoEncoder, usable


class Similarity:
    """Columns, all cosines in -1..1 by the recipe's encoder, which `similarity_encoder` names:

    - `similarity_clip`: the whole caption against the frames, mean over frames;
    - `similarity_sentence_min`: each sentence against the frame that matches it best; the worst sentence. Low if a
      sentence describes something that is nowhere in the clip. Sentences about the camera are ignored, because no
      single frame shows them.
    """

    name = "similarity"
    version = 2
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
            **({} if parts else {why_null(self.name): "no sentence about visible content"}),
        }


def visual_sentences(caption: str) -> list[str]:
    """Return the sentences of a caption that a frame can show."""
    sentences = [s.strip() for s in re.split(r"(?<=[.!?])\s+", caption)]
    return [
        s for s in sentences if re.search(r"\w", s) and not re.match(r"(the|a|static|handheld)\s+camera\b", s, re.I)
    ]
