"""Sources: what the user names on the command line, turned into videos that can be opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO


@dataclass(frozen=True)
class Source:
    """One video. `source_id` is a hash of its content; `metadata` is what the user's list says of it."""

    source_id: str
    uri: str
    size: int = 0  # bytes
    metadata: Mapping[str, Any] = field(default_factory=dict)


def open_media(uri: str) -> str | BinaryIO:
    """What a decoder opens: a local path, or a seekable binary file for a URL or a member of a tar."""
    return uri.removeprefix("file://")
