"""Builds: the whole chain on real and synthetic video, what is redone when something changes, and what is not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from datasets_compared import snapshot
from footage.videos import pan, texture, write_video
from light_recipe import LIGHT_FILTERS

from pipeline.build import Built, build
from pipeline.cli import main
from pipeline.config.recipe import load_recipe
from pipeline.dataset.finish import DatasetError
from pipeline.dataset.verify import verify
from pipeline.pack import parts
from pipeline.plan import plan
from pipeline.report.summary import summary
from pipeline.scan.worker import Identify
from pipeline.state.units import BuildStopped
from pipeline.storage.store import Store
from pipeline.tables.published import read_table

OPTIONS = (
    *("scan.shots=adaptive", "scan.min_seconds=1", "scan.segment_seconds=8", "select.val_fraction=0.4"),
    *LIGHT_FILTERS,
)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory, sample_videos: dict[str, Path]) -> Path:
    """Two real videos, a synthetic one, and one of every kind of file that cannot be used."""
    folder = tmp_path_factory.mktemp("footage")
    shutil.copy(sample_videos["bikes"], folder / "bikes.mp4")
    shutil.copy(sample_videos["bikes"], folder / "copy of bikes.mp4")
    write_video(folder / "pan.mkv", pan(texture(1, 400, 800), 60, 3.0), fps=25)
    (folder / "empty.mp4").touch()
    (folder / "truncated.mp4").write_bytes(sample_videos["bigbuckbunny"].read_bytes()[:20_000])
    (folder / "letter.avi").write_text("Dear reader, this is no video.")
    (folder / "notes.txt").write_text("filmed on Tuesday")
    silence(folder / "sound.m4v")
    return folder


def silence(path: Path) -> None:
    """A file with a second of sound and no picture."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def built(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Built]:
    dataset = tmp_path_factory.mktemp("built") / "dataset"
    return dataset, build([str(footage)], str(dataset), load_recipe("embedded", OPTIONS))


@pytest.fixture
def copied(built: tuple[Path, Built], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built[0], tmp_path / "dataset"))


def test_every_file_is_a_row_with_its_reason_and_the_rest_becomes_clips(built):
    dataset, result = built
    status = {Path(row["source_uri"]).name: (row["status"], row["error"]) for row in result.sources}
    assert status["bikes.mp4"] == ("ok", None)
    assert status["pan.mkv"] == ("ok", None)
    assert status["copy of bikes.mp4"][0] == "skipped"
    assert "same content" in status["copy of bikes.mp4"][1]
    assert status["empty.mp4"] == ("failed", "empty file")
    assert status["notes.txt"][0] == "skipped"
    for name in ("letter.avi", "sound.m4v"):
        assert status[name][0] == "failed"
        assert len(status[name][1]) > 8
    clips = result.clips.to_pylist()
    assert len({clip["clip_id"] for clip in clips}) == len(clips)
    kept = [clip for clip in clips if clip["keep"]]
    assert len(kept) >= 4
    for clip in clips:
        assert clip["keep"] == (clip["rejected_by"] == [])
        assert (clip["shard"] is not None) == clip["keep"]
        assert not clip["keep"] or clip["caption"]
    assert result.info["counts"]["kept"] == len(kept) == sum(shard["clips"] for shard in result.info["shards"])
    assert verify(dataset) == []
    assert (dataset / "report.html").stat().st_size > 10_000


def test_nothing_is_done_twice(built, footage, capsys):
    dataset, _ = built
    before = snapshot(dataset)
    state = {path: path.stat().st_mtime_ns for path in (dataset / "state").rglob("*.parquet")}
    again = build([str(footage)], str(dataset), load_recipe("embedded", OPTIONS), cores=1)
    assert capsys.readouterr().out == ""
    assert summary(str(dataset), again.info, again.unchanged).startswith("nothing to do: the dataset is as the inputs")
    assert "failed" in summary(str(dataset), built[1].info, built[1].unchanged).splitlines()[1]
    assert snapshot(dataset) == before
    assert {path: path.stat().st_mtime_ns for path in (dataset / "state").rglob("*.parquet")} == state


def test_a_threshold_that_rejects_more_only_packs_again_and_takes_the_clips_over(copied, footage, built, capsys):
    kept = [clip for clip in built[1].clips.to_pylist() if clip["keep"]]
    largest = max(built[1].info["shards"], key=lambda shard: shard["clips"])["path"]
    limit = sorted(clip["motion_object"] for clip in kept if clip["shard"] == largest)[1]
    threshold = f"select.thresholds.motion_object.min={limit}"
    result = build([str(footage)], str(copied), load_recipe("embedded", [*OPTIONS, threshold]), cores=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["transcode", "pack"]
    assert result.info["counts"]["kept"] == sum(clip["motion_object"] >= limit for clip in kept) < len(kept)
    assert result.info["counts"]["rejected_by"]["motion_object"] >= 1
    repacked = sum(shard["clips"] for shard in result.info["shards"] if shard not in built[1].info["shards"])
    assert f"{repacked} reused" in lines[0]
    assert verify(copied) == []


def test_a_new_source_is_scanned_alone_and_a_removed_one_disappears(copied, footage, tmp_path, built, capsys):
    folder = Path(shutil.copytree(footage, tmp_path / "footage"))
    write_video(folder / "tilt.mp4", pan(texture(2, 700, 400), 60, 0.0, 3.0), fps=25)
    (folder / "pan.mkv").unlink()
    half = copied / "shards" / ".train-000001.tar.7.tmp"  # left by a build that was killed
    half.write_bytes(b"half a tar")
    planned = plan([str(folder)], str(copied), load_recipe("embedded", OPTIONS)).splitlines()
    assert planned[0].startswith("sources   8 of 8 files: new or changed, about 0:")
    assert planned[1].endswith("8 files of the dataset, no longer among the sources: the clips go")
    assert [line.split()[:3] for line in planned[2:7]] == [
        [name, "up", "to"] for name in ("scan", "embed", "caption", "transcode", "pack")
    ]
    assert planned[-1].endswith(" in all, at the last builds' rates")
    result = build([str(folder)], str(copied), load_recipe("embedded", OPTIONS), cores=1)
    printed = capsys.readouterr()
    scan = next(line for line in printed.out.splitlines() if line.startswith("scan"))
    assert "0:02 video" in scan
    assert printed.err.startswith("8 files of the dataset, no longer among the sources: the clips go\n")
    names = {Path(clip["source_uri"]).name for clip in result.clips.to_pylist()}
    assert names == {"bikes.mp4", "tilt.mp4"}
    frames = read_table(Store(str(copied)), "tables/frames")
    assert frames is not None
    assert set(frames["clip_id"].to_pylist()) <= set(result.clips["clip_id"].to_pylist())
    assert not half.exists()
    assert verify(copied) == []


def halved(dataset: Path, pattern: str) -> Path:
    """The first file of `pattern`, which has lost its second half."""
    path = sorted(dataset.glob(pattern))[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("patterns", "again"),
    [
        (["shards/*/*.tar", "state/sources/*.parquet", "tables/clips/*.parquet"], ["sources", "transcode", "pack"]),
        (["shards/*/*.parquet", "state/caption/*.parquet"], ["caption", "transcode", "pack"]),
        (["tables/frames/*.parquet"], ["scan", "embed"]),
    ],
)
def test_what_is_cut_off_is_made_anew_and_nothing_else(copied, footage, built, capsys, patterns, again):
    for pattern in patterns:
        halved(copied, pattern)
    build([str(footage)], str(copied), load_recipe("embedded", OPTIONS), cores=1)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == again
    assert snapshot(copied) == snapshot(built[0])


def test_tables_and_states_that_are_gone_are_made_anew(copied, footage, built):
    halved(copied, "state/scan/*.parquet")
    for name in ("state/embed", "tables/clips", "tables/sources"):
        shutil.rmtree(copied / name)
    (copied / "dataset.json").unlink()  # README.md and report.html are there still
    build([str(footage)], str(copied), load_recipe("embedded", OPTIONS), cores=1)
    assert snapshot(copied) == snapshot(built[0])


def test_a_dataset_that_lost_part_of_a_table_is_not_read_as_if_it_were_whole(copied, capsys):
    lost = halved(copied, "tables/clips/*.parquet")
    for words in (
        ["report"],
        ["select", "select.thresholds.motion_object.min=0.5"],
        ["export", "--to", "csv", "--out", "x.csv"],
    ):
        assert main([words[0], str(copied), *words[1:]]) == 2
        error = capsys.readouterr().err
        assert str(lost.relative_to(copied)) in error
        assert "run its build again" in error
    lost.unlink()
    assert main(["report", str(copied)]) == 2
    assert f"{lost.relative_to(copied)} is missing: run its build again" in capsys.readouterr().err
    assert main(["verify", str(copied)]) == 1
    assert "tables/clips has 0 rows, where dataset.json says" in capsys.readouterr().out


def command(footage: Path, dataset: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", "build", str(footage), "--out", str(dataset), *OPTIONS, *more]


@pytest.mark.parametrize("half_done", ["state/scan/*.parquet", "state/pack/*/*.tar"])
def test_killed_in_the_middle_and_started_again_gives_the_same_bytes(
    built, footage, tmp_path, capsys, monkeypatch, half_done
):
    monkeypatch.setattr(parts, "PART_BYTES", 1.0)  # a part a clip
    dataset = tmp_path / "dataset"
    program = (
        "import sys, pipeline.pack.parts as p; p.PART_BYTES = 1.0; from pipeline.cli import main; main(sys.argv[1:])"
    )
    arguments = [sys.executable, "-c", program, *command(footage, dataset)[3:]]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, start_new_session=True)
    while not list(dataset.glob(half_done)):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (dataset / "dataset.json").exists()
    finished = len(list(dataset.glob("state/pack/*/*.tar")))
    result = build([str(footage)], str(dataset), load_recipe("embedded", OPTIONS), cores=1)
    assert snapshot(dataset) == snapshot(built[0])
    assert {"sources", "scan", "embed"} <= set(result.info["passes"])  # the closing table has what both builds did
    encoded = [int(line.split()[1]) for line in capsys.readouterr().out.splitlines() if line.startswith("transcode")]
    assert sum(encoded) == result.info["counts"]["kept"] - finished
    assert not (dataset / "state" / "pack").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "test", str(place)], capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_stops_the_build_and_the_next_one_changes_nothing(built, footage, small_disk):
    dataset, ballast = small_disk / "dataset", small_disk / "ballast"

    def fill() -> None:
        while not list((dataset / "state" / "scan").glob("*.parquet")):
            time.sleep(0.01)
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 20)):
                pass

    with ThreadPoolExecutor() as threads:
        threads.submit(fill)
        with pytest.raises((OSError, BuildStopped), match=r"(?i)no space left on device"):
            build([str(footage)], str(dataset), load_recipe("embedded", OPTIONS))
    ballast.unlink()
    build([str(footage)], str(dataset), load_recipe("embedded", OPTIONS), cores=1)
    assert snapshot(dataset) == snapshot(built[0])


def test_a_full_folder_of_temporary_files_stops_the_build_and_is_named(
    built, footage, small_disk, tmp_path, monkeypatch
):
    dataset, ballast = tmp_path / "dataset", small_disk / "ballast"
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    monkeypatch.setenv("TMPDIR", str(small_disk))
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    with pytest.raises(OSError, match="No space left on device") as stopped:
        build([str(footage)], str(dataset), load_recipe("embedded", OPTIONS), cores=1)
    assert stopped.value.filename == str(small_disk)
    assert not (dataset / "dataset.json").exists()
    ballast.unlink()
    build([str(footage)], str(dataset), load_recipe("embedded", OPTIONS), cores=1)
    assert snapshot(dataset) == snapshot(built[0])


def test_an_error_in_the_program_is_two_lines_and_its_traceback_is_in_the_dataset(
    sample_videos, tmp_path, monkeypatch, capsys
):
    def broken(worker: Identify, unit: object) -> None:
        raise KeyError("choices")

    monkeypatch.setattr(Identify, "__call__", broken)
    assert main(["build", str(sample_videos["bikes"]), "--out", str(tmp_path / "dataset")]) == 1
    first, second = capsys.readouterr().err.splitlines()
    log = tmp_path / "dataset" / "state" / "errors" / "sources.txt"
    assert re.fullmatch(rf"clipmill: sources: KeyError at \S+:\d+: 'choices'. The traceback is in {log}", first)
    assert second == "finished work is kept: run the same command again to continue"
    assert 'raise KeyError("choices")' in log.read_text()


def test_sigterm_ends_a_build_on_ray_with_one_line(footage, tmp_path):
    words = command(footage, tmp_path / "dataset", "--engine", "ray", "--cores", "1")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not list((tmp_path / "dataset").glob("state/sources/*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.split("\n") == ["", "stopped; finished work is kept: run the same command again to continue", ""]


def test_a_second_build_into_the_same_folder_says_so_and_an_interrupt_says_how_to_go_on(footage, tmp_path):
    dataset = tmp_path / "dataset"
    first = subprocess.Popen(command(footage, dataset), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not (dataset / ".lock").exists() or not (dataset / ".lock").read_text():
        time.sleep(0.02)
    with pytest.raises(DatasetError, match=f"another build is writing .*process {first.pid}"):
        build([str(footage)], str(dataset), load_recipe("embedded", OPTIONS), cores=1)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate()
    assert first.returncode == 130
    assert "run the same command again to continue" in errors
    assert not (dataset / "dataset.json").exists()


def test_a_folder_that_holds_something_else_is_left_alone(footage, tmp_path):
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(DatasetError, match=r"holds something else \(thesis.doc\)"):
        build([str(footage)], str(tmp_path), load_recipe("embedded", OPTIONS), cores=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_a_dataset_of_another_format_is_refused(copied, footage):
    info = json.loads((copied / "dataset.json").read_text())
    (copied / "dataset.json").write_text(json.dumps({**info, "format": 99}))
    with pytest.raises(DatasetError, match="has format 99, this clipmill writes 1: build into a new folder"):
        build([str(footage)], str(copied), load_recipe("embedded", OPTIONS), cores=1)
    (copied / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match="is damaged: delete it and build again"):
        build([str(footage)], str(copied), load_recipe("embedded", OPTIONS), cores=1)
