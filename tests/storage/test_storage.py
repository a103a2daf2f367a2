"""Storage: whole files or none, on a disk and over the S3 protocol."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from light_recipe import LIGHT_FILTERS
from pyarrow.fs import AwsStandardS3RetryStrategy
from repository import ROOT
from servers.object_store import KEYS
from shards import clips_of, write_shards

from model.config import from_dict
from model.data.index import read_index
from model.data.loader import Clips
from pipeline.cli import main
from pipeline.dataset.finish import read_info
from pipeline.media.video import Video, probe
from pipeline.passes.embed_worker import chunks
from pipeline.sources.content import content_id
from pipeline.sources.discover import discover, open_media
from pipeline.storage import lease as lease_clock
from pipeline.storage.lease import LeaseError, lease
from pipeline.storage.store import PIECE, StorageError, Store, Unreachable, atomic, filesystem
from pipeline.tables.fragments import FRAMES, read_fragments, table_from, write_fragment, write_frames
from pipeline.tables.published import read_table

ILLS = ["500", "503", "refused", "cut", "lost"]
DIES = """
import os, signal, sys
from pipeline.storage.lease import lease
from pipeline.storage.store import Store
with lease(Store(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


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


def test_the_frames_of_a_few_clips_are_read_without_those_of_the_others(store, network, monkeypatch):
    random, read = np.random.default_rng(1), []
    pictures = {f"{i:020x}": [random.integers(0, 256, (160, 160, 3), np.uint8) for _ in range(4)] for i in range(40)}
    rows = [
        {"clip_id": clip, "index": i, "time": i / 2, "jpeg": cv2.imencode(".jpg", jpegs[i])[1].tobytes()}
        for clip, jpegs in reversed(pictures.items())
        for i in (2, 0, 3, 1)
    ]
    size = write_frames(store, "unit", table_from(rows, FRAMES))
    assert size == store.info("tables/frames/unit.parquet")[0] < 1.02 * sum(len(row["jpeg"]) for row in rows)

    class Counted(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            read.append(size)
            return super().read(size)

    def bytes_for(*numbers: int) -> int:
        """Read for these clips, two at a time, after a look at what came out."""
        read.clear()
        network.requests.clear()
        rows = [{"clip_id": f"{i:020x}"} for i in numbers]
        frames_by_clip = {}
        for _, frames in chunks(store, "unit", rows, size=2):
            assert len(frames) <= 2
            frames_by_clip |= frames
        assert list(frames_by_clip) == [row["clip_id"] for row in rows]
        for clip, frames in frames_by_clip.items():
            assert frames.times.tolist() == [0, 0.5, 1, 1.5]
            for decoded, wanted in zip(frames.pictures, pictures[clip], strict=True):
                assert np.corrcoef(decoded[:, :, 1].ravel(), wanted[:, :, 1].ravel())[0, 1] > 0.8
        ranges = [path.partition("bytes=")[2].split("-") for method, path in network.requests if method == "GET"]
        return sum(read) + sum(int(last) - int(first) + 1 for first, last in ranges)

    if store.local:
        monkeypatch.setattr(store, "open", lambda name: Counted(store.path(name)))
    assert bytes_for(5, 30) < size / 5
    assert bytes_for(*range(40)) < 1.1 * size


def test_sources_on_an_object_store_are_found_and_read_by_ranges(s3, tmp_path):
    store = Store(f"s3://films/{tmp_path.name}{s3}")
    data = bytes(range(256)) * 20000
    store.write("deep/film.mp4", data)
    store.write("deep/other.txt", b"no")
    files = discover([f"s3://films/{tmp_path.name}{s3}"])
    assert [(item.size, item.worth_opening) for item in files] == [(len(data), True), (2, False)]
    with open_media(files[0].uri) as file:
        file.seek(len(data) - 3)
        assert file.read() == data[-3:]
    (tmp_path / "film.mp4").write_bytes(data)
    assert content_id(files[0].uri) == content_id(str(tmp_path / "film.mp4"))


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


@pytest.mark.parametrize("faults", [["500"], ILLS])
def test_what_a_bad_network_does_to_a_request_is_made_good(network, s3, tmp_path, faults):
    store, kinds = Store(f"s3://films/{tmp_path.name}{s3}"), itertools.cycle(faults)
    network.fault = lambda method, path, times: next(kinds) if times < 1 else ""
    large = bytes(range(256)) * 50_000  # two parts of an upload, two pieces of a read
    store.write("small", b"small")
    store.write("large", large)
    assert store.read("large") == large
    with store.open("large") as file:
        file.seek(-10, 2)
        assert file.read() == large[-10:]
    assert store.list("") == ["large", "small"]
    assert sum(network.faults[fault] for fault in faults) >= 9


def test_a_read_that_is_cut_goes_on_by_ranges(network, s3, tmp_path):
    store = Store(f"s3://films/{tmp_path.name}{s3}")
    data = bytes(range(256)) * 100_000
    store.write("film.mp4", data)
    network.fault = lambda method, path, times: "cut" if method == "GET" and times < 1 else ""
    assert store.read("film.mp4") == data
    spans = [path.partition("bytes=")[2] for method, path in network.requests if method == "GET"]
    assert spans[0] == f"0-{PIECE - 1}"
    assert len(spans) == -(-len(data) // PIECE)  # no piece more than was asked for, and none from the start again


def test_an_upload_that_fails_or_is_interrupted_leaves_nothing_half_written(network, s3, tmp_path, monkeypatch):
    store = Store(f"s3://films/{tmp_path.name}{s3}")
    monkeypatch.setattr("pyarrow.fs.AwsStandardS3RetryStrategy", lambda max_attempts: AwsStandardS3RetryStrategy(2))
    network.fault = lambda method, path, times: "500" if "partNumber=2" in path else ""
    with pytest.raises(OSError, match="UploadPart"):
        store.write("large", bytes(12_000_000))
    assert not store.exists("large")

    for part in ("partNumber=1", "partNumber=2"):

        def interrupt(method: str, path: str, times: int, part: str = part) -> str:
            if part in path:
                network.fault = lambda *_: ""
                os.kill(os.getpid(), signal.SIGINT)
            return ""

        network.fault = interrupt
        with pytest.raises(KeyboardInterrupt):
            store.write("large", bytes(12_000_000))
    assert store.info("large")[0] == 12_000_000


def test_a_trainer_reads_its_shards_from_an_object_store(s3, tmp_path, monkeypatch, sample_videos):
    root = write_shards(tmp_path / "here", [clips_of(sample_videos["bigbuckbunny"], 2)])
    store = Store(f"s3://films/{tmp_path.name}{s3}")
    for path in (path for path in root.rglob("*") if path.is_file()):
        store.write(path.relative_to(root).as_posix(), path.read_bytes())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "near"))
    config = from_dict({"data": [store.uri], "resolutions": 48, "frame_counts": 5})
    remote, local = (Clips(read_index([data]), None, config) for data in (store.uri, str(root)))
    assert [remote.read(i, 0) for i in (0, 1)] == [local.read(i, 0) for i in (0, 1)]


def test_a_url_of_an_unknown_kind_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("s3a://bucket/out", "nothing://bucket/out"):
        with pytest.raises(StorageError, match=url):
            Store(url).write("a", b"")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_reached_is_said_and_is_no_fault_of_the_file(network, s3, tmp_path, monkeypatch, sample_videos):
    monkeypatch.setattr("pyarrow.fs.AwsStandardS3RetryStrategy", lambda max_attempts: AwsStandardS3RetryStrategy(2))
    url = f"s3://films/{tmp_path.name}/film.mp4"
    Store(f"s3://films/{tmp_path.name}{s3}").write("film.mp4", sample_videos["bigbuckbunny"].read_bytes())
    with Video(open_media(url + s3)) as video:
        network.fault = lambda *_: "500"
        with pytest.raises(Unreachable, match="INTERNAL_FAILURE"):
            sum(1 for _ in video.frames())
    with pytest.raises(Unreachable):
        probe(open_media(url + s3))
    network.fault = lambda *_: ""
    with pytest.raises(FileNotFoundError):
        open_media(url.replace("film", "gone") + s3)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/in",
        "s3://bucket/in?region=x&secret_key=abc",
        "abfss://container@account.dfs.core.windows.net/in?sas_token=abc",
        "https://me:word@example.com/film.mp4",
        "https://token@example.com/film.mp4",
        "https://account.blob.core.windows.net/c/film.mp4?sv=1&sig=abc",
    ],
)
def test_credentials_in_a_url_are_refused(url):
    with pytest.raises(StorageError, match="credentials"):
        discover([url])


def test_urls_of_every_provider_are_understood_or_say_what_is_missing(monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StorageError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        filesystem("az://container/in")
    with pytest.raises(StorageError, match="unknown option 'regoin'"):
        filesystem("s3://bucket/in?regoin=eu-west-1")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for url, type_name, path in (
        ("az://container/in", "abfs", "container/in"),
        ("az://container@account.dfs.core.windows.net/in", "abfs", "container/in"),
        ("gs://bucket/in", "gcs", "bucket/in"),
        ("s3://bucket/in?region=eu-west-1", "s3", "bucket/in"),
    ):
        opened, key = filesystem(url)
        assert (opened.type_name, key) == (type_name, path)


def test_of_builds_that_start_at_once_one_holds_the_dataset(s3, tmp_path):
    store = Store(f"s3://films/{tmp_path.name}{s3}")
    held, refused, together = [], [], threading.Barrier(3)

    def start() -> None:
        together.wait()
        try:
            with lease(store, beat=0.05, silent=20) as still_ours:
                held.append(1)
                time.sleep(1.0)
                still_ours()
        except LeaseError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 2)
    assert all(f"process {os.getpid()} on" in text for text in refused)
    assert store.list("state/lock") == []


def test_a_dead_build_gives_way_and_one_that_slept_too_long_stops(tmp_path, capsys):
    store = Store(str(tmp_path))
    dead = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], cwd=ROOT, check=False)
    assert dead.returncode == -signal.SIGKILL
    assert len(store.list("state/lock")) == 1
    with lease(store, beat=0.05, silent=0.4) as still_ours:
        assert "was building here" in capsys.readouterr().err
        assert len(store.list("state/lock")) == 1
        still_ours()
        with pytest.MonkeyPatch.context() as patch:
            later = lease_clock.now() + 10
            patch.setattr(lease_clock, "now", lambda: later)
            with pytest.raises(LeaseError, match="out of touch"):
                still_ours()


def test_the_clock_of_a_lease_counts_the_time_for_which_the_machine_was_suspended():
    uptime = float(Path("/proc/uptime").read_text().split()[0])  # by CLOCK_BOOTTIME
    assert abs(lease_clock.now() - uptime) < 0.2


def test_a_build_from_and_to_an_object_store_gets_through_a_bad_network_with_the_same_bytes(
    network, s3, tmp_path, sample_videos, capsys
):
    store = Store(f"s3://films/{tmp_path.name}{s3}")
    store.write("in/bikes.mp4", sample_videos["bikes"].read_bytes())
    options = ["scan.shots=adaptive", "scan.min_seconds=1", *LIGHT_FILTERS]

    def build(out: str) -> tuple[dict, str]:
        assert main(["build", f"s3://films/{tmp_path.name}/in{s3}", "--out", out, *options]) == 0
        return read_info(Store(out)), capsys.readouterr().out

    calm, _ = build(str(tmp_path / "calm"))
    remote = f"s3://films/{tmp_path.name}/out{s3}"
    network.faults.clear()
    every_tenth = itertools.cycle([fault for ill in ILLS for fault in [*[""] * 9, ill]])
    network.fault = lambda *_: next(every_tenth)
    info, output = build(remote)
    assert sum(network.faults.values()) - network.faults[""] >= 10
    assert "scan " in output
    again, output = build(remote)
    assert "x real time" not in output
    assert again == info
    assert {k: v for k, v in info.items() if k != "passes"} == {k: v for k, v in calm.items() if k != "passes"}
    assert info["counts"]["kept"] == sum(shard["clips"] for shard in info["shards"]) >= 3
    dataset = Store(remote)
    for shard in info["shards"]:
        assert hashlib.sha256(dataset.read(shard["path"])).hexdigest() == shard["sha256"]
    assert dataset.read("report.html").startswith(b"<!doctype html>")
    for name in dataset.list(""):
        text = dataset.read(name)
        assert not any(value.encode() in text for value in KEYS.values()), name
    for name in ("clips", "sources", "frames"):
        rows = str(read_table(dataset, f"tables/{name}").to_pylist())
        assert not any(value in rows for value in KEYS.values())
