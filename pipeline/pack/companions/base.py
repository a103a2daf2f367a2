"""What a companion is: it makes files of a packed clip, which become members of the clip's sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pipeline.media.packed_clip import PackedClip


class Companion(Protocol):
    """Made from the options of `pack.companions.NAME`, in the driver and in each process that encodes: the constructor
    loads no model. It raises TypeError, ValueError or OSError for options that cannot work."""

    endings: Mapping[str, str]  # members, prefixes of the index's columns -> ending of the file: first.jpg, canny.mp4

    def identity(self) -> Mapping[str, Any]:
        """Return plain values that change when the same clip would give other bytes."""
        ...

    def make(self, clip: PackedClip) -> dict[str, bytes]:
        """Return the members' files for a clip; still images have none."""
        ...
