"""Whatever a source does to the scan becomes the reason of its row, with a traceback; faults of the machine stop."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mutations
import pyarrow.parquet as pq
import pytest
from repository import SHARED
from videos import pan, texture, write_video

from pipeline.config.recipe import Recipe, ScanOptions, load_recipe
from pipeline.media.video import MediaError, Probe
from pipeline.scan import worker as workers
from pipeline.scan.scan import scan, segments
from pipeline.scan.worker import Identify, Scan
from pipeline.sources.discover import DiscoveredFile, Source
from pipeline.state.committed import UNREACHABLE
from pipeline.state.error_log import FEWEST, FOLDER, why_stop
from pipeline.state.units import Handoff, IdentifyUnit, Part, ScanUnit
from pipeline.storage.store import Store

HARD = SHARED / "hard"
SHORT = Recipe(scan=ScanOptions(min_seconds=0.2, deadline_seconds=20.0, memory_mb=900))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return mutations.originals(tmp_path_factory.mktemp("originals"))


def identified(paths: Sequence[Path], store: Store, recipe: Recipe = SHORT) -> tuple[list[dict[str, Any]], Any]:
    """Rows of the sources, and the worker's result."""
    files = [DiscoveredFile(str(p), p.stat().st_size, str(p.stat().st_mtime_ns)) for p in paths]
    result = Identify(store, recipe)(IdentifyUnit(tuple(files)))
    rows = [] if result.problem else pq.read_table(store.path(result.fragment)).to_pylist()
    return rows, result


def scanned(paths: Sequence[Path], store: Store, recipe: Recipe = SHORT) -> tuple[list[dict[str, Any]], Any]:
    """What the fragment says of each file as a part, and the worker's result."""
    unit = ScanUnit(tuple(Part(Source(p.name, str(p)), 1.0) for p in paths))
    answer = Scan(store, recipe)(unit)
    result = answer.results[0] if isinstance(answer, Handoff) else answer
    done = {} if result.problem else json.loads(pq.read_metadata(store.path(result.fragment)).metadata[b"clipmill"])
    return done.get("parts", []), result


def logged(store: Store, name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in store.list(f"{FOLDER}/{name}")
        for line in store.read(file).decode().splitlines()
    ]  # fmt: skip


def broken_scan(source: Source, *_: object) -> None:
    raise ZeroDivisionError(source.uri)


def broken_for_one(source: Source, recipe: Recipe, segment: None) -> object:
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
    (one, two), result = scanned([tmp_path / "one.mp4", tmp_path / "two.mp4"], store)
    assert one["error"].startswith("internal error: IndexError at ")
    assert one["error"].endswith(": no such frame")
    assert one["limits"] == UNREACHABLE
    assert "error" not in two
    assert list(result.unforeseen.values()) == [1]
    (entry,) = logged(store, "scan")
    assert entry["source"] == str(tmp_path / "one.mp4")
    assert "in broken_for_one" in entry["traceback"]
    scanned([tmp_path / "one.mp4", tmp_path / "two.mp4"], store)
    assert logged(store, "scan") == [entry]


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
    for name in ("identify", "scan"):
        monkeypatch.setattr(workers, name, full_disk)
    assert identified([path], store)[1].problem.startswith("no space left on device")
    assert scanned([path], store)[1].problem.startswith("no space left on device")
    monkeypatch.undo()
    monkeypatch.setattr("pipeline.storage.store.os.fsync", full_disk)
    assert identified([path], store)[1].problem.startswith("no space left on device")
    assert scanned([path], store)[1].problem.startswith("no space left on device")
    monkeypatch.undo()
    assert store.list("") == []


def test_a_source_that_may_not_be_read_is_a_row_and_a_store_that_may_not_be_written_stops(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.symlink_to("/proc/1/mem")  # opens for nobody, or has nothing to read
    file = DiscoveredFile(str(secret), 1, "1")
    result = Identify(Store(str(tmp_path / "out")), SHORT)(IdentifyUnit((file,)))
    assert result.counts == {"sources": 1, "failed": 1}
    assert not result.problem
    (tmp_path / "file").touch()
    stopped = Identify(Store(str(tmp_path / "file")), SHORT)(IdentifyUnit((file,)))
    assert "not a directory" in stopped.problem or "file exists" in stopped.problem


def test_limits_say_which_of_them_a_source_is_over(sources: dict[str, bytes], tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    path = tmp_path / "streams.mkv"
    mutations.many_streams(path, 70)
    (part,), _ = scanned([path], store)
    assert part["error"] == "70 streams, more than scan.max_streams allows (64)"
    film = write_video(tmp_path / "film.mp4", pan(texture(1, 48, 64), 60, 1.0))
    few = Recipe(scan=ScanOptions(min_seconds=0.2, max_gigapixels=20 * 48 * 64 / 1e9))
    (part,), result = scanned([film], store, few)
    assert part["note"].endswith("more pixels than scan.max_gigapixels allows (6.144e-05)")
    assert result.counts["clips"] == 1
    (row,), _ = identified([film], store, Recipe(scan=ScanOptions(max_gb=1e-6)))
    assert row["error"] == "0.0 GB, more than scan.max_gb allows (1e-06)"
    assert row["status"] == UNREACHABLE
    patient = Recipe(scan=ScanOptions(deadline_seconds=0.0, deadline_factor=0.0))
    (part,), _ = scanned([film], store, patient)
    assert part["error"] == "took longer than 0 s"


def test_a_build_stops_for_one_exception_in_many_sources_and_not_in_few() -> None:
    place = "IndexError at pipeline/scan/tracks.py:112"
    assert why_stop({}, 1000) == ""
    assert why_stop({place: FEWEST - 1}, FEWEST) == ""
    assert why_stop({place: 100}, 1000) == ""
    assert why_stop({place: 60, "KeyError at filters/logo.py:1": 60}, 1000) == ""
    assert why_stop({place: 101}, 1000).startswith(f"{place} hit 101 of 1,000 sources")
