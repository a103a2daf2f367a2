"""Content ids of sources, and file types by their first bytes for files whose names are not those of videos."""

from __future__ import annotations

import codecs
import hashlib
import io
from typing import Annotated

from pydantic import StringConstraints

from pipeline.config.recipe import SourceOptions
from pipeline.sources.discover import open_file
from pipeline.storage.store import PIECE

ContentId = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
SAMPLES, SAMPLE = 16, 256 << 10  # pieces of a file, and bytes of each, that `identity: sampled` reads
HEAD = 4096  # bytes of a file that are read to recognize it
SIGNATURES = (  # of files that hold no video themselves
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"(\xb5/\xfd", "zstd"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"SQLite format 3", "a database"),
    (b"\x89HDF", "HDF5"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
)
TEXT_CONTROLS = b"\t\n\r\f\x1b"
TAR_MARK, TAR_PLACE = b"ustar", 257


def not_media(head: bytes) -> str | None:
    """Return the type of a file that begins with `head` and cannot be a video; None where it may be one."""
    for signature, name in SIGNATURES:
        if head.startswith(signature):
            return name
    if head[TAR_PLACE:].startswith(TAR_MARK):
        return "a tar"
    return "text" if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    """Return whether `head` is UTF-8 without control characters. If it has HEAD bytes, its last character may be
    cut."""
    if any(byte < 32 and byte not in TEXT_CONTROLS for byte in head):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD)
    except UnicodeDecodeError:
        return False
    return True


def content_id(uri: str, options: SourceOptions | None = None) -> str:
    """Return 32 hex digits of the SHA-256 of a source's bytes. With `identity: sampled`, hash the size and SAMPLES
    evenly spaced pieces of a file that is larger than all pieces together. Raises OSError."""
    digest = hashlib.sha256()
    with open_file(uri, options) as file:
        size = file.seek(0, io.SEEK_END)
        if options is not None and options.identity == "sampled" and size > SAMPLES * SAMPLE:
            digest.update(f"{size} bytes, sampled".encode())
            for number in range(SAMPLES):
                file.seek((size - SAMPLE) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
        else:
            file.seek(0)
            while chunk := file.read(PIECE):
                digest.update(chunk)
    return digest.hexdigest()[:32]
