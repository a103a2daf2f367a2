"""The interface of a companion, which computes files from a packed clip; they become members of the clip's sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pipeline.media.packed_clip import PackedClip


class Companion(Protocol):
    """A companion, constructed from the options of `pack.companions.NAME` in the driver and in each encoding process.

    The constructor therefore loads no model. It raises TypeError, ValueError or OSError for invalid options.
    """

    endings: Mapping[str, str]  # member, a column prefix in the index -> ending of its file name, such as canny.mp4

    def identity(self) -> Mapping[str, Any]:
        """Return JSON values that determine, with the clip, the bytes of the files: version, options, weights."""
        ...

    def make(self, clip: PackedClip) -> dict[str, bytes]:
        """Return the bytes of each member's file for a clip. Not called for still images."""
        ...
