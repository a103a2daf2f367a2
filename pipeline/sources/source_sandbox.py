"""The child processes in which sources are read and decoded, one for local files and one for URLs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from pipeline.media.isolation.sandbox import Sandbox

Result = TypeVar("Result")


class SourceSandbox:
    """Two child processes, started on first use: one for local files, without network or write access, and one for
    URLs, whose clients need the network and temporary files."""

    def __init__(self, memory_mb: int) -> None:
        self._local, self._remote = Sandbox(memory_mb, confined=True), Sandbox(memory_mb)

    def call(self, uri: str, function: Callable[..., Result], *args: object, deadline: float) -> Result:
        """Return `function(*args)`, which reads the source `uri`, within `deadline` seconds. Raises like
        Sandbox.call."""
        sandbox = self._local if is_local(uri) else self._remote
        return sandbox.call(function, *args, deadline=deadline)

    def close(self) -> None:
        self._local.close()
        self._remote.close()

    def __enter__(self) -> SourceSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_local(uri: str) -> bool:
    """Return whether a source is a file of this machine, or a member of a local tar."""
    return os.path.isabs(uri.removeprefix("file://"))
