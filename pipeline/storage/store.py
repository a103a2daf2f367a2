"""Local folders and object stores behind the operations that a build needs.

Writes appear under their final name at once and whole: locally by a temporary name, fsync and rename; on an object
store because an upload becomes visible when it is complete. Requests to an object store are repeated with growing
pauses before they fail.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import random
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.config.secrets import IN_URL

REMOTE = ("s3://", "gs://", "gcs://", "az://", "abfs://", "abfss://")  # opened by Arrow; other protocols by fsspec
PIECE = 8 << 20  # bytes of the largest request, which is repeated when the connection is lost
MIN_PIECE = 256 << 10  # bytes: the smallest request
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space for a file
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each retry
S3_OPTIONS: dict[str, Callable[[str], Any]] = {  # what may follow an s3:// URL, as ?name=value
    "region": str,
    "endpoint_override": str,
    "scheme": str,
    "anonymous": lambda text: text.lower() in ("1", "true"),
    "connect_timeout": float,
    "request_timeout": float,
}


class StorageError(ValueError):
    """A path or URL that cannot be used; the message says why."""


class Unreachable(OSError):
    """A read that failed because of the network or a server, not because of the file: retry later."""


class Store:
    """A folder, local or on an object store, addressed by names with forward slashes.

    Raises OSError with the file's name where something cannot be read or written. Credentials come from the usual
    chains of each provider and are never kept.
    """

    def __init__(self, uri: str) -> None:
        refuse_secrets(uri)
        self.uri = uri.rstrip("/") or "/"
        self.local = _local(uri)

    def __getstate__(self) -> dict[str, object]:
        return {"uri": self.uri, "local": self.local}  # file systems are opened again in another process

    def path(self, name: str) -> str:
        """Return the local path or URL of the file `name`."""
        if self.local:
            return str(self.local / name)
        folder, mark, options = self.uri.partition("?")
        return f"{folder.rstrip('/')}/{name}{mark}{options}"

    def read(self, name: str) -> bytes:
        if self.local:
            return (self.local / name).read_bytes()
        with self.open(name) as file:
            return file.read()

    def open(self, name: str) -> BinaryIO:
        """Open a seekable reader; on an object store it reads ranges, and raises Unreachable where that fails."""
        if self.local:
            return open(self.local / name, "rb")
        with _reachable():
            file = self._fs.open_input_file(self._key(name))

        def fetch(count: int, offset: int) -> bytes:
            """Retry where Arrow fails at once because a server's error text is longer than the requested range."""
            for pause in PAUSES:
                try:
                    return bytes(file.read_at(count, offset))
                except OSError as error:
                    if "response stream" not in str(error):
                        raise
                    if not self.exists(name):
                        raise FileNotFoundError(errno.ENOENT, "deleted while it was read", self.path(name)) from error
                    time.sleep(pause * random.uniform(0.5, 1))
            return bytes(file.read_at(count, offset))

        return ranged(file.size(), fetch)

    def write(self, name: str, data: bytes) -> None:
        if self.local:
            with atomic(self.local / name) as temporary:
                temporary.write_bytes(data)
            return
        self._upload(name, pa.py_buffer(data))

    def _upload(self, name: str, data: pa.Buffer) -> None:
        """Write a file in one call, in a thread that Ctrl-C does not interrupt: Arrow completes an upload that an
        exception interrupts with the bytes written so far."""

        def put() -> None:
            with self._fs.open_output_stream(self._key(name)) as sink:
                sink.write(data)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(put).result()

    def list(self, folder: str, suffix: str = "") -> list[str]:
        """Return the names of the files at any depth below `folder`, sorted; empty where the folder does not exist."""
        return [name for name, _, _ in self.stat(folder) if name.endswith(suffix)]

    def stat(self, folder: str = "") -> Iterator[tuple[str, int, str]]:
        """Yield (name, bytes, stamp) of every file at any depth below `folder`, in order of name; the stamp changes
        when the file does. Temporary files are left out."""
        prefix = self._key("")
        selector = fs.FileSelector(self._key(folder), recursive=True, allow_not_found=True)
        for entry in sorted(self._fs.get_file_info(selector), key=lambda info: info.path):
            if entry.type == fs.FileType.File and not entry.base_name.startswith("."):
                yield entry.path[len(prefix) :].lstrip("/"), entry.size, f"{entry.size}:{entry.mtime_ns}"

    def info(self, name: str) -> tuple[int, str] | None:
        """Return bytes and stamp of one file; None where it does not exist."""
        entry = self._fs.get_file_info(self._key(name))
        return (entry.size, f"{entry.size}:{entry.mtime_ns}") if entry.type == fs.FileType.File else None

    def exists(self, name: str) -> bool:
        return self._fs.get_file_info(self._key(name)).type != fs.FileType.NotFound

    def delete(self, name: str) -> None:
        """Delete a file. A missing file is no error."""
        if self.local:
            (self.local / name).unlink(missing_ok=True)
        elif self.exists(name):
            self._fs.delete_file(self._key(name))

    def delete_folder(self, name: str) -> None:
        """Delete a folder and all files in it; no error where there is none."""
        if self.exists(name):
            self._fs.delete_dir(self._key(name))

    def move(self, name: str, target: str) -> None:
        """Rename a file; on an object store the server copies it."""
        if self.local:
            (self.local / target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.local / name, self.local / target)
        else:
            self._fs.copy_file(self._key(name), self._key(target))  # Azure has no move
            self._fs.delete_file(self._key(name))

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """Yield a local folder to write finished files into; on leaving they are uploaded to `name` in this store."""
        if self.local:
            target = self.local / name
            target.mkdir(parents=True, exist_ok=True)
            yield target
            return
        with tempfile.TemporaryDirectory(prefix="clipmill-") as scratch:
            yield Path(scratch)
            for file in sorted(p for p in Path(scratch).rglob("*") if p.is_file()):
                with pa.memory_map(str(file)) as mapped:
                    self._upload(f"{name}/{file.relative_to(scratch).as_posix()}".lstrip("/"), mapped.read_buffer())

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to `path`, atomically."""
        with self.open(name) as source, atomic(path) as target, open(target, "wb") as sink:
            shutil.copyfileobj(source, sink, PIECE)

    @contextlib.contextmanager
    def fetched(self, folder: str) -> Iterator[Store]:
        """Yield a local store with the files of `folder`, for repeated reading: a copy, or this store if it is
        local."""
        if self.local:
            yield self
            return
        with tempfile.TemporaryDirectory(prefix="clipmill-") as scratch:
            for name in self.list(folder):
                self.fetch(name, Path(scratch, name))
            yield Store(scratch)

    @functools.cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        return filesystem(self.uri)

    @property
    def _fs(self) -> fs.FileSystem:
        return self._opened[0]

    def _key(self, name: str) -> str:
        return f"{self._opened[1].rstrip('/')}/{name}".rstrip("/")


def locate(url: str) -> tuple[Store, str]:
    """Split the URL of a file into its store and its name in that store."""
    path, mark, options = url.partition("?")
    folder, _, name = path.rpartition("/")
    return Store(f"{folder}{mark}{options}"), name


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to. It is renamed to `path` on success and deleted on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    try:
        with naming_full(path):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming_full(path: Path | str) -> Iterator[None]:
    """Name `path` in the OSError of a disk that is full: that of a failed write names no file."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


def temporary_name(name: str) -> str:
    """Return a hidden name for `name` while it is written, unique on a shared file system, at most 255 bytes long."""
    host = re.sub(r"[^A-Za-z0-9-]", "", socket.gethostname())[:32]
    suffix = f".{host}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    stem = name.encode()[: 254 - len(suffix)].decode(errors="ignore")
    return f".{stem}{suffix}"


def remove_abandoned(folder: Path) -> None:
    """Delete temporary files that killed processes left, at any depth. Call it only as the one writer of `folder`."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def ranged(size: int, fetch: Callable[[int, int], bytes]) -> BinaryIO:
    """Return a seekable file of `size` bytes, read by `fetch(count, offset)`; sequential requests double up to
    PIECE."""
    return io.BufferedReader(_Ranged(size, fetch))  # type: ignore[type-var]


class _Ranged(io.RawIOBase):
    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size, self._fetch, self._at = size, fetch, 0
        self._piece, self._from, self._next = b"", 0, MIN_PIECE

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readall(self) -> bytes:
        pieces = []
        while piece := self.read(PIECE):
            pieces.append(piece)
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        if not self._from <= self._at < self._from + len(self._piece):
            in_order = self._at == self._from + len(self._piece)
            self._next = min(2 * self._next, PIECE) if in_order else MIN_PIECE
            count = min(max(min(len(buffer), PIECE), self._next), max(0, self._size - self._at))
            with _reachable():
                self._piece = self._fetch(count, self._at) if count else b""
            self._from = self._at
        data = self._piece[self._at - self._from :][: len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextlib.contextmanager
def _reachable() -> Iterator[None]:
    """Turn Arrow's network and server errors, which have no errno, into Unreachable."""
    try:
        yield
    except OSError as error:
        if error.errno is None and not isinstance(error, (Unreachable, FileNotFoundError)):
            raise Unreachable(f"could not be read ({str(error).splitlines()[0][:200]})") from error
        raise


def refuse_secrets(uri: str) -> None:
    """Raise StorageError for a URL with a password or key in it: URLs are written to tables."""
    if "://" in uri and IN_URL.search(uri):
        raise StorageError(f"{urlsplit(uri).hostname}: tables show URLs: put credentials into the environment instead")


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URL and the path in it. Raises StorageError for a missing or an unknown option."""
    if path := _local(uri):
        return fs.LocalFileSystem(), str(path)
    url = urlsplit(uri)
    if url.scheme == "s3":
        given = dict(parse_qsl(url.query))
        if unknown := given.keys() - S3_OPTIONS.keys():
            raise StorageError(f"{uri}: unknown option {min(unknown)!r}; there are {', '.join(S3_OPTIONS)}")
        options = {"connect_timeout": 10.0, "request_timeout": 20.0}
        options |= {name: S3_OPTIONS[name](value) for name, value in given.items()}
        if not {"region", "endpoint_override"} & options.keys():
            options["region"] = fs.resolve_s3_region(url.netloc)
        patient = fs.AwsStandardS3RetryStrategy(max_attempts=8)  # about 50 s, growing, with jitter
        return fs.S3FileSystem(retry_strategy=patient, allow_delayed_open=True, **options), url.netloc + url.path
    try:
        if not uri.startswith(REMOTE):
            from fsspec.core import url_to_fs  # takes long

            other, key = url_to_fs(uri)
            return fs.PyFileSystem(fs.FSSpecHandler(other)), key
        if url.scheme == "az" and "@" not in url.netloc:  # az://container/path, as fsspec writes it
            return fs.AzureFileSystem(os.environ["AZURE_STORAGE_ACCOUNT_NAME"]), url.netloc + url.path
        return fs.FileSystem.from_uri(re.sub("^az:", "abfs:", uri))
    except KeyError as error:
        raise StorageError(f"{uri}: set AZURE_STORAGE_ACCOUNT_NAME, or write az://CONTAINER@ACCOUNT/...") from error
    except (pa.ArrowInvalid, ImportError, ValueError) as error:
        raise StorageError(f"{uri}: {error}") from error


def _local(uri: str) -> Path | None:
    """Return the folder of a path or a file:// URL; None for other URLs."""
    return None if "://" in uri.removeprefix("file://") else Path(uri.removeprefix("file://")).absolute()
