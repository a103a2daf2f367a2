"""Files behind HTTP(S): read by ranges where the server gives them, else whole and once; politely, and with patience.

Every process of a machine waits for its turn at a host: so many connections at once, so many seconds between requests.
"""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import functools
import importlib.metadata
import os
import random
import tempfile
import threading
import time
import urllib.robotparser
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlsplit

import requests
import urllib3

from pipeline.config.recipe import SourceOptions
from pipeline.sources.downloads import downloaded
from pipeline.storage.store import Unreachable, ranged

AGENT = f"clipmill/{importlib.metadata.version('clipmill')} (video dataset builder)"
AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))  # statuses that another try may change
TRIES = 6  # of one request, without a byte of progress
PAUSE = 0.5  # seconds before the second try; doubled for each further one, with some chance in it
LONGEST = 120.0  # seconds that a server's Retry-After is followed
TIMEOUT = (10.0, 30.0)  # seconds to connect, and between two packets
SILENT = ""  # the stamp of a file whose server does not answer
SLOWEST = 20_000  # bytes a second: a server that gives less is as good as gone
ROBOTS = 500_000  # bytes of a robots.txt that are read, as in RFC 9309

_local = threading.local()


def look(url: str, options: SourceOptions) -> tuple[int, str]:
    """Size (bytes; 0 where the server does not say) and a stamp that changes with the file; (0, SILENT) where it does
    not answer, (-1, why) where the file cannot be used."""
    try:
        urlsplit(url)
    except ValueError as error:
        return -1, f"not a URL: {error}"
    try:
        with _ask("HEAD", url, options) as answer:
            headers, size = answer.headers, int(answer.headers.get("Content-Length") or 0)
        if answer.status_code in (403, 405, 501):  # of servers that know GET alone
            with _ask("GET", url, options, "bytes=0-0") as answer:
                _refuse(answer, url)
                headers, size = answer.headers, _total(answer)
        _refuse(answer, url)
    except FileNotFoundError:
        return -1, "no such file"
    except Unreachable:
        return 0, SILENT  # whoever opens it will say so, and the next build tries again
    except OSError as error:
        return -1, error.strerror or str(error)
    if size > options.max_gb * 1e9:
        return -1, _too_large(options)
    return size, headers.get("ETag") or headers.get("Last-Modified") or str(size)


def open_url(url: str, options: SourceOptions) -> BinaryIO:
    """A seekable file. Raises FileNotFoundError, PermissionError (also for what robots.txt asks to leave alone), other
    OSErrors that say why, or Unreachable after several tries."""
    with _ask("GET", url, options, f"bytes=0-{(1 << 20) - 1}") as answer:
        _refuse(answer, url)
        size, tag = _total(answer), answer.headers.get("ETag")
        stamp = tag or answer.headers.get("Last-Modified") or str(size)
        if size > options.max_gb * 1e9:
            raise OSError(_too_large(options))
        by_ranges = answer.status_code == 206 and size > 0
    if not by_ranges or _delay(url, options):  # many requests with pauses between them are worse than one
        return downloaded(f"{url} {stamp}", lambda path: _download(url, path, options), options.cache_gb)
    return ranged(size, lambda count, at: _fetch(url, count, at, size, tag, options))


def _fetch(url: str, count: int, at: int, size: int, tag: str | None, options: SourceOptions) -> bytes:
    """`count` bytes from `at`. What a cut connection did not bring is asked for again, and no more."""
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
    """The whole of it to `path`; from the start again where the connection is cut."""
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
        _sleep(attempt, None)
    raise Unreachable(f"{urlsplit(url).netloc} ends every answer early ({type(problem).__name__})")


def _timely(answer: requests.Response) -> Iterator[bytes]:
    """The body in pieces as they come, for as long as they come fast enough. Raises urllib3's HTTPError."""
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
    """The server's answer, its body not read yet, while it is this process's turn. Raises Unreachable after TRIES."""
    if robots and options.robots and not _robots(*urlsplit(url)[:2]).can_fetch(AGENT, url):
        raise PermissionError(13, "robots.txt asks to leave it alone (sources.robots)", url)
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"} | ({"Range": span} if span else {})
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
    problem = ""
    for attempt in range(TRIES):
        with _turn(url, options, _delay(url, options) if robots else 0.0):
            try:
                answer = _local.session.request(method, url, headers=headers, stream=True, timeout=TIMEOUT)
            except requests.exceptions.InvalidURL as error:
                raise OSError(f"not a usable URL ({error})") from error
            except requests.RequestException as error:
                problem, wait = type(error).__name__, None
            else:
                with answer:
                    if answer.status_code not in AGAIN:
                        yield answer
                        return
                    problem, wait = f"status {answer.status_code}", answer.headers.get("Retry-After")
        if attempt + 1 < TRIES:
            _sleep(attempt, wait)
    raise Unreachable(f"{urlsplit(url).netloc} does not answer ({problem})")


def _sleep(attempt: int, asked: str | None) -> None:
    """For as long as the server asked (seconds or a date), else longer with every attempt."""
    seconds = PAUSE * 2**attempt * random.uniform(0.5, 1.0)
    if asked:
        with contextlib.suppress(ValueError, OverflowError):  # neither
            when = int(asked) if asked.isdigit() else email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
            seconds = max(seconds, min(float(when), LONGEST))
    time.sleep(seconds)


def _refuse(answer: requests.Response, url: str) -> None:
    status = answer.status_code
    if status in (404, 410):
        raise FileNotFoundError(2, "no such file", url)
    if status in (401, 403):
        raise PermissionError(13, f"the server does not allow it (status {status})", url)
    if status >= 400:
        raise OSError(f"the server does not give it (status {status})")


def _total(answer: requests.Response) -> int:
    """Bytes of the whole file; 0 where the answer does not say."""
    if answer.status_code == 206:
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdigit() else 0
    return int(answer.headers.get("Content-Length") or 0)


def _too_large(options: SourceOptions) -> str:
    return f"larger than {options.max_gb:g} GB (sources.max_gb)"


@contextlib.contextmanager
def _turn(url: str, options: SourceOptions, delay: float) -> Iterator[None]:
    """One of the machine's connections to a host. Locks of files, which a killed process does not keep."""
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
    """Seconds between requests to the host of `url`."""
    asked = _robots(*urlsplit(url)[:2]).crawl_delay(AGENT) if options.robots else None
    return max(options.delay, float(asked or 0))


@functools.lru_cache(maxsize=1024)
def _robots(scheme: str, host: str) -> urllib.robotparser.RobotFileParser:
    """What a host asks of robots; without such a file, nothing (RFC 9309)."""
    rules = urllib.robotparser.RobotFileParser()
    with _ask("GET", f"{scheme}://{host}/robots.txt", SourceOptions(), robots=False) as answer:
        text = b"" if answer.status_code >= 400 else answer.raw.read(ROBOTS, decode_content=True)
    rules.parse(text.decode("utf-8", "replace").splitlines())
    return rules
