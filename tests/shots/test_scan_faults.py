"""Whatever a source does to the scan becomes the reason of its row, with a traceback; faults of the machine stop."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hostile
import pyarrow.parquet as pq
import pytest
from footage import mutations
from footage.videos import pan, texture, write_video
from repository import SHARED

from pipeline.config.recipe import Recipe, ScanOptions, load_recipe
from pipeline.media.video import MediaError, Probe
from pipeline.passes.identify import identify_units
from pipeline.passes.snapshot import source_rows
from pipeline.scan import worker as workers
from pipeline.scan.scan import Scanned, scan, segments
from pipeline.scan.worker import Identify, Scan
from pipeline.sources.discover import DiscoveredFile, Source
from pipeline.state import committed
from pipeline.state.error_log import FEWEST, FOLDER, why_stop
from pipeline.state.units import IdentifyUnit, Part, ScanUnit
from pipeline.storage.store import Store
from pipeline.tables.fragments import clip_id

HARD = SHARED / "hard"
SHORT = Recipe(scan=ScanOptions(min_seconds=0.2, deadline_seconds=20.0, memory_mb=900))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return mutations.originals(tmp_path_factory.mktemp("originals"))


def identified(paths: Sequence[Path], store: Store, recipe: Recipe = SHORT) -> tuple[list[dict[str, Any]], Any]:
    """Rows of the sources, and the worker's result."""
    files = [DiscoveredFile(str(p), p.stat().st_size, str(p.stat().st_mtime_ns)) for p in paths]
    result = Identify(store, recipe)(IdentifyUnit(tuple(files)))
    return pq.read_table(store.path(result.fragment)).to_pylist(), result


def scanned(paths: Sequence[Path], store: Store, recipe: Recipe = SHORT) -> tuple[list[dict[str, Any]], Any]:
    """What the fragment says of each file as a part, and the worker's result."""
    unit = ScanUnit(tuple(Part(Source(p.name, str(p)), 1.0) for p in paths))
    (result,) = Scan(store, recipe)(unit).results
    done = json.loads(pq.read_metadata(store.path(result.fragment)).metadata[b"clipmill"])
    return done["parts"], result


def logged(store: Store, name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in store.list(f"{FOLDER}/{name}")
        for line in store.read(file).decode().splitlines()
    ]  # fmt: skip


def broken_scan(source: Source, *_: object) -> None:
    raise ZeroDivisionError(source.uri)


def broken_for_one(source: Source, recipe: Recipe, segment: None) -> Scanned:
    if "one" in source.uri:
        raise IndexError("no such frame")
    return scan(source, recipe, segment)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def huge_numbers(*_: object) -> tuple[Probe, str]:
    from fractions import Fraction

    return Probe(1.0, 25.0, 2**40, 10, 10, 10, 0, "h264", "yuv420p", Fraction(1, 25), 0.0), "id"


@pytest.mark.parametrize(
    "name", ["edited_sports.mp4", "no_timescale.mp4", "fixture.ogm", "no-ftyp.avif", "invalid-bitstream.webm"]
)
def test_files_that_broke_other_tools_are_one_row_each(name: str, tmp_path: Path) -> None:
    if not (HARD / name).exists():
        pytest.skip("the hard files are not here")
    store = Store(str(tmp_path))
    (row,), result = identified([HARD / name], store)
    assert (row["status"] == "ok") == (row["error"] is None)
    if row["status"] == "ok":
        (part,), result = scanned([HARD / name], store, load_recipe("embedded"))
        assert "error" not in part
        assert result.counts["clips"] > 0
    assert not result.unforeseen


@pytest.mark.parametrize(
    ("box", "offset", "value"), [(b"stts", 12, 0x7FFFFFFF), (b"mdhd", 12, 0), (b"mvhd", 12, 0), (b"stts", 8, 1)]
)
def test_frames_that_last_years_and_a_timescale_of_zero_are_no_errors(
    sources: dict[str, bytes], tmp_path: Path, box: bytes, offset: int, value: int
) -> None:
    for name in ("plain.mp4", "fast.mp4"):
        path = tmp_path / name
        path.write_bytes(mutations.patch_mp4(sources[name], box, offset, value))
        try:
            result = scan(Source("id", str(path)), SHORT)
        except MediaError:
            continue
        assert not result.errors
        assert all(clip["end"] >= clip["start"] and clip["frames"] > 0 for clip in result.clips)


def test_a_stream_that_appears_while_reading_does_not_end_the_scan(sources: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "flipped.ts"
    clips = 0
    for seed in (56, 80, 151, 171, 175, 177):  # for which PyAV was seen to raise IndexError at the end
        rng, data = random.Random(seed), bytearray(sources["h264.ts"] * 3)
        for _ in range(rng.choice((8, 32, 128, 400))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            clips += len(scan(Source("id", str(path)), SHORT).clips)
        except MediaError:
            continue
    assert clips > 2


def test_a_header_that_promises_years_makes_one_part(sources: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "years.mp4"
    data = mutations.patch_mp4(sources["plain.mp4"], b"mdhd", 16, 0xFFFFFFFF)
    path.write_bytes(mutations.patch_mp4(data, b"mvhd", 16, 0xFFFFFFFF))
    (row,), _ = identified([path], Store(str(tmp_path / "out")))
    assert row["status"] == "ok"
    assert row["duration"] < 600
    assert segments(0.0, 1e12, 600.0) == [(0.0, 1e12)]


def test_an_exception_nobody_foresaw_is_the_reason_of_its_part_and_is_tried_again(
    sources: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "out"))
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / name).write_bytes(sources["plain.mp4"])
    monkeypatch.setattr(workers, "scan", broken_for_one)
    (first, second), result = scanned([tmp_path / "one.mp4", tmp_path / "two.mp4"], store)
    assert first["error"].startswith("internal error: IndexError at ")
    assert first["error"].endswith(": no such frame")
    assert first["unreachable"]
    assert "error" not in second
    assert [len(sources) for sources in result.unforeseen.values()] == [1]
    (entry,) = logged(store, "scan")
    assert entry["source"] == str(tmp_path / "one.mp4")
    assert "in broken_for_one" in entry["traceback"]
    scanned([tmp_path / "one.mp4", tmp_path / "two.mp4"], store)
    assert logged(store, "scan") == [entry]


def lying(source: Source, *_: object) -> Scanned:
    """What a decoder that the bytes of `source` have taken over may send: a clip whose id leads out of its folder."""
    return Scanned([{**CLIP, "clip_id": "../../film", "source_id": source.source_id}], [], {"decode": 1.0})


def of_another_source(source: Source, *_: object) -> Scanned:
    return Scanned([{**CLIP, "clip_id": clip_id("other", 0, 9, "1/9"), "source_id": "other"}], [], {})


def mistyped(source: Source, *_: object) -> Scanned:
    name = clip_id(source.source_id, 0, 9, "1/9")
    row = {**CLIP, "clip_id": name, "source_id": source.source_id}
    return Scanned([row], [{"clip_id": name, "index": 0, "time": 0.0, "jpeg": [1.5]}], {})


CLIP = {"start_pts": 0, "end_pts": 9, "time_base": "1/9"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(lying, "the process sent rows of other"), (of_another_source, "the process sent"), (mistyped, "internal error")],
)
def test_a_forged_answer_fails_its_own_part_only(
    answer: Callable[..., Scanned],
    reason: str,
    sources: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(sources["plain.mp4"])
    monkeypatch.setattr(workers, "scan", answer)
    (part,), result = scanned([path], Store(str(tmp_path / "out")))
    assert part["error"].startswith(reason)
    assert result.counts == {"clips": 0, "failed": 1}


def pickled(*_: object) -> Scanned:
    hostile.send_and_wait(hostile.framed(hostile.PICKLE))
    raise AssertionError("the parent has not killed this process")


def test_a_child_that_sends_a_pickle_fails_its_own_part_only_and_the_pickle_does_not_run(
    sources: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(sources["plain.mp4"])
    monkeypatch.setenv(hostile.MARK, "before")
    monkeypatch.setattr(workers, "scan", pickled)
    (part,), result = scanned([path], Store(str(tmp_path / "out")))
    assert part["error"] == "the process sent an answer that cannot be read"
    assert result.counts == {"clips": 0, "failed": 1}
    assert os.environ[hostile.MARK] == "before"


def test_numbers_that_no_column_takes_fail_their_own_row_only(
    sources: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(sources["plain.mp4"])
    monkeypatch.setattr(workers, "identify", huge_numbers)
    (row,), result = identified([path], Store(str(tmp_path / "out")))
    assert row["error"].startswith("internal error: ArrowInvalid")
    assert row["width"] is None
    assert result.counts["failed"] == 1


def test_a_fault_of_the_machine_stops_the_build_and_commits_nothing(
    sources: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(sources["plain.mp4"])
    store = Store(str(tmp_path / "out"))
    for places in (
        ("pipeline.scan.worker.identify", "pipeline.scan.worker.scan"),
        ("pipeline.storage.store.os.fsync",),
    ):
        with monkeypatch.context() as patch:
            for place in places:
                patch.setattr(place, full_disk)
            for work in (identified, scanned):
                with pytest.raises(OSError, match="No space left on device"):
                    work([path], store)
    assert store.list("") == []


def test_a_source_that_may_not_be_read_is_a_row_and_a_store_that_may_not_be_written_stops(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.symlink_to("/proc/1/mem")  # opens for nobody, or has nothing to read
    file = DiscoveredFile(str(secret), 1, "1")
    result = Identify(Store(str(tmp_path / "out")), SHORT)(IdentifyUnit((file,)))
    assert result.counts == {"sources": 1, "failed": 1, "skipped": 0}
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        Identify(Store(str(tmp_path / "file")), SHORT)(IdentifyUnit((file,)))


def test_limits_say_which_of_them_a_source_is_over(sources: dict[str, bytes], tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    path = tmp_path / "streams.mkv"
    mutations.many_streams(path, 70)
    (part,), _ = scanned([path], store)
    assert part["error"] == "70 streams, more than scan.max_streams allows (64)"
    film = write_video(tmp_path / "film.mp4", pan(texture(1, 48, 64), 60, 1.0))
    few = Recipe(scan=ScanOptions(min_seconds=0.2, max_gigapixels=20 * 48 * 64 / 1e9))
    (part,), result = scanned([film], store, few)
    assert part["error"] == "more pixels than scan.max_gigapixels allows (6.144e-05) until 1.32 s"
    assert part["limits"] == {"max_gigapixels": few.scan.max_gigapixels}
    assert result.counts["clips"] == 0
    (row,), _ = identified([film], store, Recipe(scan=ScanOptions(max_gb=1e-6)))
    assert row["error"] == "0.0 GB, more than scan.max_gb allows (1e-06)"
    assert (row["status"], row["limits"]) == ("failed", '{"max_gb": 1e-06}')
    patient = Recipe(scan=ScanOptions(deadline_seconds=0.0, deadline_factor=0.0))
    (part,), _ = scanned([film], store, patient)
    assert part["error"] == "took longer than 0 s"


def test_a_file_over_a_limit_is_read_again_once_the_limit_is_raised_and_only_then(tmp_path: Path) -> None:
    store, film = Store(str(tmp_path / "out")), write_video(tmp_path / "film.mp4", pan(texture(1, 48, 64), 12, 1.0))
    file = DiscoveredFile(str(film), film.stat().st_size, str(film.stat().st_mtime_ns))
    small, large = Recipe(scan=replace(SHORT.scan, max_gb=1e-6)), SHORT
    others = replace(small.scan, memory_mb=2000, deadline_seconds=500.0, max_gigapixels=1e6)
    identified([film], store, small)
    for options in (small.scan, others, replace(small.scan, max_gb=1e-7)):
        assert list(identify_units([file], store, options)) == []
        assert source_rows([file], store, options)["status"].to_pylist() == ["failed"]
    assert [unit.files for unit in identify_units([file], store, large.scan)] == [(file,)]
    identified([film], store, large)
    for options in (small.scan, large.scan):  # a limit decides only whether a file is read
        assert list(identify_units([file], store, options)) == []
        assert source_rows([file], store, options)["status"].to_pylist() == ["ok"]


@pytest.mark.parametrize(
    ("limit", "least", "enough"),
    [("max_streams", 60, 80), ("max_gigapixels", 1e-9, 1.0), ("deadline_seconds", 0.0, 300.0), ("memory_mb", 1, 900)],
)
def test_a_part_over_a_limit_is_scanned_again_once_the_limit_is_raised_and_only_then(
    limit: str, least: float, enough: float, tmp_path: Path
) -> None:
    store, path = Store(str(tmp_path / "out")), tmp_path / "film.mkv"
    mutations.many_streams(path, 70)
    large = Recipe(scan=replace(SHORT.scan, deadline_factor=0.0, max_streams=80))
    small = Recipe(scan=replace(large.scan, **{limit: least}))
    (part,), _ = scanned([path], store, small)
    assert part["limits"][limit] == least
    other = "max_streams" if limit != "max_streams" else "memory_mb"
    for options in (small.scan, replace(small.scan, **{limit: least / 2}), replace(small.scan, **{other: 5000})):
        assert list(committed.scanned(store, Recipe(scan=options)).errors) == ["film.mkv"]
    assert committed.scanned(store, large).keys.to_pylist() == []
    (part,), _ = scanned([path], store, large)
    assert "error" not in part
    for recipe in (small, large):
        assert committed.scanned(store, recipe).keys.to_pylist() == ["film.mkv"]


def test_a_build_stops_for_one_exception_in_many_sources_and_not_in_few() -> None:
    place = "IndexError at pipeline/scan/tracks.py:112"
    assert why_stop({}, 1000) == ""
    assert why_stop({place: FEWEST - 1}, FEWEST) == ""
    assert why_stop({place: 100}, 1000) == ""
    assert why_stop({place: 60, "KeyError at filters/overlays/logo.py:1": 60}, 1000) == ""
    assert why_stop({place: 101}, 1000).startswith(f"{place} hit 101 of 1,000 sources")
