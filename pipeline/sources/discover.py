"""Sources: what the user names on the command line, turned into videos that can be opened.

A source is named by a folder, a file, a glob, a list with metadata (CSV, JSONL, Parquet), a tar of videos, a URL, or
ytdlp:URL for the videos of a page.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec

from pipeline.config.recipe import SourceOptions
from pipeline.sources import canaries, http
from pipeline.sources.downloads import YTDLP, look_at_page, open_page
from pipeline.sources.lists import list_rows, members
from pipeline.storage.store import PIECE, REMOTE, Store, Unreachable, locate, ranged, refuse_secrets

VIDEOS = frozenset(
    ".3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv .y4m".split()  # noqa: SIM905
)
IMAGES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))
LISTS = frozenset((".csv", ".jsonl", ".ndjson", ".parquet"))
URI_COLUMNS = ("uri", "url", "path", "video", "file", "video_path", "source_uri")
MEMBER = "#"  # archive.tar#folder/clip.mp4
WEB = ("http://", "https://")
UNSEEN = "unseen"  # the stamp of a file that no server was asked for yet
LOOKS = 32  # servers that are asked at once
SAMPLES, SAMPLE = 16, 256 << 10  # pieces of a file, and bytes of each, that `identity: sampled` reads


class SourceError(ValueError):
    """Input that no build can start from; the message says which and why."""


@dataclass(frozen=True)
class Source:
    """One video or image. `source_id` is a hash of its content."""

    source_id: str
    uri: str


@dataclass(frozen=True, slots=True)
class DiscoveredFile:
    """A file that may be a source: not opened yet. `stamp` changes when the file does (time of change, or ETag); where
    it cannot be used, `size` is -1 and `stamp` says why."""

    uri: str
    size: int
    stamp: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    named: bool = True  # by the user; False where it merely lies in a folder that the user named

    @property
    def worth_opening(self) -> bool:
        return self.named or suffix(self.uri) in VIDEOS | IMAGES


def discover(inputs: Sequence[str], options: SourceOptions | None = None) -> list[DiscoveredFile]:
    """Every file that the inputs name, sorted by URI, each once. Raises SourceError for an input that is not there,
    and where nothing is found at all."""
    found: dict[str, DiscoveredFile] = {}
    for text in inputs:
        there = list(_looked(list(_expand(text)), options or SourceOptions()))
        if not there:
            raise SourceError(f"{text}: nothing found there")
        for item in there:
            found.setdefault(item.uri, item)
    if not found:
        raise SourceError("no sources: name a folder, a file, a list (.csv, .jsonl, .parquet), a .tar or a URL")
    there = [found[uri] for uri in sorted(found)]
    if options is None or options.identity == "whole":
        return there
    # known in another way, so not the file that an earlier build has identified
    return [
        item
        if item.size == -1 or item.stamp == http.SILENT
        else replace(item, stamp=f"{item.stamp} {options.identity}")
        for item in there
    ]


def open_media(uri: str, options: SourceOptions | None = None) -> str | BinaryIO:
    """What a decoder opens: a local path, or a seekable binary file for a URL or a member of a tar. Raises OSError,
    or Unreachable where another try later may do."""
    archive, member = split_member(uri)
    if member:
        return _open_member(archive, member, options or SourceOptions())
    if uri.startswith(canaries.SCHEME):
        return io.BytesIO(canaries.video(uri.removeprefix(canaries.SCHEME)))
    if uri.startswith(REMOTE):
        store, name = locate(uri)
        return store.open(name)
    if uri.startswith(WEB):
        return http.open_url(uri, options or SourceOptions())
    if uri.startswith(YTDLP):
        return open_page(uri, options or SourceOptions())
    if "://" in uri and not uri.startswith("file://"):
        return fsspec.open(uri, "rb").open()
    return uri.removeprefix("file://")


def open_file(uri: str, options: SourceOptions | None = None) -> BinaryIO:
    """The same, always as a file."""
    opened = open_media(uri, options)
    return open(opened, "rb") if isinstance(opened, str) else opened


def content_id(uri: str, options: SourceOptions | None = None) -> str:
    """32 hex digits: SHA-256 of the bytes behind `uri`; with `identity: sampled`, of the size and `SAMPLES` pieces from
    the first to the last of a file that is larger than those. Raises OSError."""
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


def suffix(uri: str) -> str:
    """The file name's ending in lower case, with its dot: of the member for a tar, without a URL's query."""
    archive, member = split_member(uri)
    return PurePosixPath((member or archive).split("?")[0]).suffix.lower()


def split_member(uri: str) -> tuple[str, str]:
    """(archive, member) of "a.tar#b.mp4"; (uri, "") of anything else."""
    archive, mark, member = uri.partition(f".tar{MEMBER}")
    return (f"{archive}.tar", member) if mark else (uri, "")


def _expand(text: str) -> Iterator[DiscoveredFile]:
    refuse_secrets(text)
    if text.startswith(canaries.SCHEME):
        yield DiscoveredFile(text, 0, str(canaries.VERSION))
    elif "://" in text and not text.startswith("file://"):
        yield from _expand_url(text)
    else:
        yield from _expand_local(text.removeprefix("file://"))


def _expand_local(text: str) -> Iterator[DiscoveredFile]:
    path = Path(text).expanduser()
    if text.startswith(YTDLP):
        yield DiscoveredFile(text, 0, UNSEEN)
    elif path.is_dir():
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


def _expand_file(path: Path, in_folder: bool) -> Iterator[DiscoveredFile]:
    if path.suffix.lower() == ".tar":
        yield from _members(str(path), open(path, "rb"))
    elif path.suffix.lower() in LISTS and not in_folder:
        yield from _listed(str(path), path.read_bytes())
    else:
        yield _local(path, {}, named=not in_folder)


def _local(path: Path, metadata: Mapping[str, Any], named: bool = True) -> DiscoveredFile:
    """Absolute, so that a row means the same wherever the build is started; missing files are kept for their row."""
    path = path.absolute()
    try:
        stat = path.stat()
    except OSError:
        return DiscoveredFile(str(path), -1, "no such file", metadata, named)
    return DiscoveredFile(str(path), stat.st_size, str(stat.st_mtime_ns), metadata, named)


def _expand_url(text: str) -> Iterator[DiscoveredFile]:
    kind = suffix(text.rstrip("/"))
    if kind in LISTS:
        with open_file(text) as file:
            yield from _listed(text, file.read())
    elif kind == ".tar":
        yield from _members(text, open_file(text))
    elif text.startswith(REMOTE) and kind not in VIDEOS | IMAGES:
        store = Store(text)
        for name, size, stamp in store.stat():
            if suffix(name) == ".tar":
                yield from _members(store.path(name), store.open(name))
            else:
                yield DiscoveredFile(store.path(name), size, stamp, named=False)
    else:
        yield _at(text, {})


def _at(uri: str, metadata: Mapping[str, Any]) -> DiscoveredFile:
    """A file that is named by its URL. Those of the web are not looked at yet."""
    if uri.startswith(REMOTE):
        store, name = locate(uri)
        size, stamp = store.info(name) or (-1, "no such file")
        return DiscoveredFile(uri, size, stamp, metadata)
    return DiscoveredFile(uri, 0, UNSEEN, metadata)


def _looked(found: Sequence[DiscoveredFile], options: SourceOptions) -> Iterator[DiscoveredFile]:
    """`found`, with what the servers of the unseen say of them; several at a time."""

    def look(item: DiscoveredFile) -> list[DiscoveredFile]:
        if item.stamp != UNSEEN:
            return [item]
        if item.uri.startswith(YTDLP):
            return _pages(item, options)
        size, stamp = http.look(item.uri, options) if item.uri.startswith(WEB) else _look_elsewhere(item.uri)
        return [replace(item, size=size, stamp=stamp)]

    with ThreadPoolExecutor(LOOKS) as pool:
        for items in pool.map(look, found):
            yield from items


def _pages(item: DiscoveredFile, options: SourceOptions) -> list[DiscoveredFile]:
    try:
        videos = look_at_page(item.uri, options)
    except Unreachable:
        return [replace(item, size=0, stamp=http.SILENT)]
    except OSError as error:
        return [replace(item, size=-1, stamp=str(error))]
    return [replace(item, uri=uri, stamp=YTDLP, metadata={**said, **item.metadata}) for uri, said in videos]


def _look_elsewhere(uri: str) -> tuple[int, str]:
    """Size and stamp of a file behind any other protocol that fsspec knows; (-1, why) where there is none."""
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        info = filesystem.info(path)
    except FileNotFoundError:
        return -1, "no such file"
    except (OSError, ValueError, ImportError) as error:
        return -1, str(error)
    stamp = next((info[key] for key in ("ETag", "etag", "mtime", "created") if info.get(key)), info.get("size"))
    return int(info.get("size") or 0), str(stamp)


def _listed(name: str, data: bytes) -> Iterator[DiscoveredFile]:
    """The rows of a list. Relative paths are meant from the list's own folder."""
    path, *query = name.partition("?")
    try:
        rows = list_rows(suffix(name), data)
    except ValueError as error:
        raise SourceError(f"{name} cannot be read as {suffix(name)[1:].upper()}: {error}") from error
    for number, row in enumerate(rows, start=1):
        uri = next((str(row[c]) for c in URI_COLUMNS if row.get(c)), None)
        if uri is None:
            raise SourceError(f"{name}, row {number}: no column of {', '.join(URI_COLUMNS)} names the video")
        refuse_secrets(uri)
        metadata = {k: v for k, v in row.items() if v is not None and str(v) != uri}
        if "://" in uri and not uri.startswith("file://"):
            yield _at(uri, metadata)
        elif "://" in name:
            yield _at(f"{path.rpartition('/')[0]}/{uri}{''.join(query)}", metadata)
        else:
            yield _local(Path(name).parent / uri.removeprefix("file://"), metadata)


def _members(uri: str, file: BinaryIO) -> Iterator[DiscoveredFile]:
    name = uri if "://" in uri else str(Path(uri).absolute())
    try:
        for member, metadata in members(file, VIDEOS | IMAGES):
            stamp = f"{member.offset_data}:{member.mtime}"
            yield DiscoveredFile(f"{name}{MEMBER}{member.name}", member.size, stamp, metadata)
    except tarfile.TarError as error:
        raise SourceError(f"{uri} is not a readable tar: {error}") from error


def _open_member(archive: str, member: str, options: SourceOptions) -> BinaryIO:
    where = _index(archive, options).get(member)
    if where is None:
        raise FileNotFoundError(f"no member {member!r} in {archive}")
    (offset, size), file = where, open_file(archive, options)

    def fetch(count: int, at: int) -> bytes:
        file.seek(offset + at)
        return file.read(count)

    return ranged(size, fetch)


@functools.lru_cache(maxsize=64)
def _index(archive: str, options: SourceOptions) -> dict[str, tuple[int, int]]:
    """Offset and size of every member; kept, because a tar is read through for it."""
    try:
        with open_file(archive, options) as file, tarfile.open(fileobj=file) as tar:
            return {member.name: (member.offset_data, member.size) for member in tar}
    except tarfile.TarError as error:
        raise FileNotFoundError(f"{archive} is not a readable tar: {error}") from error
