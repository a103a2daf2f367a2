"""The `listed` captioner: the user's own captions, from a column of the lists that name the sources, word for word.

They are audited like any other, but never changed or rejected: the audit only fills its columns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from captioners.base import Caption, CaptionError, ClipFrames
from captioners.text.claims import sentences

VERSION = 1


class Listed:
    """`column` holds a text, or a list of texts of which the first is the caption and the rest go to `others`. `digest`
    is a hash of all texts of the lists, set by the build, so that captions are read again when a text changes.
    `language` is the language of the texts."""

    verbatim = True

    def __init__(self, column: str = "caption", digest: str = "", language: str = "English") -> None:
        self.column = column
        self.id = f"listed:{VERSION}:{column}"

    def caption(self, clips: Sequence[ClipFrames]) -> list[Caption | CaptionError]:
        """Return one answer a clip, in order of `clips`, from the column `metadata` of its scores."""
        return [self._caption(clip) for clip in clips]

    def _caption(self, clip: ClipFrames) -> Caption | CaptionError:
        texts = listed_texts(clip.scores.get("metadata"), self.column)
        if not texts:
            return CaptionError(clip.clip_id, f"the list has no text in its column {self.column!r}")
        short = next(iter(sentences(texts[0])), texts[0])
        provenance = {"short": "list", "dense": "list"}
        return Caption(clip.clip_id, short, texts[0], others=tuple(texts[1:]), provenance=provenance)


def listed_texts(metadata: str | None, column: str) -> list[str]:
    """Return the distinct non-empty texts that a source's `metadata` (JSON or None) has in `column`."""
    value: Any = json.loads(metadata).get(column) if metadata else None
    texts = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(text.strip() for text in texts if isinstance(text, str) and text.strip()))
