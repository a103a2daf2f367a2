"""hf:// sources through the real Hub client, with a server on loopback that speaks the Hub's endpoints for reading."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from pipeline.sources.content import content_id
from pipeline.sources.discover import SourceError, discover, open_file
from pipeline.storage.store import Unreachable

FILM = bytes(range(256)) * 40_000
TOKEN = "of-the-owner"


def tar_of(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def parquet_of(videos: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"mp4": videos, "json": [{"title": f"film {i}"} for i in range(len(videos))]}), buffer)
    return buffer.getvalue()


FILES = {
    "README.md": b"# films",
    ".gitattributes": b"*.mp4 lfs",
    "data/one.mp4": FILM,
    "data/deep/two.mp4": FILM[::-1],
    "data/part.tar": tar_of("three.mp4", FILM),
    "data/part.parquet": parquet_of([FILM, b"four"]),
    "list.csv": b"video,caption\ndata/one.mp4,the first film\n",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Datasets of one owner: `films` is public, `secret` private, `gated` shows its files to all and gives them to
    none."""

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        is_api = parts[0] == "api"
        owner, name, *rest = parts[2:] if is_api else parts[1:]
        is_owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if owner != "owner" or name not in ("films", "secret", "gated") or (name == "secret" and not is_owner):
            return self.answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if len(rest) > 1 and rest[1] not in ("main", "v1"):
            return self.answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Revision not found"})
        if is_api and rest[:1] in ([], ["revision"]):
            return self.answer(200, {}, json.dumps({"id": f"{owner}/{name}", "sha": "0" * 40}).encode())
        if is_api:
            return self.tree("/".join(rest[2:]), "recursive=true" in self.path.lower())
        path = "/".join(rest[2:])
        if name == "gated":
            return self.answer(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if path not in FILES:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        data, span = FILES[path], self.headers.get("Range")
        if not span:
            return self.answer(200, {}, data)
        first, _, last = span.removeprefix("bytes=").partition("-")
        return self.answer(
            206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[int(first) : int(last) + 1]
        )

    do_HEAD = do_GET

    def tree(self, folder: str, recursive: bool) -> None:
        prefix, entries = f"{folder}/" if folder else "", {}
        for path, data in FILES.items():
            inside = path.removeprefix(prefix)
            if not path.startswith(prefix):
                continue
            for depth in range(1, inside.count("/") + 1):
                directory = prefix + "/".join(inside.split("/")[:depth])
                entries[directory] = {"type": "directory", "path": directory, "oid": "0" * 40}
            oid = hashlib.sha1(data).hexdigest()
            entries[path] = {"type": "file", "path": path, "size": len(data), "oid": oid}
        shown = [entry for path, entry in entries.items() if recursive or "/" not in path.removeprefix(prefix)]
        if not shown:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        return self.answer(200, {"Content-Type": "application/json"}, json.dumps(shown).encode())

    def answer(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(autouse=True)
def _hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield
        server.shutdown()
    huggingface_hub.HfFileSystem.clear_instance_cache()


def content(uri: str) -> bytes:
    with open_file(uri) as file:
        return file.read()


def test_a_folder_gives_its_files_and_the_members_of_its_archives():
    base = "hf://datasets/owner/films"
    files = {file.uri.removeprefix(base): file for file in discover([base])}
    videos = ["/data/deep/two.mp4", "/data/one.mp4", "/data/part.parquet#mp4/0", "/data/part.parquet#mp4/1"]
    assert sorted(files) == ["/README.md", *videos, "/data/part.tar#three.mp4", "/list.csv"]
    assert files["/data/part.parquet#mp4/1"].metadata == {"title": "film 1"}
    assert (files["/data/one.mp4"].size, files["/data/one.mp4"].stamp) == (len(FILM), hashlib.sha1(FILM).hexdigest())
    for name, data in zip([*videos, "/data/part.tar#three.mp4"], [FILM[::-1], FILM, FILM, b"four", FILM], strict=True):
        assert content(base + name) == data
    assert content_id(f"{base}/data/one.mp4") == hashlib.sha256(FILM).hexdigest()[:32]
    with open_file(f"{base}/data/one.mp4") as file:
        file.seek(-3, 2)
        assert file.read() == FILM[-3:]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("films/data/*.mp4", ["films/data/one.mp4"]),
        ("films/**/*.mp4", ["films/data/deep/two.mp4", "films/data/one.mp4"]),
        ("films@v1/data/deep", ["films@v1/data/deep/two.mp4"]),
        ("films@v1/data/one.mp4", ["films@v1/data/one.mp4"]),
        ("films/data/part.tar", ["films/data/part.tar#three.mp4"]),
        ("films/data/*.parquet", ["films/data/part.parquet#mp4/0", "films/data/part.parquet#mp4/1"]),
        ("films/list.csv", ["films/data/one.mp4"]),
    ],
)
def test_globs_revisions_archives_and_lists_name_their_files(path, expected):
    files = discover([f"hf://datasets/owner/{path}"])
    assert [file.uri.removeprefix("hf://datasets/owner/") for file in files] == expected
    assert not any(file.problem for file in files)


def test_a_private_dataset_is_read_with_the_token_of_the_environment_and_says_so_without(monkeypatch):
    base = "hf://datasets/owner/secret/data"
    with pytest.raises(SourceError, match="no such dataset on the Hub, or a private one: set HF_TOKEN"):
        discover([base])
    (file,) = discover([f"{base}/one.mp4"])
    assert file.problem == "no such dataset on the Hub, or a private one: set HF_TOKEN to a token that may read it"
    huggingface_hub.HfFileSystem.clear_instance_cache()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(discover([f"{base}/*.mp4"])) == 1
    assert content(f"{base}/one.mp4") == FILM


def test_a_gated_dataset_a_missing_file_and_a_missing_revision_say_so():
    with pytest.raises(PermissionError, match="a gated dataset: accept its terms on the Hub, and set HF_TOKEN"):
        content("hf://datasets/owner/gated/data/one.mp4")
    for path in ("films/data/none.mp4", "films@v9/data/one.mp4"):
        (file,) = discover([f"hf://datasets/owner/{path}"])
        assert file.problem == "no such file"
    with pytest.raises(SourceError):
        discover(["hf://datasets/owner/films/none"])


def test_a_hub_that_does_not_answer_is_tried_again_by_the_next_build(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    huggingface_hub.HfFileSystem.clear_instance_cache()
    (file,) = discover(["hf://datasets/owner/films/data/one.mp4"])
    assert file.silent
    with pytest.raises(Unreachable):
        content(file.uri)


@pytest.mark.hub
def test_a_public_dataset_of_the_real_hub_is_listed(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    huggingface_hub.HfFileSystem.clear_instance_cache()
    assert discover(["hf://datasets/huggingface/documentation-images/*.md"])
