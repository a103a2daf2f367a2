"""A file that may be a source, before anything opens it."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.sources.names import to_text

VIDEOS = frozenset(  # opened without reading the first bytes; files with other endings are checked first
    ".264 .265 .3g2 .3gp .asf .av1 .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m2ts .m2v .m4v .mkv".split()  # noqa: SIM905
    + ".mov .mp4 .mpeg .mpg .mts .mxf .nut .obu .ogm .ogv .ps .qt .rm .rmvb .ts .vob .webm .wmv .y4m".split()  # noqa: SIM905
)
IMAGES = frozenset((".avif", ".bmp", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
MEMBER = "#"  # archive.tar#folder/clip.mp4
_MEMBER = re.compile(rf"\.(?:tar|parquet){MEMBER}", re.I)


@dataclass(frozen=True, slots=True)
class DiscoveredFile:
    """A file that may be a source: not opened yet."""

    uri: str  # text (see names.py): an absolute path, a URL, or either with #MEMBER of an archive
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
    """Return the ending of the file, or of the member of an archive, in lower case with its dot, without a query."""
    archive, member = split_member(uri)
    return PurePosixPath((member or archive).split("?")[0]).suffix.lower()


def split_member(uri: str) -> tuple[str, str]:
    """Return (archive, member) of "a.tar#b.mp4" or "a.parquet#video/7"; (uri, "") of anything else."""
    if match := _MEMBER.search(uri):
        return uri[: match.end() - len(MEMBER)], uri[match.end() :]
    return uri, ""


def local_file(path: Path, metadata: Mapping[str, Any], named: bool = True) -> DiscoveredFile:
    """Describe a local file by its absolute path, which does not depend on where the build is started. A missing file
    is returned with a `problem`, so that it gets a row."""
    path = path.absolute()
    file = DiscoveredFile(to_text(str(path)), metadata=metadata, named=named)
    try:
        status = path.stat()
    except FileNotFoundError:
        return replace(file, problem="no such file")
    except OSError as error:
        return replace(file, problem=(error.strerror or str(error)).lower())
    except ValueError:  # a null character, or a surrogate that no file system has
        return replace(file, problem="not a file name")
    if not stat.S_ISREG(status.st_mode):
        return replace(file, problem="not a regular file")
    return replace(file, size=status.st_size, stamp=str(status.st_mtime_ns))
