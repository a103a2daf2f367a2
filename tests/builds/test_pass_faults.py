"""Encoders, filters and captioners that raise for one clip: null or a reason there, its traceback kept, others done."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from footage.videos import pan, texture, write_video

import filters
from captioners.base import Caption, CaptionerDown, CaptionError, ClipFrames
from filters.base import ClipView, Score, Track, score, why_null
from filters.encoders.base import EncoderOutput
from pipeline.config.recipe import CaptionOptions, Recipe, ScanOptions
from pipeline.engine.base import Machine, Stage
from pipeline.engine.local import LocalEngine
from pipeline.passes import caption_worker, embed_worker
from pipeline.passes.base import Outlook, Pass
from pipeline.passes.caption_worker import CaptionClips
from pipeline.passes.embed_worker import Embed
from pipeline.passes.run import run_passes
from pipeline.passes.snapshot import Snapshot
from pipeline.scan.worker import Scan
from pipeline.sources.discover import Source
from pipeline.state.error_log import FOLDER
from pipeline.state.units import BuildStopped, CaptionPart, CaptionUnit, Handoff, Part, ScanUnit, UnitClips, UnitResult
from pipeline.storage.store import Store
from pipeline.tables.fragments import IdRange

RECIPE = Recipe(
    scan=ScanOptions(min_seconds=0.5),
    filters={"colour": {}, "sharpness": {}, "tags": {}},
    caption=CaptionOptions(batch=4, audit=False),
)


class Encoder:
    """Gives every frame the same vector; raises `error` for the call `fails`."""

    id, dim = "same:1", 4

    def __init__(self, error: Exception | None = None, fails: int = 1) -> None:
        self.error, self.fails, self.calls = error, fails, 0

    def look(self, frames: Sequence[np.ndarray]) -> EncoderOutput:
        self.calls += 1
        if self.error and self.calls == self.fails:
            raise self.error
        rows = np.full((len(frames), self.dim), 0.5, np.float32)
        return EncoderOutput(rows, rows, [[("dog", 0.5)]] * len(frames))


class Captioner:
    """A caption for every clip, but an exception for a batch that has the clip `bad`."""

    id = "one:1"

    def __init__(self, bad: str = "", error: Exception | None = None) -> None:
        self.bad, self.error = bad, error or KeyError("choices")

    def caption(self, clips: Sequence[ClipFrames]) -> list[Caption | CaptionError]:
        if any(clip.clip_id == self.bad for clip in clips):
            raise self.error
        return [Caption(clip.clip_id, "A dog.", "A dog runs over a field.") for clip in clips]


class Fragile:
    """A filter that cannot take pictures wider than 64 pixels, and is wrong about a number."""

    name, version, needs = "fragile", 1, frozenset({Track.FRAMES})
    columns = filters.load_filter("colour", {}, Encoder()).columns

    def score(self, clip: ClipView) -> dict[str, Score]:
        if clip.width > 64:
            raise IndexError("index 64 is out of bounds")
        return dict.fromkeys(self.columns, 1.0)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, UnitClips]:
    """Three clips of one film, scanned."""
    folder = tmp_path_factory.mktemp("film")
    frames = [frame for seed in range(3) for frame in pan(texture(seed, 90, 160), 30, 1.5)]
    path = write_video(folder / "film.mp4", frames)
    store = Store(str(folder / "dataset"))
    passed_on = Scan(store, RECIPE)(ScanUnit((Part(Source("ab" * 16, str(path)), 3.6),)))
    assert isinstance(passed_on, Handoff)
    assert passed_on.results[0].counts["clips"] == 3
    return store, passed_on.unit


def embedded(scanned: tuple[Store, UnitClips], encoder: Encoder) -> tuple[list[dict[str, Any]], UnitResult]:
    store, clips = scanned
    for name in store.list("state/embed") + store.list(FOLDER):
        store.delete(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed_worker, "load_encoder", lambda *_: encoder)
        result = Embed(store, RECIPE)(clips)
    return [row for name in store.list("state/embed") for row in pq.read_table(store.path(name)).to_pylist()], result


def caption_unit(scanned: tuple[Store, UnitClips]) -> CaptionUnit:
    store, clips = scanned
    for name in store.list("state/caption"):
        store.delete(name)
    rows, _ = embedded(scanned, Encoder())
    part = UnitClips(clips.unit, clips.fragment, tuple(row["clip_id"] for row in rows), IdRange())
    return CaptionUnit((CaptionPart(part, tuple(store.list("state/embed"))),))


def captioned(scanned: tuple[Store, UnitClips], captioner: Captioner) -> tuple[list[dict[str, Any]], UnitResult]:
    store = scanned[0]
    result = CaptionClips(store, RECIPE, captioner)(caption_unit(scanned))
    return [row for name in store.list("state/caption") for row in pq.read_table(store.path(name)).to_pylist()], result


def test_frames_of_the_first_clips_are_read_while_the_captioner_loads(
    scanned: tuple[Store, UnitClips], monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, is_read, read = caption_unit(scanned), threading.Event(), caption_worker.clips_with_frames

    def reading(*args: Any) -> Any:
        frames = read(*args)
        is_read.set()
        return frames

    def loading(*_: Any) -> Captioner:
        assert is_read.wait(20)
        return Captioner()

    monkeypatch.setattr(caption_worker, "clips_with_frames", reading)
    monkeypatch.setattr(caption_worker, "load_captioner", loading)
    assert CaptionClips(scanned[0], RECIPE)(unit).counts["captions"] == 3


def test_a_captioner_that_cannot_be_loaded_stops_the_build_with_a_line(
    scanned: tuple[Store, UnitClips], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loading(*_: Any) -> Captioner:
        raise OSError("no weights in FOLDER")

    monkeypatch.setattr(caption_worker, "load_captioner", loading)
    with pytest.raises(BuildStopped, match="CaptionClips cannot start: no weights in FOLDER"):
        CaptionClips(scanned[0], RECIPE)(caption_unit(scanned))


def entries(store: Store, name: str) -> list[dict[str, Any]]:
    files = store.list(f"{FOLDER}/{name}")
    return [json.loads(line) for file in files for line in store.read(file).decode().splitlines()]


def test_a_clip_that_the_encoder_cannot_take_has_no_embedding_and_the_others_have(
    scanned: tuple[Store, UnitClips],
) -> None:
    rows, result = embedded(scanned, Encoder(RuntimeError("shape mismatch"), 2))
    assert [row["embedding"] is None for row in rows].count(True) == 1
    (row,) = [row for row in rows if row["embedding"] is None]
    assert row["colour_null"] is None
    assert row["tags_null"]
    (entry,) = entries(scanned[0], "embed")
    assert (entry["clip"], entry["step"]) == (row["clip_id"], "encoder")
    assert "shape mismatch" in entry["traceback"]
    assert [len(sources) for sources in result.unforeseen.values()] == [1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("CUDA error: assert"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_a_machine_that_cannot_go_on_stops_the_embed_pass_and_commits_nothing(
    scanned: tuple[Store, UnitClips], error: Exception
) -> None:
    with pytest.raises(type(error)):
        embedded(scanned, Encoder(error))
    assert scanned[0].list("state/embed") == []


def test_a_filter_that_raises_gives_null_with_the_exception_as_its_reason() -> None:
    errors: list[tuple[str, str, str]] = []
    views = [ClipView(str(width), 0.0, 1.0, 25.0, width, 36) for width in (64, 128)]
    fine, broken = score(Fragile(), views, lambda name, clip, error: errors.append((name, clip.clip_id, str(error))))
    assert set(fine.values()) == {1.0}
    why = broken.pop(why_null("fragile"))
    assert set(broken.values()) == {None}
    assert isinstance(why, str)
    assert why.startswith("internal error: IndexError at ")
    assert errors == [("fragile", "128", "index 64 is out of bounds")]


def test_a_batch_that_a_captioner_cannot_take_costs_one_caption(scanned: tuple[Store, UnitClips]) -> None:
    rows, result = captioned(scanned, Captioner())
    assert [row["caption_error"] for row in rows] == [None] * 3
    bad = rows[1]["clip_id"]
    rows, result = captioned(scanned, Captioner(bad))
    reasons = {row["clip_id"]: row["caption_error"] for row in rows}
    assert reasons.pop(bad).startswith("internal error: KeyError at ")
    assert set(reasons.values()) == {None}
    assert not result.problem
    assert [entry["step"] for entry in entries(scanned[0], "caption")] == ["captioner"]


def test_a_captioner_that_is_down_or_cannot_reach_its_server_stops_the_pass(scanned: tuple[Store, UnitClips]) -> None:
    bad = embedded(scanned, Encoder())[0][1]["clip_id"]
    rows, result = captioned(scanned, Captioner(bad, CaptionerDown("the server is down")))
    assert (rows, result.problem) == ([], "the server is down")
    for error in (ConnectionRefusedError(111, "Connection refused"), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(type(error)):
            captioned(scanned, Captioner(bad, error))
        assert scanned[0].list("state/caption") == []


class Faulty(Pass):
    """A pass of one unit, whose worker raises `error`."""

    name, measure = "faulty", "clips"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def fingerprint(self, recipe: Any) -> str:
        return "f" * 16

    def pending(self, snapshot: Snapshot, workers: int) -> Iterator[UnitClips]:
        yield UnitClips("unit", "fragment", ("clip",))

    def stages(self, snapshot: Snapshot, machine: Machine) -> list[Stage]:
        return [Stage(Raising, (self.error,), UnitClips, cpus=1.0)]

    def outlook(self, snapshot: Snapshot) -> Outlook:
        return Outlook(units=1, clips=1)


class Raising:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, unit: UnitClips) -> UnitResult:
        raise self.error


@pytest.mark.parametrize(
    ("error", "ends", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), BuildStopped, "^CUDA out of memory$"),
        (OSError(errno.ENOSPC, "No space left on device"), OSError, "No space left on device"),
        (KeyError("choices"), BuildStopped, "KeyError at .* The traceback is in"),
    ],
)
def test_a_fault_of_the_machine_ends_a_pass_in_one_line_and_an_error_in_the_program_with_a_traceback(
    tmp_path: Path, error: Exception, ends: type[Exception], message: str
) -> None:
    with pytest.raises(ends, match=message):
        run_passes((Faulty(error),), Snapshot(Store(str(tmp_path)), RECIPE, []), LocalEngine(1), {})
