"""A file that may be a source, before anything opens it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

VIDEOS = frozenset(  # opened without reading the first bytes; files with other endings are checked first
    ".264 .265 .3g2 .3gp .asf .av1 .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m2ts .m2v .m4v .mkv".split()  # noqa: SIM905
    + ".mov .mp4 .mpeg .mpg .mts .mxf .nut .obu .ogm .ogv .ps .qt .rm .rmvb .ts .vob .webm .wmv .y4m".split()  # noqa: SIM905
)
IMAGES = frozenset((".avif", ".bmp", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
MEMBER = "#"  # archive.tar#folder/clip.mp4


@dataclass(frozen=True, slots=True)
class DiscoveredFile:
    """A file that may be a source: not opened yet."""

    uri: str  # text (see names.py): an absolute path, a URL, or either with #MEMBER of a tar
    size: int | None = None  # bytes; None if unknown
    stamp: str | None = None  # changes when the file does: time of change, or ETag; None if unknown
    metadata: Mapping[str, Any] = field(default_factory=dict)
    named: bool = True  # whether the user named the file itself, not only its folder
    problem: str = ""  # why the file cannot be used
    silent: bool = False  # its server does not answer now; the next build retries

    @property
    def worth_opening(self) -> bool:
        """Whether a decoder opens the file without a check of its first bytes."""
        return self.named or suffix(self.uri) in VIDEOS | IMAGES

    @property
    def revision(self) -> str:
        """The part of the file's key in state/sources, with URI and size, that changes with the stamp or the
        problem."""
        return self.problem or self.stamp or ""


def suffix(uri: str) -> str:
    """Return the file name's ending in lower case, with its dot: of the member for a tar, without a URL's query."""
    archive, member = split_member(uri)
    return PurePosixPath((member or archive).split("?")[0]).suffix.lower()


def split_member(uri: str) -> tuple[str, str]:
    """Return (archive, member) of "a.tar#b.mp4"; (uri, "") of anything else."""
    archive, mark, member = uri.partition(f".tar{MEMBER}")
    return (f"{archive}.tar", member) if mark else (uri, "")
