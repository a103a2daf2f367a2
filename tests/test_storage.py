"""Storage: whole files or none, on a disk and over the S3 protocol."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.cli import main
from pipeline.dataset import read_info
from pipeline.sources import content_id, discover, open_media
from pipeline.storage import Store, atomic
from pipeline.tables import read_fragments, read_table, write_fragment


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The query string that leads an s3:// URL to a server on loopback, with a bucket `films`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = {name: os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    os.environ |= dict.fromkeys(before, "test")
    try:
        for _ in range(200):
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/films", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path / "store"))
    return Store(f"s3://films/{tmp_path.name}" + request.getfixturevalue("s3"))


def test_what_is_written_is_listed_read_and_deleted(store):
    store.write("tables/b.parquet", b"bb")
    store.write("tables/a.txt", b"a")
    assert store.list("tables") == ["tables/a.txt", "tables/b.parquet"]
    assert store.list("tables", ".parquet") == ["tables/b.parquet"]
    assert store.list("nothing") == []
    assert store.info("tables/a.txt")[0] == 1
    assert store.info("tables/none") is None
    assert [(name, size) for name, size, _ in store.stat("tables")] == [("tables/a.txt", 1), ("tables/b.parquet", 2)]
    store.write("tables/a.txt", b"changed")
    assert store.read("tables/a.txt") == b"changed"
    with store.open("tables/a.txt") as file:
        file.seek(4)
        assert file.read() == b"ged"
    store.delete("tables/a.txt")
    store.delete("tables/a.txt")
    assert not store.exists("tables/a.txt")
    with pytest.raises(OSError, match="tables"):
        store.read("tables/a.txt")


def test_a_folder_of_files_arrives_under_its_name(store):
    with store.folder("shards/16x9") as folder:
        (folder / "train-0.tar").write_bytes(b"x" * 100)
    assert store.read("shards/16x9/train-0.tar") == b"x" * 100


def test_fragments_say_what_was_done_and_a_damaged_one_is_as_if_not_there(store):
    rows = pa.table({"clip_id": ["a", "b"], "motion_object": [0.5, None]})
    write_fragment(store, "state/scan/one.parquet", rows, {"fingerprint": "f", "parts": ["p"]})
    store.write("state/scan/half.parquet", store.read("state/scan/one.parquet")[:50])
    (fragment,) = read_fragments(store, "state/scan")
    assert fragment.done == {"fingerprint": "f", "parts": ["p"]}
    assert fragment.rows(store).to_pylist() == rows.to_pylist()
    assert store.list("state/scan") == ["state/scan/one.parquet"]


def test_sources_on_an_object_store_are_found_and_read_by_ranges(s3, tmp_path):
    store = Store(f"s3://films/{tmp_path.name}{s3}")
    data = bytes(range(256)) * 20000
    store.write("deep/film.mp4", data)
    store.write("deep/other.txt", b"no")
    found = discover([f"s3://films/{tmp_path.name}{s3}"])
    assert [(item.size, item.worth_opening) for item in found] == [(len(data), True), (2, False)]
    with open_media(found[0].uri) as file:
        file.seek(len(data) - 3)
        assert file.read() == data[-3:]
    (tmp_path / "film.mp4").write_bytes(data)
    assert content_id(found[0].uri) == content_id(str(tmp_path / "film.mp4"))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.parquet"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["table.parquet"]
    assert path.read_bytes() == b"old"


def test_a_dataset_on_an_object_store_is_built_from_there_and_again_for_nothing(s3, tmp_path, sample_videos, capsys):
    store = Store(f"s3://films/{tmp_path.name}{s3}")
    store.write("in/bikes.mp4", sample_videos["bikes"].read_bytes())
    out = f"s3://films/{tmp_path.name}/out{s3}"
    words = ["build", f"s3://films/{tmp_path.name}/in{s3}", "--out", out, "scan.shots=adaptive", "scan.min_seconds=1"]
    assert main(words) == 0
    assert "scan " in capsys.readouterr().out
    dataset = Store(out)
    info = read_info(dataset)
    assert info["counts"]["kept"] == sum(shard["clips"] for shard in info["shards"]) >= 3
    for shard in info["shards"]:
        assert hashlib.sha256(dataset.read(shard["path"])).hexdigest() == shard["sha256"]
    assert dataset.read("report.html").startswith(b"<!doctype html>")
    assert "secret" not in str(read_table(dataset, "tables/clips")).lower()
    assert main(words) == 0
    assert "x real time" not in capsys.readouterr().out
    assert read_info(dataset) == info
