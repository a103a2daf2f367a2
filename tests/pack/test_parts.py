"""Parts of shards: joined, they have the bytes of a shard that was written at once, whoever wrote them and where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import packing_rows
import pyarrow as pa
import pytest
from footage import videos
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.recipe import PackOptions, Recipe, SelectOptions
from pipeline.pack import parts
from pipeline.pack.clip_encoder import ClipEncoder
from pipeline.pack.parts import join_parts, part_file, parts_of, rows_file, spool_of
from pipeline.pack.shards import ShardPlan, index_path, plan_shards, stored_clips, write_shard
from pipeline.pack.worker import Pack, PackUnit, Transcode, TranscodeUnit
from pipeline.selection.select import select
from pipeline.storage.store import Store
from pipeline.tables.fragments import write_fragment

RECIPE = Recipe(select=SelectOptions(duplicates=False, val_fraction=0.0), pack=PackOptions(heights=(96,)))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ShardPlan:
    """A shard of seven clips of two videos, of which one cannot be encoded."""
    folder = tmp_path_factory.mktemp("sources")
    rows = []
    for seed, name in enumerate(("a", "b")):
        moving = videos.pan(videos.texture(seed, 108, 192), 40, 2)
        path = videos.write_video(folder / f"{name}.mp4", moving, g="20", bf="2")
        rows += packing_rows.rows_of(path, [(0, 10), (10, 20), (20, 39)])
    rows.append({**rows[0], "clip_id": "0" * 20, "source_uri": str(folder / "gone.mp4")})
    (plan,) = plan_shards(select(packing_rows.clips_table(rows), RECIPE), RECIPE)
    return plan


@pytest.fixture(scope="module")
def encoder() -> Iterator[ClipEncoder]:
    with ClipEncoder() as encoder:
        yield encoder


@pytest.fixture(scope="module")
def whole(plan: ShardPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder with the shard, written at once."""
    folder = tmp_path_factory.mktemp("whole")
    assert write_shard(plan, folder).clips == 6
    return folder


def shard_files(folder: Path, plan: ShardPlan) -> list[bytes]:
    return [(folder / plan.path).read_bytes(), index_path(folder / plan.path).read_bytes()]


@settings(max_examples=8, deadline=None)
@given(numbers=st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_clips_that_were_written_in_any_parts_become_the_same_shard(
    plan: ShardPlan, whole: Path, encoder: ClipEncoder, tmp_path_factory: pytest.TempPathFactory, numbers: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    reuse = stored_clips(Store(str(whole)), [plan.path], plan.rows()["clip_id"])
    tars = []
    for number in set(numbers):
        part = ShardPlan(f"parts/{number}.tar", plan.options, plan.rows(), np.flatnonzero(np.equal(numbers, number)))
        result = write_shard(part, folder, reuse, encoder)
        assert result.reused == result.clips
        tars.append(part.path)
    result = join_parts(Store(str(folder)), tars, plan.name, plan.path, folder)
    assert [clip for clip, _ in result.failures] == ["0" * 20]
    assert shard_files(folder, plan) == shard_files(whole, plan)


def test_every_clip_is_in_one_part_which_holds_consecutive_spans(
    plan: ShardPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = plan.rows()
    assert [part.tolist() for part in parts_of(rows, plan.options)] == [list(range(7))]
    monkeypatch.setattr(parts, "PART_BYTES", 1.0)
    firsts = [rows.slice(int(part[0]), 1).to_pylist()[0] for part in parts_of(rows, plan.options)]
    spans = [(row["source_uri"], row["start_pts"]) for row in firsts]
    assert len(spans) == 7
    assert spans == sorted(spans)
    shuffled = rows.take(pa.array(np.random.default_rng(1).permutation(7)))
    monkeypatch.setattr(parts, "PART_BYTES", 12_000.0)
    ids = [rows["clip_id"].take(pa.array(part)).to_pylist() for part in parts_of(rows, plan.options)]
    assert 1 < len(ids) < 7
    assert [
        sorted(shuffled["clip_id"].take(pa.array(part)).to_pylist()) for part in parts_of(shuffled, plan.options)
    ] == ids


def test_a_part_that_is_cut_off_stops_the_shard_and_leaves_nothing_of_it(
    plan: ShardPlan, whole: Path, tmp_path: Path
) -> None:
    reuse = stored_clips(Store(str(whole)), [plan.path], plan.rows()["clip_id"])
    part = ShardPlan("parts/0.tar", plan.options, plan.rows(), plan.clips)
    write_shard(part, tmp_path, reuse)
    with open(tmp_path / part.path, "r+b") as file:
        file.truncate(20_000)
    with pytest.raises(OSError, match="is cut off"):
        join_parts(Store(str(tmp_path)), [part.path], plan.name, plan.path, tmp_path)
    assert not (tmp_path / "shards").exists() or not list((tmp_path / "shards").rglob("*.*"))


def test_workers_on_an_object_store_write_the_same_shard_and_delete_its_parts(
    plan: ShardPlan, whole: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 12_000.0)
    store, spool = Store(f"s3://films/{tmp_path.name}{s3}"), spool_of(plan.name)
    write_fragment(store, rows_file(spool), plan.rows(), {})
    transcode, clips = Transcode(store, RECIPE), [len(rows) for rows in parts_of(plan.rows(), plan.options)]
    results = [transcode(TranscodeUnit(spool, number, count)) for number, count in enumerate(clips)]
    assert [result.problem for result in results] == [""] * len(clips)
    assert sum(result.counts["clips"] for result in results) == 6
    assert part_file(spool, len(clips) - 1) in store.list(spool)
    assert Pack(store, RECIPE)(PackUnit(plan.path, plan.name, spool, 7)).problem == ""
    assert [store.read(plan.path), store.read(str(index_path(Path(plan.path))))] == shard_files(whole, plan)
    assert {name.partition("/")[0] for name in store.list("")} == {"shards", "state"}
    assert not store.list(spool)
