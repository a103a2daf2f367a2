"""Files behind other protocols of fsspec: hf:// for datasets of the Hugging Face Hub, sftp:// and others.

The Hub's token comes from the environment variable HF_TOKEN or from `hf auth login`, and its address from HF_ENDPOINT.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from pipeline.config.secrets import redact
from pipeline.sources.discovered import DiscoveredFile
from pipeline.storage.store import Unreachable, ranged

HUB = "hf://"


def open_uri(uri: str) -> BinaryIO:
    """Open a file for reading. Raises OSError; Unreachable where a retry may succeed."""
    if not uri.startswith(HUB):
        import fsspec  # here and below because it takes long, in every process that decodes

        return fsspec.open(uri, "rb").open()
    with _hub_errors():
        filesystem, path = _filesystem(uri)
        file = filesystem.open(path, "rb", cache_type="none")

    def fetch(count: int, offset: int) -> bytes:
        with _hub_errors():
            file.seek(offset)
            return file.read(count)

    return ranged(file.size, fetch)


def _filesystem(uri: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return url_to_fs(uri)  # type: ignore[no-any-return]


def look_at(file: DiscoveredFile) -> DiscoveredFile:
    """Return a file with its size and stamp, or with `problem` or `silent` set."""
    try:
        with _hub_errors():
            filesystem, path = _filesystem(file.uri)
            return _described(file, filesystem.info(path))
    except Unreachable:
        return replace(file, silent=True)
    except (OSError, ValueError, ImportError) as error:
        return replace(file, problem=problem_of(error))


def expand(uri: str) -> list[DiscoveredFile]:
    """Return the files of a folder of the Hub at any depth, or those that match a glob, without hidden ones. Raises
    OSError, ValueError or ImportError where they cannot be listed."""
    with _hub_errors():
        filesystem, path = _filesystem(uri)
        entries = filesystem.glob(path, detail=True) if "*" in path else filesystem.find(path, detail=True)
    return [
        _described(DiscoveredFile(filesystem.unstrip_protocol(name), named=False), info)
        for name, info in sorted(entries.items())
        if info["type"] == "file" and not any(part.startswith(".") for part in name.split("/"))
    ]


def problem_of(error: Exception) -> str:
    """Return one line about why a file or folder cannot be used."""
    if isinstance(error, FileNotFoundError) and not error.strerror:
        return "no such file"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return redact(" ".join(text.split()))


def _described(file: DiscoveredFile, info: dict[str, Any]) -> DiscoveredFile:
    size = info.get("size")
    stamps = (info.get(key) for key in ("ETag", "etag", "blob_id", "mtime", "created"))
    stamp = next((value for value in stamps if value), size)
    return replace(file, size=None if size is None else int(size), stamp=None if stamp is None else str(stamp))


@contextlib.contextmanager
def _hub_errors() -> Iterator[None]:
    """Raise an OSError whose text is a reason instead of the Hub client's errors."""
    try:
        yield
    except Exception as error:
        cause = error if getattr(error, "response", None) is not None else error.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        gated = type(cause).__name__ == "GatedRepoError"
        if gated:
            reason = "a gated dataset: accept its terms on the Hub, and set HF_TOKEN to a token that may read it"
            raise PermissionError(13, reason) from error
        if status in (401, 403) or type(cause).__name__ == "RepositoryNotFoundError":
            reason = "no such dataset on the Hub, or a private one: set HF_TOKEN to a token that may read it"
            raise PermissionError(13, reason) from error
        # The client is httpx or httpx2, whose network errors are no OSErrors.
        if status == 429 or status >= 500 or (not status and type(error).__module__.startswith("httpx")):
            raise Unreachable(
                f"the Hub does not answer (status {status})" if status else type(error).__name__
            ) from error
        raise
