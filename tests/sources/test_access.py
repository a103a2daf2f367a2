"""Sources behind a login or a proxy: requests and yt-dlp use both, and no error shows a secret."""

from __future__ import annotations

import http.server
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.config.options import OptionError
from pipeline.config.recipe import SourceOptions, load_recipe
from pipeline.passes.identify import IdentifyPass
from pipeline.sources import http as web
from pipeline.sources.discover import SourceError, discover, open_file
from pipeline.state import fingerprints

FILM = bytes(range(256)) * 8000
COOKIES = "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tmember\tof-the-club\n"
PAGE = b'<video><source src="/film.mp4" type="video/mp4"></video>'


class Club(http.server.BaseHTTPRequestHandler):
    """Serves a film to clients that send the cookie, and a page with that film."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/robots.txt":
            return self.send_error(404)
        if self.headers.get("Cookie") != "member=of-the-club":
            return self.send_error(403)
        data, content_type = (PAGE, "text/html") if path == "/page" else (FILM, "video/mp4")
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
        return None

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


class Forwarder(Club):
    """An HTTP proxy: requests for any host go to the club's server, with its cookie."""

    def do_GET(self) -> None:
        self.server.requested.append(self.path)  # type: ignore[attr-defined]
        if not self.path.startswith("http://films.invalid/"):
            return self.send_error(400)
        self.headers["Cookie"] = "member=of-the-club"
        return super().do_GET()

    do_HEAD = do_GET


def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.requested = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def _own_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("pipeline.storage.retry.FIRST_PAUSE", 0.01)
    web._robots.cache_clear()


@pytest.fixture
def club() -> Iterator[str]:
    for server in serving(Club):
        yield f"127.0.0.1:{server.server_port}"


@pytest.fixture
def forwarder() -> Iterator[http.server.ThreadingHTTPServer]:
    yield from serving(Forwarder)


def content(uri: str, options: SourceOptions) -> bytes:
    with open_file(uri, options) as file:
        return file.read()


@pytest.mark.parametrize("form", ["http://{}/film.mp4", "ytdlp:http://{}/page"])
def test_a_server_that_demands_a_cookie_is_read_with_the_file_of_cookies(club, tmp_path, form):
    if form.startswith("ytdlp"):
        pytest.importorskip("yt_dlp")
    path = tmp_path / "cookies.txt"
    path.write_text(COOKIES)
    uri = form.format(club)
    (refused,) = discover([uri], SourceOptions(allow_private=True))
    assert "403" in refused.problem
    options = SourceOptions(allow_private=True, cookies=str(path))
    (file,) = discover([uri], options)
    assert not file.problem
    assert content(file.uri, options) == FILM
    assert path.read_text() == COOKIES, "yt-dlp writes cookies back"


@pytest.mark.parametrize("form", ["http://films.invalid/film.mp4", "ytdlp:http://films.invalid/page"])
def test_a_host_that_only_the_proxy_reaches_is_read_through_it(forwarder, monkeypatch, form):
    if form.startswith("ytdlp"):
        pytest.importorskip("yt_dlp")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # the option comes before the environment
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    options = SourceOptions(proxy=f"http://127.0.0.1:{forwarder.server_port}")
    (file,) = discover([form], options)
    assert not file.problem
    assert not file.silent
    assert content(file.uri, options) == FILM
    assert form.startswith("ytdlp") or "http://films.invalid/robots.txt" in forwarder.requested


def test_a_proxy_of_the_environment_is_used_and_its_password_is_in_no_error(forwarder, monkeypatch):
    pytest.importorskip("yt_dlp")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://user:hush@127.0.0.1:{forwarder.server_port}")
    assert urllib.request.getproxies()["http"].startswith("http://user:hush@")
    assert content("http://films.invalid/film.mp4", SourceOptions()) == FILM
    monkeypatch.setattr(web, "TRIES", 1)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://user:hush@127.0.0.1:9")
    for uri in ("http://films.invalid/film.mp4", "ytdlp:http://films.invalid/page"):
        with pytest.raises(OSError, match=r"films\.invalid|onnect") as error:
            content(uri, SourceOptions())
        assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    "value", ["http://user:hush@proxy:8080", "user:hush@proxy:8080", "socks5://proxy:1", "http://hush@proxy:8080", "x"]
)
def test_a_proxy_with_a_password_or_of_another_scheme_is_refused_and_not_repeated(value):
    with pytest.raises(OptionError, match=r"sources\.proxy|sources: proxy") as error:
        load_recipe("embedded", [f"sources.proxy={value}"])
    assert "hush" not in str(error.value)


def test_cookies_that_cannot_be_read_stop_before_any_work(tmp_path):
    (tmp_path / "cookies.json").write_text('{"member": "of-the-club"}')
    (tmp_path / "a.mp4").write_bytes(b"x")
    for name, words in (("cookies.json", "Netscape's format"), ("none.txt", "No such file")):
        with pytest.raises(SourceError, match=words) as error:
            discover([str(tmp_path / "a.mp4")], SourceOptions(cookies=str(tmp_path / name)))
        assert "of-the-club" not in str(error.value)


def test_a_change_of_proxy_or_cookies_identifies_and_scans_nothing_again():
    plain = load_recipe("embedded")
    changed = load_recipe("embedded", ["sources.proxy=http://proxy:8080", "sources.cookies=cookies.txt"])
    for of in (IdentifyPass().fingerprint, fingerprints.scan_fingerprint, fingerprints.caption_fingerprint):
        assert of(plain) == of(changed)
