"""Files behind HTTP(S): read by ranges where the server supports them, otherwise downloaded once.

All processes of a machine share the limits per host: concurrent connections, and seconds between requests.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import re
import tempfile
import time
import urllib.robotparser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlsplit

import requests
import urllib3

from pipeline.config.recipe import SourceOptions
from pipeline.config.versions import VERSION
from pipeline.sources.addresses import AddressRefused
from pipeline.sources.discovered import DiscoveredFile
from pipeline.sources.downloads import downloaded
from pipeline.sources.http_session import session
from pipeline.storage.retry import AGAIN, pause
from pipeline.storage.store import Unreachable, ranged

AGENT = f"clipmill/{VERSION} (video dataset builder)"
TRIES = 6  # attempts at a request without a byte of progress
LONGEST = 120.0  # seconds: the longest Retry-After that is respected
TIMEOUT = (10.0, 30.0)  # seconds to connect, and between two packets
SLOWEST = 20_000  # bytes a second: a slower answer counts as a failure
NOT_USABLE = (
    *(requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema),
    *(requests.exceptions.TooManyRedirects, requests.exceptions.InvalidHeader, UnicodeError),
)
ROBOTS = 500_000  # bytes of a robots.txt that are read, as in RFC 9309


def look(file: DiscoveredFile, options: SourceOptions) -> DiscoveredFile:
    """Return `file`, which is named by a URL, with the size and stamp that its server gives, or with `problem` or
    `silent` set."""
    try:
        with _ask("HEAD", file.uri, options) as answer:
            headers, size = answer.headers, _number(answer.headers.get("Content-Length")) or None  # HEAD may say 0
        if answer.status_code in (403, 405, 501):  # servers that support only GET
            with _ask("GET", file.uri, options, "bytes=0-0") as answer:
                _refuse(answer, file.uri)
                headers, size = answer.headers, _total(answer)
        _refuse(answer, file.uri)
    except FileNotFoundError:
        return replace(file, problem="no such file")
    except Unreachable:
        return replace(file, silent=True)  # opening it fails with the reason, and the next build retries
    except OSError as error:
        return replace(file, problem=error.strerror or str(error))
    if (size or 0) > options.max_gb * 1e9:
        return replace(file, problem=_too_large(options))
    stamp = headers.get("ETag") or headers.get("Last-Modified") or (None if size is None else str(size))
    return replace(file, size=size, stamp=stamp)


def open_url(url: str, options: SourceOptions) -> BinaryIO:
    """Open a URL as a seekable file. Raises FileNotFoundError, PermissionError (also where robots.txt disallows it),
    other OSErrors with a reason, or Unreachable after TRIES attempts."""
    with _ask("GET", url, options, f"bytes=0-{(1 << 20) - 1}") as answer:
        _refuse(answer, url)
        size, tag = _total(answer), answer.headers.get("ETag")
        stamp = tag or answer.headers.get("Last-Modified") or str(size)
        if (size or 0) > options.max_gb * 1e9:
            raise OSError(_too_large(options))
        by_ranges = answer.status_code == 206
    if not by_ranges or not size or _delay(url, options):  # with pauses between requests, one request is faster
        return downloaded(f"{url} {stamp}", lambda path: _download(url, path, options), options.cache_gb)
    return ranged(size, lambda count, at: _fetch(url, count, at, size, tag, options))


def _fetch(url: str, count: int, at: int, size: int, tag: str | None, options: SourceOptions) -> bytes:
    """Return `count` bytes from offset `at`. After a lost connection only the missing bytes are requested again."""
    got, tries = bytearray(), 0
    while len(got) < count:
        span = f"bytes={at + len(got)}-{at + count - 1}"
        before = len(got)
        with _ask("GET", url, options, span) as answer:
            _refuse(answer, url)
            if answer.status_code != 206 or _total(answer) != size or answer.headers.get("ETag") != tag:
                raise OSError("changed while it was read")
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                for chunk in _timely(answer):
                    got += chunk
        tries = tries + 1 if len(got) == before else 0
        if tries == TRIES:
            raise Unreachable(f"{urlsplit(url).netloc} ends every answer early")
    return bytes(got[:count])


def _download(url: str, path: Path, options: SourceOptions) -> None:
    """Download the whole file to `path`; restart from the beginning where the connection is lost."""
    for attempt in range(TRIES):
        with _ask("GET", url, options) as answer, open(path, "wb") as file:
            _refuse(answer, url)
            try:
                for chunk in _timely(answer):
                    if file.tell() + len(chunk) > options.max_gb * 1e9:
                        raise OSError(_too_large(options))
                    file.write(chunk)
                return
            except urllib3.exceptions.HTTPError as error:
                problem = error
        time.sleep(pause(attempt, None, LONGEST, LONGEST))
    raise Unreachable(f"{urlsplit(url).netloc} ends every answer early ({type(problem).__name__})")


def _timely(answer: requests.Response) -> Iterator[bytes]:
    """Yield the body in chunks. Raises urllib3's HTTPError, also where it is slower than SLOWEST."""
    begun, got = time.monotonic(), 0
    while chunk := answer.raw.read1(1 << 18):
        got += len(chunk)
        yield chunk
        if time.monotonic() - begun > TIMEOUT[1] + got / SLOWEST:
            raise urllib3.exceptions.TimeoutError("too slow")


@contextlib.contextmanager
def _ask(
    method: str, url: str, options: SourceOptions, span: str = "", robots: bool = True
) -> Iterator[requests.Response]:
    """Yield the server's response, its body unread, while holding one of the host's connections. Raises Unreachable
    after TRIES attempts, PermissionError where robots.txt or the address forbids it, and OSError for an unusable
    URL."""
    try:
        where = urlsplit(url)[:2]
    except ValueError as error:
        raise OSError(f"not a URL: {error}") from error
    if robots and options.robots and not _robots(*where, options).can_fetch(AGENT, url):
        raise PermissionError(13, "robots.txt asks to leave it alone (sources.robots)", url)
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"} | ({"Range": span} if span else {})
    proxies = dict.fromkeys(("http", "https"), options.proxy) if options.proxy else None
    try:
        web = session(options)
    except ValueError as error:  # the file of cookies is missing on this machine
        raise Unreachable(str(error)) from error
    problem = ""
    for attempt in range(TRIES):
        with _turn(url, options, _delay(url, options) if robots else 0.0):
            try:
                answer = web.request(method, url, headers=headers, proxies=proxies, stream=True, timeout=TIMEOUT)
            except AddressRefused as error:
                raise PermissionError(13, str(error), url) from error
            except NOT_USABLE as error:
                raise OSError(f"not a usable URL ({type(error).__name__})") from error
            except requests.RequestException as error:
                problem, wait = type(error).__name__, None
            else:
                with answer:
                    if answer.status_code not in AGAIN:
                        yield answer
                        return
                    problem, wait = f"status {answer.status_code}", answer.headers.get("Retry-After")
        if attempt + 1 < TRIES:
            time.sleep(pause(attempt, wait, LONGEST, LONGEST))
    raise Unreachable(f"{urlsplit(url).netloc} does not answer ({problem})")


def _refuse(answer: requests.Response, url: str) -> None:
    status = answer.status_code
    if status in (404, 410):
        raise FileNotFoundError(2, "no such file", url)
    if status in (401, 403):
        raise PermissionError(13, f"the server does not allow it (status {status})", url)
    if status >= 400:
        raise OSError(f"the server does not give it (status {status})")


def _total(answer: requests.Response) -> int | None:
    """Return the size of the whole file in bytes; None where the response does not state it."""
    if answer.status_code == 206:
        return _number(answer.headers.get("Content-Range", "").rpartition("/")[2])
    return _number(answer.headers.get("Content-Length"))


def _number(header: str | None) -> int | None:
    """Return the value of a header that counts bytes; None for anything else."""
    return int(header) if header and re.fullmatch(r"\d{1,18}", header, re.ASCII) else None


def _too_large(options: SourceOptions) -> str:
    return f"larger than {options.max_gb:g} GB (sources.max_gb)"


@contextlib.contextmanager
def _turn(url: str, options: SourceOptions, delay: float) -> Iterator[None]:
    """Hold one of the machine's connections to a host, by a file lock, which the system releases when a process
    dies."""
    folder = Path(tempfile.gettempdir(), f"clipmill-{os.getuid()}", "hosts", quote(urlsplit(url).netloc, safe=""))
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        slots = [stack.enter_context(open(folder / str(i), "w")) for i in range(max(1, options.connections))]
        while not any(_locked(slot) for slot in slots):
            time.sleep(random.uniform(0.01, 0.05))
        if delay:
            with open(folder / "last", "a+") as last:
                fcntl.flock(last, fcntl.LOCK_EX)
                last.seek(0)
                time.sleep(min(delay, max(0.0, float(last.read() or 0) + delay - time.time())))
                last.truncate(0)
                last.write(str(time.time()))
        yield


def _locked(file: object) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
    except OSError:
        return False
    return True


def _delay(url: str, options: SourceOptions) -> float:
    """Return the seconds between requests to the host of `url`."""
    crawl_delay = _robots(*urlsplit(url)[:2], options).crawl_delay(AGENT) if options.robots else None
    return max(options.delay, float(crawl_delay or 0))


@functools.lru_cache(maxsize=1024)
def _robots(scheme: str, host: str, options: SourceOptions) -> urllib.robotparser.RobotFileParser:
    """Return the rules of a host's robots.txt; without that file everything is allowed (RFC 9309)."""
    rules = urllib.robotparser.RobotFileParser()
    with _ask("GET", f"{scheme}://{host}/robots.txt", options, robots=False) as answer:
        text = b"" if answer.status_code >= 400 else answer.raw.read(ROBOTS, decode_content=True)
    rules.parse(text.decode("utf-8", "replace").splitlines())
    return rules
