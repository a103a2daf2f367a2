"""A file that has a path but lies in memory, for libraries that write to a path and read it again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def memory_file(name: str) -> Iterator[tuple[str, BinaryIO]]:
    """A path to write to, and the same file open for reading from its beginning. No disk can be full, and a process
    that must not write files may write it. Linux only; the path has no suffix."""
    with os.fdopen(os.memfd_create(name), "rb") as file:
        yield f"/proc/self/fd/{file.fileno()}", file
