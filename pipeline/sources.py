"""Sources: what the user names on the command line, turned into videos that can be opened.

A source is named by a folder, a file, a glob, a list with metadata (CSV, JSONL, Parquet), a tar of videos, or a URL.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
import pyarrow.parquet as pq

from pipeline import canaries
from pipeline.storage import REMOTE, Store, buffered, locate

VIDEOS = frozenset(
    ".3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv .y4m".split()  # noqa: SIM905
)
IMAGES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))
LISTS = frozenset((".csv", ".jsonl", ".ndjson", ".parquet"))
URI_COLUMNS = ("uri", "url", "path", "video", "file", "video_path", "source_uri")
MEMBER = "#"  # archive.tar#folder/clip.mp4


class SourceError(ValueError):
    """Input that no build can start from; the message says which and why."""


@dataclass(frozen=True)
class Source:
    """One video or image. `source_id` is a hash of its content; `metadata` is what the user's list says of it."""

    source_id: str
    uri: str
    size: int = 0  # bytes
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A file that may be a source: not opened yet. `stamp` changes when the file does (time of change, or ETag)."""

    uri: str
    size: int
    stamp: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    named: bool = True  # by the user; False where it merely lies in a folder that the user named

    @property
    def worth_opening(self) -> bool:
        return self.named or suffix(self.uri) in VIDEOS | IMAGES


def discover(inputs: Sequence[str]) -> list[Found]:
    """Every file that the inputs name, sorted by URI, each once. Raises SourceError for an input that is not there,
    and where nothing is found at all."""
    found: dict[str, Found] = {}
    for text in inputs:
        there = list(_expand(text))
        if not there:
            raise SourceError(f"{text}: nothing found there")
        for item in there:
            found.setdefault(item.uri, item)
    if not found:
        raise SourceError("no sources: name a folder, a file, a list (.csv, .jsonl, .parquet), a .tar or a URL")
    return [found[uri] for uri in sorted(found)]


def open_media(uri: str) -> str | BinaryIO:
    """What a decoder opens: a local path, or a seekable binary file for a URL or a member of a tar. Raises OSError."""
    archive, member = split_member(uri)
    if member:
        return _open_member(archive, member)
    if uri.startswith(canaries.SCHEME):
        return io.BytesIO(canaries.video(uri.removeprefix(canaries.SCHEME)))
    if uri.startswith(REMOTE):
        store, name = locate(uri)
        return store.open(name)
    if "://" in uri and not uri.startswith("file://"):
        return fsspec.open(uri, "rb").open()
    return uri.removeprefix("file://")


def content_id(uri: str) -> str:
    """32 hex digits: SHA-256 of the bytes behind `uri`, read in pieces. Raises OSError."""
    opened = open_media(uri)
    digest = hashlib.sha256()
    with open(opened, "rb") if isinstance(opened, str) else opened as file:
        while chunk := file.read(4 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:32]


def suffix(uri: str) -> str:
    """The file name's ending in lower case, with its dot: of the member for a tar, without a URL's query."""
    archive, member = split_member(uri)
    return PurePosixPath((member or archive).split("?")[0]).suffix.lower()


def split_member(uri: str) -> tuple[str, str]:
    """(archive, member) of "a.tar#b.mp4"; (uri, "") of anything else."""
    archive, mark, member = uri.partition(f".tar{MEMBER}")
    return (f"{archive}.tar", member) if mark else (uri, "")


def _expand(text: str) -> Iterator[Found]:
    if text.startswith(canaries.SCHEME):
        yield Found(text, 0, str(canaries.VERSION))
        return
    if text.startswith(REMOTE):
        yield from _expand_store(text)
    elif "://" in text and not text.startswith("file://"):
        yield from _expand_url(text, {})
    else:
        yield from _expand_local(text.removeprefix("file://"))


def _expand_local(text: str) -> Iterator[Found]:
    path = Path(text).expanduser()
    if path.is_dir():
        for folder, names, files in os.walk(path):
            names[:] = sorted(n for n in names if not n.startswith("."))
            for name in sorted(files):
                if not name.startswith("."):
                    yield from _expand_file(Path(folder) / name, in_folder=True)
    elif path.is_file():
        yield from _expand_file(path, in_folder=False)
    elif glob.has_magic(text):
        for name in sorted(glob.glob(str(path), recursive=True)):
            yield from _expand_local(name)
    else:
        raise SourceError(f"{text}: no such file or folder")


def _expand_file(path: Path, in_folder: bool) -> Iterator[Found]:
    if path.suffix.lower() == ".tar":
        yield from _members(str(path), open(path, "rb"))
    elif path.suffix.lower() in LISTS and not in_folder:
        yield from _listed(str(path), path.read_bytes(), base=str(path.parent))
    else:
        yield _local(path, {}, named=not in_folder)


def _local(path: Path, metadata: Mapping[str, Any], named: bool = True) -> Found:
    """Absolute, so that a row means the same wherever the build is started; missing files are kept for their row."""
    path = path.absolute()
    try:
        stat = path.stat()
    except OSError:
        return Found(str(path), -1, "missing", metadata, named)
    return Found(str(path), stat.st_size, str(stat.st_mtime_ns), metadata, named)


def _expand_store(text: str) -> Iterator[Found]:
    kind = suffix(text.rstrip("/"))
    if kind in LISTS:
        store, name = locate(text)
        yield from _listed(text, store.read(name), base=store.path(""))
    elif kind == ".tar":
        store, name = locate(text)
        yield from _members(text, store.open(name))
    elif kind in VIDEOS | IMAGES:
        yield _stored(text, {})
    else:
        store = Store(text)
        for name, size, stamp in store.stat():
            yield Found(store.path(name), size, stamp, named=False)


def _stored(url: str, metadata: Mapping[str, Any]) -> Found:
    store, name = locate(url)
    size, stamp = store.info(name) or (-1, "missing")
    return Found(url, size, stamp, metadata)


def _expand_url(text: str, metadata: Mapping[str, Any]) -> Iterator[Found]:
    kind = suffix(text)
    if kind in LISTS:
        with fsspec.open(text, "rb") as file:
            yield from _listed(text, file.read(), base=text.rpartition("/")[0])
        return
    try:
        filesystem, path = fsspec.core.url_to_fs(text)
        info = filesystem.info(path)
    except FileNotFoundError:
        yield Found(text, -1, "missing", metadata)
        return
    stamp = str(info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("size"))
    yield Found(text, int(info.get("size") or 0), stamp, metadata)


def _listed(name: str, data: bytes, base: str) -> Iterator[Found]:
    """The rows of a list. Relative paths are meant from the list's own folder."""
    for number, row in enumerate(_rows(name, data), start=1):
        uri = next((str(row[c]) for c in URI_COLUMNS if row.get(c)), None)
        if uri is None:
            raise SourceError(f"{name}, row {number}: no column of {', '.join(URI_COLUMNS)} names the video")
        metadata = {k: v for k, v in row.items() if v is not None and str(row.get(k)) != uri}
        if uri.startswith(REMOTE):
            yield _stored(uri, metadata)
        elif base.startswith(REMOTE):
            yield _stored(Store(base).path(uri), metadata)
        elif "://" in uri and not uri.startswith("file://"):
            yield from _expand_url(uri, metadata)
        elif "://" in base:
            yield from _expand(f"{base}/{uri}")
        else:
            yield _local(Path(base) / uri.removeprefix("file://"), metadata)


def _rows(name: str, data: bytes) -> Iterable[dict[str, Any]]:
    kind = suffix(name)
    try:
        if kind == ".parquet":
            return pq.read_table(io.BytesIO(data)).to_pylist()
        text = data.decode("utf-8-sig")
        if kind == ".csv":
            return list(csv.DictReader(io.StringIO(text)))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, OSError) as error:
        raise SourceError(f"{name} cannot be read as {kind[1:].upper()}: {error}") from error


def _members(uri: str, file: BinaryIO) -> Iterator[Found]:
    """Videos and images of a WebDataset tar; the .json and .txt of the same key become metadata."""
    media: list[tuple[tarfile.TarInfo, str]] = []
    beside: dict[str, dict[str, Any]] = {}
    try:
        with file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, kind = _webdataset_key(member.name)
                if kind in VIDEOS | IMAGES:
                    media.append((member, key))
                elif kind in (".json", ".txt") and member.size < 1 << 20:
                    content = tar.extractfile(member)
                    beside.setdefault(key, {}).update(_sidecar(kind, content.read() if content else b""))
    except tarfile.TarError as error:
        raise SourceError(f"{uri} is not a readable tar: {error}") from error
    name = uri if "://" in uri else str(Path(uri).absolute())
    for member, key in media:
        stamp = f"{member.offset_data}:{member.mtime}"
        yield Found(f"{name}{MEMBER}{member.name}", member.size, stamp, beside.get(key, {}))


def _webdataset_key(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key is the path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{ending}".lower()


def _sidecar(kind: str, data: bytes) -> dict[str, Any]:
    if kind == ".txt":
        return {"text": data.decode("utf-8", "replace")}
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {"json": value}


def _open_member(archive: str, member: str) -> BinaryIO:
    opened = open_media(archive)
    file = open(opened, "rb") if isinstance(opened, str) else opened
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            info = tar.getmember(member)
    except (tarfile.TarError, KeyError) as error:
        file.close()
        raise FileNotFoundError(f"no member {member!r} in {archive}") from error
    return buffered(_Window(file, info.offset_data, info.size))


class _Window(io.RawIOBase):
    """`size` bytes of `file` from `offset` as a file of their own."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._offset + self._at)
        data = self._file.read(min(len(buffer), max(0, self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
