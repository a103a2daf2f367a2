"""The child processes in which sources are read and decoded: what a source may do there follows from where it lies."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from pipeline.media.sandbox import Sandbox

Result = TypeVar("Result")


class SourceSandbox:
    """Two children, each started when it is first needed: one for local files, without network and unable to write;
    one for sources behind URLs, whose clients need the network and a folder for temporary files."""

    def __init__(self, memory_mb: int) -> None:
        self._local, self._remote = Sandbox(memory_mb, confined=True), Sandbox(memory_mb)

    def call(self, uri: str, function: Callable[..., Result], *args: object, deadline: float) -> Result:
        """`function(*args)`, which reads the source `uri`, within `deadline` seconds. Raises as Sandbox.call does."""
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
    """Whether a source is a file of this machine, or a member of a tar that is."""
    return os.path.isabs(uri.removeprefix("file://"))
