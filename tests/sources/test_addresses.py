"""Where sources may be: schemes and addresses of servers, after redirects too."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.recipe import SourceOptions
from pipeline.sources import http as web
from pipeline.sources.addresses import AddressRefused, check_address, check_scheme
from pipeline.sources.discover import discover, open_media

PRIVATE = SourceOptions(allow_private=True, robots=False)


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "fe80::1%eth0", "224.0.0.1", "0.0.0.0", "::", "fd00:ec2::254", "::ffff:169.254.169.254",
     "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "100.100.100.200"],
)  # fmt: skip
def test_link_local_and_metadata_addresses_are_refused_always(address: str) -> None:
    for allow_private in (False, True):
        with pytest.raises(AddressRefused, match="no address of a source"):
            check_address(address, allow_private)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "::1", "fd12::1", "100.64.0.1"]
)
def test_private_addresses_are_refused_unless_allowed(address: str) -> None:
    check_address(address, True)
    with pytest.raises(AddressRefused, match=r"sources\.allow_private"):
        check_address(address, False)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_public_addresses_are_allowed(address: str) -> None:
    check_address(address, False)


@pytest.mark.parametrize(
    "url",
    ["gopher://x/a.mp4", "simplecache::http://x/a.mp4", "zip://a.mp4::/etc/x.zip", "local:///etc/passwd",
     "reference://x", "sftp://127.0.0.1/a.mp4", "s3://b/a.mp4?endpoint_override=http://127.0.0.1:9"],
)  # fmt: skip
def test_other_schemes_and_private_hosts_behind_them_are_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_scheme(url, False)


class Redirects(http.server.BaseHTTPRequestHandler):
    """/to/URL redirects to URL; anything else is four bytes."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
        else:
            self.send_response(200)
            self.send_header("Content-Length", "4")
        self.end_headers()
        if self.command == "GET" and not self.path.startswith("/to/"):
            self.wfile.write(b"film")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Not on the test's output."""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirects) as http_server:
        threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


def test_a_server_at_a_private_address_is_a_row_that_names_the_option(server: str) -> None:
    (file,) = discover([f"{server}/a.mp4"])
    assert "127.0.0.1 is a private address: sources.allow_private=true" in file.problem
    with pytest.raises(PermissionError, match="private address"):
        open_media(f"{server}/a.mp4")
    assert discover([f"{server}/a.mp4"], PRIVATE)[0].size == 4


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
def test_a_redirect_to_another_scheme_is_a_row(server: str, target: str) -> None:
    (file,) = discover([f"{server}/to/{target}"], PRIVATE)
    assert file.problem == "not a usable URL (InvalidSchema)"


def test_a_redirect_to_a_refused_address_is_a_row(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def refuse_second(address: str, allow_private: bool) -> None:
        checked.append(address)
        if len(checked) > 1:
            raise AddressRefused(f"{address} is refused")

    monkeypatch.setattr("pipeline.sources.addresses.check_address", refuse_second)
    (file,) = discover([f"{server}/to/{server.replace('127.0.0.1', 'localhost')}/a.mp4"], PRIVATE)
    assert file.problem.endswith("is refused")
    assert len(checked) == 2


def test_a_list_from_a_stranger_reads_nothing_it_may_not(tmp_path: Path, server: str) -> None:
    rows = ["sftp://127.0.0.1/x.mp4", "https://me:secret@host/x.mp4", "https://h/x.mp4?X-Amz-Signature=abc"]
    rows += ["simplecache::http://h/x.mp4", "http://[::1", "s3://b/x.mp4?endpoint_override=http://127.0.0.1:9"]
    (tmp_path / "list.csv").write_text("url\n" + "\n".join(rows))
    files = discover([str(tmp_path / "list.csv")])
    assert len(files) == len(rows)
    assert all(file.problem for file in files)
    assert not any("secret" in file.uri or "abc" in file.uri for file in files)


def test_a_local_file_in_a_list_from_a_server_is_a_problem(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.sources import discover as module

    (file,) = module._listed("http://host/list.csv", b"url\nfile:///etc/passwd\n", PRIVATE)
    assert file.problem == "a local file in a list from a server"


def test_odd_numbers_in_headers_are_no_numbers() -> None:
    assert [web._number(text) for text in ("12", None, "", "many", "-1", "1e3", "12, 12", "9" * 40, "²")] == [
        12,
        *[None] * 8,
    ]
