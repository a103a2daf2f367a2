"""Cached downloads of sources that cannot be read by ranges: once for each machine, in a folder of bounded size."""

from __future__ import annotations

import fcntl
import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.config.recipe import SourceOptions
from pipeline.config.secrets import redact
from pipeline.storage.store import Unreachable, atomic

YTDLP = "ytdlp:"  # ytdlp:https://... is opened by yt-dlp
QUIET_LOGGER = logging.Logger("yt-dlp", logging.CRITICAL)  # its messages are in the errors that it raises


def downloaded(key: str, fetch: Callable[[Path], None], limit_gb: float) -> BinaryIO:
    """Open the cached file of `key`; `fetch(path)` writes it if it is missing. Processes that need the same file wait
    for the one that fetches it. The least recently read files are deleted when the folder exceeds `limit_gb`."""
    folder = Path(tempfile.gettempdir(), f"clipmill-{os.getuid()}", "downloads")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(key.encode()).hexdigest()[:32]
    with open(folder / f"{path.name[:2]}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            file = open(path, "rb")
        except FileNotFoundError:
            with atomic(path) as temporary:
                fetch(temporary)
            file = open(path, "rb")
            with open(folder / "room.lock", "w") as room:  # one process at a time deletes files
                fcntl.flock(room, fcntl.LOCK_EX)
                if path.exists():
                    _make_room(folder, path, limit_gb * 1e9)
        os.utime(file.fileno())
        return file


def _make_room(folder: Path, newest: Path, limit: float) -> None:
    """Delete the least recently read files; a process that has one open can still read it."""
    files = [p for p in folder.iterdir() if not p.name.startswith(".") and p.suffix != ".lock" and p != newest]
    size = newest.stat().st_size + sum(p.stat().st_size for p in files)
    for path in sorted(files, key=lambda p: p.stat().st_mtime):
        if size <= limit:
            return
        size -= path.stat().st_size
        path.unlink(missing_ok=True)


def open_page(uri: str, options: SourceOptions) -> BinaryIO:
    """Download the video of a page with yt-dlp, in the best quality and without sound. Raises OSError or
    Unreachable."""

    def fetch(path: Path) -> None:
        wanted = {
            "format": "bv/b",  # video only, so that ffmpeg is not needed to merge streams
            "outtmpl": str(path),
            "max_filesize": int(options.max_gb * 1e9),
            "fixup": "never",
            "nopart": True,
            "overwrites": True,
        }
        _ytdlp(uri, wanted, options)
        if not path.exists():
            raise OSError(f"no video, or larger than {options.max_gb:g} GB (sources.max_gb)")

    return downloaded(uri, fetch, options.cache_gb)


def look_at_page(uri: str, options: SourceOptions) -> list[tuple[str, dict[str, Any]]]:
    """Return URI and metadata of each video of a page, one or those of a playlist. Raises OSError or Unreachable."""
    info = _ytdlp(uri, {"extract_flat": "in_playlist"}, options, download=False)
    entries = info.get("entries")
    names = ("title", "uploader", "license", "upload_date", "webpage_url")
    if entries is None:
        return [(uri, {name: info[name] for name in names if info.get(name)})]
    return [
        (f"{YTDLP}{entry['url']}", {name: entry[name] for name in names if entry.get(name)})
        for entry in entries
        if entry and entry.get("url")
    ]


def _ytdlp(uri: str, wanted: dict[str, Any], options: SourceOptions, download: bool = True) -> dict[str, Any]:
    try:
        import yt_dlp
    except ImportError as error:
        raise OSError("yt-dlp is not installed: pip install 'clipmill[download]'") from error
    always: dict[str, Any] = {
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "cachedir": False,
        "logger": QUIET_LOGGER,
    }
    always |= {"proxy": options.proxy} if options.proxy else {}
    if options.cookies:  # a copy, because yt-dlp writes its cookies back
        try:
            always["cookiefile"] = io.StringIO(Path(options.cookies).expanduser().read_text())
        except OSError as error:
            raise Unreachable(f"sources.cookies: {options.cookies} cannot be read: {error.strerror}") from error
    always |= {"retries": 5, "fragment_retries": 5, "socket_timeout": 30, "sleep_interval_requests": options.delay}
    try:
        with yt_dlp.YoutubeDL({**always, **wanted}) as page:
            return dict(page.extract_info(uri.removeprefix(YTDLP), download=download) or {})
    except yt_dlp.utils.YoutubeDLError as error:
        text = redact(str(error).removeprefix("ERROR: "))
        cause = (getattr(error, "exc_info", None) or (None, None))[1]
        status = getattr(getattr(cause, "cause", cause), "status", 0)
        lost = isinstance(getattr(cause, "cause", cause), yt_dlp.networking.exceptions.TransportError)
        raise (Unreachable(text) if lost or status == 429 or status >= 500 else OSError(text)) from error
