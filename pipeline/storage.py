"""Where bytes lie: local folders and object stores behind the few operations that a build needs.

Writes appear under their final name at once and whole: locally by a temporary name, fsync and rename; on an object
store because an upload becomes visible when it is complete.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pyarrow import fs

REMOTE = ("s3://", "gs://", "gcs://", "az://", "abfs://", "abfss://")


class StorageError(ValueError):
    """A place that cannot be used; the message says why."""


class Store:
    """A folder, local or on an object store, addressed by names with forward slashes.

    Raises OSError with the file's name where something cannot be read or written. Credentials come from the usual
    chains of each provider and are never kept.
    """

    def __init__(self, uri: str) -> None:
        if uri.startswith(REMOTE) and "@" in uri.split("://")[1].split("/")[0]:
            raise StorageError("credentials in a URL end up in tables: put them into the environment instead")
        self.uri = uri.rstrip("/") or "/"
        self.local = None if uri.startswith(REMOTE) else Path(uri.removeprefix("file://")).absolute()
        self._remote: tuple[fs.FileSystem, str] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"uri": self.uri, "local": self.local, "_remote": None}

    def path(self, name: str) -> str:
        """What names `name` outside of this store: a local path or a URL."""
        if self.local:
            return str(self.local / name)
        folder, mark, options = self.uri.partition("?")
        return f"{folder.rstrip('/')}/{name}{mark}{options}"

    def read(self, name: str) -> bytes:
        if self.local:
            return (self.local / name).read_bytes()
        with self._fs.open_input_file(self._key(name)) as file:
            return bytes(file.read())

    def open(self, name: str) -> BinaryIO:
        """A seekable reader; on an object store it reads by ranges."""
        if self.local:
            return open(self.local / name, "rb")
        return buffered(self._fs.open_input_file(self._key(name)))

    def write(self, name: str, data: bytes) -> None:
        if self.local:
            with atomic(self.local / name) as temporary:
                temporary.write_bytes(data)
            return
        with self._fs.open_output_stream(self._key(name)) as file:
            file.write(data)

    def list(self, folder: str, suffix: str = "") -> list[str]:
        """Names of the files at any depth below `folder`, sorted; empty where there is no such folder. Temporary
        files are left out."""
        if self.local:
            base = self.local / folder
            names = [p.relative_to(self.local).as_posix() for p in base.rglob("*") if p.is_file()]
        else:
            names = [name for name, _, _ in self.stat(folder)]
        return sorted(n for n in names if n.endswith(suffix) and not n.rsplit("/", 1)[-1].startswith("."))

    def stat(self, folder: str = "") -> Iterator[tuple[str, int, str]]:
        """(name, bytes, stamp) of every file at any depth below `folder`, in order of name; the stamp changes when
        the file does."""
        if self.local:
            for name in self.list(folder):
                info = (self.local / name).stat()
                yield name, info.st_size, str(info.st_mtime_ns)
            return
        prefix = self._key("")
        selector = fs.FileSelector(self._key(folder), recursive=True, allow_not_found=True)
        for entry in sorted(self._fs.get_file_info(selector), key=lambda info: info.path):
            if entry.type == fs.FileType.File:
                yield entry.path[len(prefix) :].lstrip("/"), entry.size, f"{entry.size}:{entry.mtime_ns}"

    def info(self, name: str) -> tuple[int, str] | None:
        """Bytes and stamp of one file; None where there is none."""
        if self.local:
            path = self.local / name
            return (path.stat().st_size, str(path.stat().st_mtime_ns)) if path.is_file() else None
        entry = self._fs.get_file_info(self._key(name))
        return (entry.size, f"{entry.size}:{entry.mtime_ns}") if entry.type == fs.FileType.File else None

    def exists(self, name: str) -> bool:
        if self.local:
            return (self.local / name).exists()
        return self._fs.get_file_info(self._key(name)).type != fs.FileType.NotFound

    def delete(self, name: str) -> None:
        """No error where there is no such file."""
        if self.local:
            (self.local / name).unlink(missing_ok=True)
        elif self.exists(name):
            self._fs.delete_file(self._key(name))

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A local folder to write finished files into; on leaving, they are under `name` in this store."""
        if self.local:
            target = self.local / name
            target.mkdir(parents=True, exist_ok=True)
            yield target
            return
        with tempfile.TemporaryDirectory(prefix="clipmill-") as scratch:
            yield Path(scratch)
            for file in sorted(p for p in Path(scratch).rglob("*") if p.is_file()):
                relative = file.relative_to(scratch).as_posix()
                key = self._key(f"{name}/{relative}" if name else relative)
                with open(file, "rb") as source, self._fs.open_output_stream(key) as sink:
                    while chunk := source.read(8 << 20):
                        sink.write(chunk)

    @property
    def _fs(self) -> fs.FileSystem:
        if self._remote is None:
            self._remote = fs.FileSystem.from_uri(self.uri)
        return self._remote[0]

    def _key(self, name: str) -> str:
        _ = self._fs
        assert self._remote is not None
        return f"{self._remote[1].rstrip('/')}/{name}".rstrip("/")


def locate(url: str) -> tuple[Store, str]:
    """The store that holds a file on an object store, and the file's name in it."""
    path, mark, options = url.partition("?")
    folder, _, name = path.rpartition("/")
    return Store(f"{folder}{mark}{options}"), name


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the final name on success and goes away on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def buffered(file: object) -> BinaryIO:
    """A reader with a megabyte of look-ahead over a pyarrow or fsspec file, so that small reads make few requests."""
    return io.BufferedReader(file, buffer_size=1 << 20)  # type: ignore[type-var]
