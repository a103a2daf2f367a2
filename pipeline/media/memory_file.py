"""A file in memory that has a path, for libraries that write to a path."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def memory_file(name: str) -> Iterator[tuple[str, BinaryIO]]:
    """Yield a path to write to, and the same file open for reading from its beginning. It needs no disk space and works
    in a process that must not write files. Linux only; the path has no suffix."""
    with os.fdopen(os.memfd_create(name), "rb") as file:
        yield f"/proc/self/fd/{file.fileno()}", file
