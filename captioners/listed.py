"""The `listed` captioner: the user's own captions, from a column of the lists that name the sources, word for word.

They are audited like any other and never changed or rejected for it: the audit's columns say what it found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from captioners.base import Caption, CaptionError, ClipFrames
from captioners.text.claims import sentences

VERSION = 1


class Listed:
    """`column` holds a text, or a list of texts of which the first is the caption and the others are kept beside it.
    `digest` stands for all texts of the lists, so that captions are read again when one of them changes; a build sets
    it. `language` is what they are written in."""

    verbatim = True

    def __init__(self, column: str = "caption", digest: str = "", language: str = "English") -> None:
        self.column = column
        self.id = f"listed:{VERSION}:{column}"

    def caption(self, clips: Sequence[ClipFrames]) -> list[Caption | CaptionError]:
        """One answer a clip, in order of `clips`, from the column `metadata` of its scores."""
        return [self._caption(clip) for clip in clips]

    def _caption(self, clip: ClipFrames) -> Caption | CaptionError:
        texts = listed_texts(clip.scores.get("metadata"), self.column)
        if not texts:
            return CaptionError(clip.clip_id, f"the list has no text in its column {self.column!r}")
        short = next(iter(sentences(texts[0])), texts[0])
        provenance = {"short": "list", "dense": "list"}
        return Caption(clip.clip_id, short, texts[0], others=tuple(texts[1:]), provenance=provenance)


def listed_texts(metadata: str | None, column: str) -> list[str]:
    """The texts that a source's `metadata` (JSON or None) has in `column`, each once, without those that are empty."""
    value: Any = json.loads(metadata).get(column) if metadata else None
    texts = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(text.strip() for text in texts if isinstance(text, str) and text.strip()))
