"""The web: files behind real servers on loopback, good, bad and slow, read politely and within bounds."""

from __future__ import annotations

import http.server
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from footage.videos import pan, texture, write_video
from light_recipe import LIGHT_FILTERS

from pipeline.build import build
from pipeline.config.recipe import SourceOptions, load_recipe
from pipeline.dataset.verify import verify
from pipeline.media.video import probe
from pipeline.sources import http as web
from pipeline.sources.content import content_id
from pipeline.sources.discover import discover, open_media
from pipeline.sources.discovered import DiscoveredFile
from pipeline.sources.downloads import downloaded
from pipeline.storage.retry import FIRST_PAUSE, pause
from pipeline.storage.store import Unreachable

FILM = bytes(range(256)) * 40_000
OPTIONS = SourceOptions(allow_private=True)  # the servers are on loopback


class Site(http.server.ThreadingHTTPServer):
    """One film, behind as many faults as there are folders; it notes who asks for what, and how many at once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.film, self.robots, self.mime = FILM, b"", "video/mp4"
        self.requests: list[tuple[str, str, str, str]] = []  # method, path, range, user agent
        self.times: Counter[str] = Counter()
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.base = f"http://127.0.0.1:{self.server_port}"

    def spans(self, path: str) -> list[str]:
        return [span for method, requested, span, _ in self.requests if requested == path and method == "GET"]

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is none."""


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        site, span = self.server, self.headers.get("Range", "")
        with site.lock:
            site.requests.append((self.command, self.path, span, self.headers.get("User-Agent", "")))
            times = site.times[self.path + span]
            site.times[self.path + span] += 1
        self.answer(self.path.split("/")[1], span, times)

    do_HEAD = do_GET

    def answer(self, fault: str, span: str, times: int) -> None:
        film = self.server.film
        if fault == "robots.txt":
            return self.give(200 if self.server.robots else 404, self.server.robots)
        if fault == "page":
            return self.give(200, b'<video><source src="/film.mp4" type="video/mp4"></video>', mime="text/html")
        if fault in ("404", "403", "410"):
            return self.give(int(fault))
        if fault in ("500", "429", "503") and times < 2:
            return self.give(int(fault), headers={"Retry-After": "1"} if "=0-" in span and times == 1 else {})
        if fault == "odd-length":
            self.send_response(200)
            self.send_header("ETag", '"one"')
            self.send_header("Content-Length", "many" if self.command == "HEAD" else "0")
            return self.end_headers()
        if fault == "down":
            return self.give(503)
        if fault == "moved":
            return self.give(302, headers={"Location": "/film.mp4"})
        if fault == "headless" and self.command == "HEAD":
            return self.give(405)
        if fault == "slow":
            with self.server.lock:
                self.server.now += 1
                self.server.most = max(self.server.most, self.server.now)
            time.sleep(0.1)
            with self.server.lock:
                self.server.now -= 1
        if fault == "endless":
            self.send_response(200)
            self.end_headers()
            while self.command == "GET":
                self.wfile.write(film)
        if fault in ("whole", "short", "hasty"):
            cut = fault == "short" or (fault == "hasty" and times < 1 and self.command == "GET")
            return self.give(200, film, sent=len(film) // 2 if cut else None)
        if not span:
            return self.give(200, film, headers={"ETag": '"one"'})
        first, _, last = span.removeprefix("bytes=").partition("-")
        part = film[int(first) : int(last) + 1]
        headers = {"ETag": f'"{times if fault == "changing" and first != "0" else "one"}"'}
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(film)}"
        sent = {"mute": 0, "cut": len(part) // 2 if len(part) > 1000 else None}.get(fault)
        return self.give(206, part, headers, sent=sent)

    def give(
        self, status: int, data: bytes = b"", headers: dict[str, str] | None = None, sent: int | None = None, mime=None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": mime or self.server.mime, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:sent])
        self.close_connection = sent is not None

    def log_message(self, *_: object) -> None:
        """Not on the test's output."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("pipeline.storage.retry.FIRST_PAUSE", 0.01)
    web._robots.cache_clear()  # of an earlier site at the same port
    with Site() as new_site:
        threading.Thread(target=new_site.serve_forever, args=(0.02,), daemon=True).start()
        yield new_site
        new_site.shutdown()


def read(url: str, options: SourceOptions = OPTIONS) -> bytes:
    with open_media(url, options) as file:
        return file.read()


def test_a_film_is_found_and_read_by_ranges(site):
    (film,) = discover([f"{site.base}/film.mp4"], OPTIONS)
    assert (film.size, film.stamp) == (len(FILM), '"one"')
    with open_media(film.uri, OPTIONS) as file:
        file.seek(-4, 2)
        assert file.read() == FILM[-4:]
        file.seek(5_000_000)
        assert file.read(10) == FILM[5_000_000:5_000_010]
    ends = [tuple(map(int, span.removeprefix("bytes=").split("-"))) for span in site.spans("/film.mp4")]
    assert sum(end - start + 1 for start, end in ends) < len(FILM) / 5
    assert {agent for *_, agent in site.requests} == {web.AGENT}
    assert web.AGENT.startswith("clipmill/")


def test_reading_in_order_takes_few_requests(site):
    with open_media(f"{site.base}/film.mp4", OPTIONS) as file:
        pieces = list(iter(lambda: file.read(32 << 10), b""))
    assert b"".join(pieces) == FILM
    assert len(site.spans("/film.mp4")) <= 8


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("404/x.mp4", {"problem": "no such file"}),
        ("403/x.mp4", {"problem": "the server does not allow it (status 403)"}),
        ("headless/x.mp4", {"size": len(FILM), "stamp": '"one"'}),
        ("500/x.mp4", {"size": len(FILM), "stamp": '"one"'}),
        ("moved/x.mp4", {"size": len(FILM), "stamp": '"one"'}),
        ("whole/x.mp4", {"size": len(FILM), "stamp": str(len(FILM))}),
        ("down/x.mp4", {"silent": True}),  # no fault of the file: opening it is tried, now and by the next build
        ("odd-length/x.mp4", {"stamp": '"one"'}),
    ],
)
def test_what_a_server_says_of_a_file_is_its_row(site, path, expected):
    (file,) = discover([f"{site.base}/{path}"], OPTIONS)
    assert file == DiscoveredFile(f"{site.base}/{path}", **expected)


@pytest.mark.parametrize("path", ["500", "503", "429", "cut", "moved", "whole", "hasty", "headless"])
def test_the_bytes_are_right_whatever_a_server_does_on_the_way(site, path):
    begun = time.monotonic()
    assert read(f"{site.base}/{path}/film.mp4") == FILM
    assert time.monotonic() - begun > (1 if path == "429" else 0)  # it asked for a second of rest


@pytest.mark.parametrize("retry_after", ["nan", "-5", "soon", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_server_that_asks_to_wait_in_no_known_way_is_asked_again_as_usual(retry_after):
    assert FIRST_PAUSE / 2 <= pause(0, retry_after, 120.0, 120.0) <= FIRST_PAUSE


def test_a_cut_connection_costs_only_what_was_not_sent(site):
    read(f"{site.base}/cut/film.mp4")
    starts = [int(span.removeprefix("bytes=").split("-")[0]) for span in site.spans("/cut/film.mp4")]
    assert starts[1:] == sorted(starts[1:])
    assert len(set(starts[1:])) == len(starts[1:])


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("404", FileNotFoundError, "no such file"),
        ("410", FileNotFoundError, "no such file"),
        ("403", PermissionError, "does not allow it"),
        ("down", Unreachable, "does not answer"),
        ("short", Unreachable, "ends every answer early"),
        ("changing", OSError, "changed while it was read"),
        ("endless", OSError, "larger than 0.05 GB"),
    ],
)
def test_what_cannot_be_read_says_why(site, monkeypatch, path, error, words):
    monkeypatch.setattr(web, "TRIES", 2)
    with pytest.raises(error, match=words):
        read(f"{site.base}/{path}/film.mp4", SourceOptions(max_gb=0.05, allow_private=True))
    assert not list(Path(tempfile.gettempdir()).rglob("*.tmp"))


def test_a_host_that_is_not_there_is_unreachable_and_a_large_file_is_left(site, monkeypatch):
    monkeypatch.setattr(web, "TRIES", 2)
    with pytest.raises(Unreachable, match="does not answer"):
        read("http://127.0.0.1:9/film.mp4")
    small = SourceOptions(max_gb=0.001, allow_private=True)
    (film,) = discover([f"{site.base}/film.mp4"], small)
    assert film.problem == "larger than 0.001 GB (sources.max_gb)"
    with pytest.raises(OSError, match="larger than"):
        read(f"{site.base}/film.mp4", small)


def test_robots_txt_is_followed_unless_told_otherwise(site):
    site.robots = b"User-agent: clipmill\nDisallow: /film.mp4\nUser-agent: *\nDisallow:\n"
    (film,) = discover([f"{site.base}/film.mp4"], OPTIONS)
    assert film.problem == "robots.txt asks to leave it alone (sources.robots)"
    with pytest.raises(PermissionError, match=r"robots\.txt"):
        read(f"{site.base}/film.mp4")
    assert read(f"{site.base}/other.mp4") == FILM
    assert read(f"{site.base}/film.mp4", SourceOptions(robots=False, allow_private=True)) == FILM


def test_a_crawl_delay_is_kept_and_means_one_download_for_all_readers(site):
    site.robots = b"User-agent: *\nCrawl-delay: 1\n"
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(read, [f"{site.base}/film.mp4"] * 2)) == {FILM}
    assert len([span for span in site.spans("/film.mp4") if not span]) == 1  # and a look at its head for each
    assert time.monotonic() - begun > 2


def test_no_more_connections_to_a_host_than_agreed(site):
    with ThreadPoolExecutor(8) as pool:
        urls = [f"{site.base}/slow/{i}.mp4" for i in range(8)]
        files = pool.map(
            lambda url: web.look(DiscoveredFile(url), SourceOptions(connections=2, robots=False, allow_private=True)),
            urls,
        )
    assert [file.size for file in files] == [len(FILM)] * 8
    assert site.most == 2


def test_downloads_make_room_for_new_ones_but_not_under_a_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = downloaded("one", lambda path: path.write_bytes(b"1" * 600), 1e-6)
    downloaded("two", lambda path: path.write_bytes(b"2" * 600), 1e-6).close()
    assert first.read() == b"1" * 600
    assert [p.stat().st_size for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"] == [600]
    with pytest.raises(OSError, match="no"):
        downloaded("three", lambda path: (_ for _ in ()).throw(OSError("no")), 1e-6)


def test_lists_and_tars_behind_urls_lead_to_their_films(site):
    site.film = f"url,licence\n{site.base}/film.mp4,CC0\nother.mp4,CC-BY\n".encode()
    films = discover([f"{site.base}/in/list.csv"], OPTIONS)
    assert [(item.uri.removeprefix(site.base), item.metadata["licence"]) for item in films] == [
        ("/film.mp4", "CC0"),
        ("/in/other.mp4", "CC-BY"),
    ]


def test_a_server_that_is_down_takes_nothing_from_a_dataset(site, tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "pan.mp4", pan(texture(1, 400, 800), 60, 3.0), fps=25)
    site.film, out = (tmp_path / "pan.mp4").read_bytes(), tmp_path / "dataset"
    options = ("sources.allow_private=true", "scan.shots=stride", "scan.min_seconds=1", *LIGHT_FILTERS)

    def built(films: Sequence[str], *more: str) -> dict[str, Any]:
        done = build(
            [f"{site.base}/{film}" for film in films], str(out), load_recipe("embedded", [*options, *more]), cores=1
        )
        assert verify(str(out)) == []
        return done.info

    def tars() -> list[str]:
        return [tar.relative_to(out).as_posix() for tar in out.rglob("*.tar")]

    assert built(["film.mp4"])["counts"]["kept"] == 1
    assert built(["film.mp4", "mute/film.mp4"], "select.thresholds.motion_area.min=2")["counts"]["kept"] == 0
    assert [tar.split("/")[:2] for tar in tars()] == [["state", "old"]], "what may be wanted again"
    site.shutdown()
    site.server_close()
    monkeypatch.setattr(web, "TRIES", 2)
    info = built(["film.mp4"], "select.val_fraction=1")
    assert "1 files are used as last seen: their servers do not answer" in capsys.readouterr().err
    assert (info["counts"]["kept"], info["passes"]["transcode"]["results"]["reused"]) == (1, 1)
    assert [shard["path"] for shard in info["shards"]] == [
        tar for tar in tars() if tar.startswith("shards/2x1-240p/val-")
    ]


def test_yt_dlp_brings_a_page_s_video(site, sample_videos):
    pytest.importorskip("yt_dlp")
    site.film = sample_videos["bikes"].read_bytes()
    (video,) = discover([f"ytdlp:{site.base}/page/of/bikes"], OPTIONS)
    assert not video.problem
    with open_media(video.uri, OPTIONS) as file:
        assert probe(file).width == 640
    assert content_id(video.uri, OPTIONS) == content_id(str(sample_videos["bikes"]))
    before = len(site.requests)
    content_id(video.uri, OPTIONS)
    assert len(site.requests) == before
    (gone,) = discover([f"ytdlp:{site.base}/404/x.mp4"], OPTIONS)
    assert "404" in gone.problem


def test_yt_dlp_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yt_dlp", None)
    (page,) = discover(["ytdlp:http://127.0.0.1:9/page"], OPTIONS)
    assert page.problem == "yt-dlp is not installed: pip install 'clipmill[download]'"
