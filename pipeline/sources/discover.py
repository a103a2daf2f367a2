"""Discover sources: expand what the user names into files, and open them.

A source is named by a folder, a file, a glob, a list with metadata (CSV, JSONL, Parquet), a tar or a Parquet file of
videos, a URL, hf://datasets/OWNER/NAME/PATH, or ytdlp:URL for the videos of a page.
"""

from __future__ import annotations

import functools
import glob
import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from pipeline.config.recipe import SourceOptions
from pipeline.config.secrets import redact
from pipeline.sources import filesystems
from pipeline.sources.addresses import WEB, AddressRefused, check_host, check_scheme
from pipeline.sources.cookies import read_cookies
from pipeline.sources.discovered import IMAGES, MEMBER, VIDEOS, DiscoveredFile, local_file, split_member, suffix
from pipeline.sources.downloads import YTDLP, look_at_page, open_page
from pipeline.sources.lists import list_rows, member_offsets, members
from pipeline.sources.names import clean, from_text, printable, to_text, url_text
from pipeline.sources.parquet_videos import VideoRows, video_column, video_rows
from pipeline.storage.store import (
    REMOTE,
    StorageError,
    Store,
    Unreachable,
    locate,
    ranged,
    refuse_secrets,
)

LISTS = frozenset((".csv", ".jsonl", ".ndjson", ".parquet"))
URI_COLUMNS = ("uri", "url", "path", "video", "file", "video_path", "source_uri")
LOOKS = 32  # concurrent requests for size and stamp


class SourceError(ValueError):
    """Input that no build can start from; the message says which and why."""


@dataclass(frozen=True)
class Source:
    """One video or image. `source_id` is a hash of its content."""

    source_id: str
    uri: str


def discover(inputs: Sequence[str], options: SourceOptions | None = None) -> list[DiscoveredFile]:
    """Return every file that the inputs name, each once, sorted by URI. Raises SourceError for an input that does not
    exist, and where there is no file at all."""
    options = options or SourceOptions()
    try:
        if options.cookies:
            read_cookies(options.cookies)
    except ValueError as error:
        raise SourceError(str(error)) from error
    files: dict[str, DiscoveredFile] = {}
    for text in inputs:
        expanded = list(_looked(list(_expand(text, options)), options))
        if not expanded:
            raise SourceError(f"{printable(text)}: nothing found there")
        for file in expanded:
            files.setdefault(file.uri, file)
    if not files:
        raise SourceError("no sources: name a folder, a file, a list (.csv, .jsonl, .parquet), a .tar or a URL")
    ordered = [files[uri] for uri in sorted(files)]
    if options.identity == "whole":
        return ordered
    # A change of `identity` must identify every file again, so the stamp names it.
    return [
        file if file.problem or file.silent else replace(file, stamp=f"{file.stamp or ''} {options.identity}".strip())
        for file in ordered
    ]


def open_media(uri: str, options: SourceOptions | None = None) -> str | BinaryIO:
    """Return what a decoder opens: a local path, or a seekable binary file for a URL or a member of a tar. Raises
    OSError; Unreachable, one of its subclasses, where a retry may succeed."""
    options = options or SourceOptions()
    archive, member = split_member(uri)
    if member:
        return _open_member(archive, member, options)
    if uri.startswith(WEB):
        from pipeline.sources import http  # requests, which takes long to import in every process that decodes

        return http.open_url(uri, options)
    if not uri.startswith(YTDLP) and not _is_url(uri):
        return from_text(uri.removeprefix("file://"))
    try:
        if uri.startswith(YTDLP):
            check_host(urlsplit(uri.removeprefix(YTDLP)).hostname, options.allow_private)
            return open_page(uri, options)
        if uri.startswith(REMOTE):
            store, name = locate(uri)
            return store.open(name)
        check_scheme(uri, options.allow_private)
    except AddressRefused as error:
        raise PermissionError(13, str(error), uri) from error
    return filesystems.open_uri(uri)


def open_file(uri: str, options: SourceOptions | None = None) -> BinaryIO:
    """Open a source for reading, like `open_media`, but always as a file."""
    opened = open_media(uri, options)
    return open(opened, "rb") if isinstance(opened, str) else opened


def _is_url(text: str) -> bool:
    return "://" in text and not text.startswith("file://")


def _expand(text: str, options: SourceOptions) -> Iterator[DiscoveredFile]:
    refuse_secrets(text)
    if _is_url(text):
        yield from _expand_url(text, options)
    else:
        yield from _expand_local(text.removeprefix("file://"), options)


def _expand_local(text: str, options: SourceOptions) -> Iterator[DiscoveredFile]:
    path = Path(text).expanduser()
    if text.startswith(YTDLP):
        yield DiscoveredFile(url_text(text))
    elif path.is_dir():
        unreadable: list[OSError] = []
        for folder, names, files in os.walk(path, onerror=unreadable.append):
            names[:] = sorted(n for n in names if not n.startswith("."))
            for name in sorted(files):
                if not name.startswith("."):
                    yield from _expand_file(Path(folder) / name, options, in_folder=True)
        for error in unreadable:
            problem = f"the folder cannot be read: {(error.strerror or str(error)).lower()}"
            yield DiscoveredFile(to_text(str(Path(error.filename).absolute())), problem=problem)
    elif path.is_file():
        yield from _expand_file(path, options, in_folder=False)
    elif glob.has_magic(text):
        for name in sorted(glob.glob(str(path), recursive=True)):
            yield from _expand_local(name, options)
    else:
        raise SourceError(f"{printable(text)}: no such file or folder")


def _expand_file(path: Path, options: SourceOptions, in_folder: bool) -> Iterator[DiscoveredFile]:
    ending = path.suffix.lower()
    if ending == ".tar" or (ending == ".parquet" and os.access(path, os.R_OK) and video_column(open(path, "rb"))):
        try:
            yield from _members(str(path), open(path, "rb"), options)
        except (SourceError, OSError) as error:
            if not in_folder:
                raise
            problem = (
                str(error.__cause__ or error) if isinstance(error, SourceError) else (error.strerror or "").lower()
            )
            yield DiscoveredFile(to_text(str(path.absolute())), problem=f"not a readable {ending[1:]}: {problem}")
    elif ending in LISTS and not in_folder:
        yield from _listed(str(path), path.read_bytes(), options)
    else:
        yield local_file(path, {}, named=not in_folder)


def _expand_url(text: str, options: SourceOptions) -> Iterator[DiscoveredFile]:
    ending = suffix(text.rstrip("/"))
    if text.startswith(filesystems.HUB) and ("*" in text or ending not in LISTS | VIDEOS | IMAGES | {".tar"}):
        yield from _listing(text, options)
    elif ending == ".tar" or (ending == ".parquet" and video_column(open_file(text, options))):
        yield from _members(text, open_file(text, options), options)
    elif ending in LISTS:
        with open_file(text, options) as file:
            yield from _listed(text, file.read(), options)
    elif text.startswith(REMOTE) and ending not in VIDEOS | IMAGES:
        store = Store(text)
        for name, size, stamp in store.stat():
            if suffix(name) == ".tar" or (suffix(name) == ".parquet" and video_column(store.open(name))):
                yield from _members(store.path(name), store.open(name), options)
            else:
                yield DiscoveredFile(to_text(store.path(name)), size, stamp, named=False)
    else:
        yield _at(text, {})


def _listing(text: str, options: SourceOptions) -> Iterator[DiscoveredFile]:
    """Yield the files of a folder or a glob of the Hub. Raises SourceError."""
    try:
        files = filesystems.expand(text)
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"{printable(text)}: {filesystems.problem_of(error)}") from error
    for file in files:
        if suffix(file.uri) == ".tar" or (suffix(file.uri) == ".parquet" and video_column(open_file(file.uri))):
            yield from _members(file.uri, open_file(file.uri), options)
        else:
            yield file


def _at(uri: str, metadata: Mapping[str, Any]) -> DiscoveredFile:
    """Describe a file that is named by its URL. Only object stores are queried here; `_looked` queries other
    servers."""
    file = DiscoveredFile(url_text(uri), metadata=metadata)
    if not uri.startswith(REMOTE):
        return file
    store, name = locate(file.uri)
    if info := store.info(name):
        return replace(file, size=info[0], stamp=info[1])
    return replace(file, problem="no such file")


def _looked(files: Sequence[DiscoveredFile], options: SourceOptions) -> Iterator[DiscoveredFile]:
    """Yield `files`; query the servers of those that have neither stamp nor problem, LOOKS at a time."""

    def look(file: DiscoveredFile) -> list[DiscoveredFile]:
        if file.stamp is not None or file.problem:
            return [file]
        try:
            if file.uri.startswith(YTDLP):
                check_host(urlsplit(file.uri.removeprefix(YTDLP)).hostname, options.allow_private)
                return _pages(file, options)
            if file.uri.startswith(WEB):
                from pipeline.sources import http

                return [http.look(file, options)]
            check_scheme(file.uri, options.allow_private)
        except ValueError as error:  # no URL, or one of a refused address
            return [replace(file, problem=str(error))]
        return [filesystems.look_at(file)]

    with ThreadPoolExecutor(LOOKS) as pool:
        for looked in pool.map(look, files):
            yield from looked


def _pages(file: DiscoveredFile, options: SourceOptions) -> list[DiscoveredFile]:
    try:
        videos = look_at_page(file.uri, options)
    except Unreachable:
        return [replace(file, silent=True)]
    except OSError as error:
        return [replace(file, problem=redact(str(error)))]
    return [replace(file, uri=url_text(uri), metadata={**clean(info), **file.metadata}) for uri, info in videos]


def _listed(name: str, data: bytes, options: SourceOptions) -> Iterator[DiscoveredFile]:
    """Yield the files of a list; a row that names none is a source with a problem. Relative paths start at the folder
    of the list. Raises SourceError where no row names a file."""
    files: list[DiscoveredFile] = []
    faulty: list[str] = []
    try:
        for number, (row, problem) in enumerate(list_rows(suffix(name), data), start=1):
            uri = next((str(row[c]) for c in URI_COLUMNS if row.get(c)), None)
            if uri is None:
                empty = next((f"{column} is empty" for column in URI_COLUMNS if column in row), None)
                problem = problem or empty or f"no column of {', '.join(URI_COLUMNS)} names the video"
            if uri is not None and not problem:
                metadata = clean({k: v for k, v in row.items() if v is not None and str(v) != uri})
                files.append(_row(name, uri, metadata, options))
                continue
            faulty.append(f"row {number}: {problem}")
            place = url_text(redact(name)) if _is_url(name) else to_text(str(Path(name).absolute()))
            files.append(DiscoveredFile(f"{place}{MEMBER}row {number}", problem=problem))
    except ValueError as error:
        problem = f"{name} cannot be read as {suffix(name)[1:].upper()}: {error}"
        raise SourceError(printable(problem)) from error
    if faulty and len(faulty) == len(files):
        raise SourceError(f"{printable(name)}, {printable(faulty[0])}")
    yield from files


def _row(name: str, uri: str, metadata: Mapping[str, Any], options: SourceOptions) -> DiscoveredFile:
    """Return the file that a row of the list `name` names. Lists are untrusted: a row of a list from a server cannot
    name local files, and no row can name object stores at refused addresses or contain credentials."""
    path, *query = name.partition("?")
    shown = DiscoveredFile(url_text(redact(uri)), metadata=metadata)
    try:
        refuse_secrets(uri)
        if _is_url(uri) or uri.startswith(YTDLP):
            if urlsplit(uri).query != "".join(query[1:]):
                check_scheme(uri.removeprefix(YTDLP), options.allow_private)
            return _at(uri, metadata)
        if _is_url(name):
            if uri.startswith("file://"):
                return replace(shown, problem="a local file in a list from a server")
            return _at(f"{path.rpartition('/')[0]}/{uri}{''.join(query)}", metadata)
    except (StorageError, ValueError) as error:
        return replace(shown, problem=redact(str(error)))
    file = Path(name).parent / uri.removeprefix("file://")
    encoded = Path(name).parent / from_text(uri.removeprefix("file://"))  # as tables of a dataset have it
    return local_file(encoded if encoded != file and not os.path.lexists(file) else file, metadata)


def _members(uri: str, file: BinaryIO, options: SourceOptions) -> Iterator[DiscoveredFile]:
    name = to_text(uri if "://" in uri else str(Path(uri).absolute()))
    try:
        if suffix(uri) == ".parquet":
            for row, metadata, stamp in video_rows(file, options.archive_members):
                yield DiscoveredFile(f"{name}{MEMBER}{row}", None, stamp, clean(metadata))
            return
        for member, metadata, problem in members(file, VIDEOS | IMAGES, options.archive_members):
            if not problem and member.size > options.max_gb * 1e9:
                problem = f"larger than {options.max_gb:g} GB (sources.max_gb)"
            stamp = f"{member.offset_data}:{member.mtime}"
            yield DiscoveredFile(
                f"{name}{MEMBER}{to_text(member.name)}", member.size, stamp, clean(metadata), problem=problem
            )
    except (tarfile.TarError, ValueError) as error:
        raise SourceError(f"{printable(uri)} is not a readable {suffix(uri)[1:]}: {error}") from error


def _open_member(archive: str, member: str, options: SourceOptions) -> BinaryIO:
    if suffix(archive) == ".parquet":
        return io.BytesIO(_video_rows(archive, options).read(member, options.max_gb * 1e9))
    where = _index(archive, options).get(member)
    if where is None:
        raise FileNotFoundError(f"no member {member!r} in {archive}")
    (offset, size), file = where, open_file(archive, options)

    def fetch(count: int, at: int) -> bytes:
        file.seek(offset + at)
        return file.read(count)

    return ranged(size, fetch)


@functools.lru_cache(maxsize=2)
def _video_rows(archive: str, options: SourceOptions) -> VideoRows:
    try:
        return VideoRows(open_file(archive, options))
    except ValueError as error:
        raise FileNotFoundError(f"{archive} is not a readable Parquet file: {error}") from error


@functools.lru_cache(maxsize=64)
def _index(archive: str, options: SourceOptions) -> dict[str, tuple[int, int]]:
    """Return offset and size of every member. Cached: it reads the whole tar."""
    try:
        return member_offsets(open_file(archive, options))
    except (tarfile.TarError, ValueError) as error:
        raise FileNotFoundError(f"{archive} is not a readable tar: {error}") from error
