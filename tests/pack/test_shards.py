"""Shards: planned as a function of the clips, written to the byte, and read by the field's libraries."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import packing_rows as rows
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from footage import videos
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.recipe import PackOptions, Recipe, SelectOptions
from pipeline.media.video import Video
from pipeline.pack.clip_encoder import ClipEncoder
from pipeline.pack.shards import ShardPlan, ShardResult, index_path, listed, plan_shards, stored_clips, write_shard
from pipeline.selection.buckets import bucket_size
from pipeline.selection.select import select
from pipeline.storage.store import Store

RECIPE = Recipe(select=SelectOptions(duplicates=False, val_fraction=0.0), pack=PackOptions(heights=(96,)))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Nine kept clips of three small videos, and a still image."""
    folder = tmp_path_factory.mktemp("sources")
    clip_rows: list[dict[str, Any]] = []
    for seed in range(3):
        moving = videos.pan(videos.texture(seed, 108, 192), 36, 2)
        path = videos.write_video(folder / f"{seed}.mp4", moving, g="20", bf="2")
        clip_rows += rows.rows_of(path, [(0, 10), (10, 24), (25, 36)])
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(folder / "still.png"), videos.texture(9, 108, 192))
    clip_rows += rows.rows_of(folder / "still.png", [(0, 1)])
    table = select(rows.clips_table([row | {"metadata": '{"license": "CC-BY"}'} for row in clip_rows]), RECIPE)
    assert table["keep"].to_pylist() == [True] * 10
    return table


def written(clips: pa.Table, folder: Path, recipe: Recipe = RECIPE) -> list[ShardResult]:
    with ClipEncoder() as encoder:
        return [write_shard(plan, folder, None, encoder) for plan in plan_shards(clips, recipe)]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def dataset(clips: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    written(clips, folder)
    return folder


def test_a_shard_is_the_same_to_the_byte_whatever_the_order_of_rows_and_chunks(
    clips: pa.Table, dataset: Path, tmp_path: Path
) -> None:
    order = np.random.default_rng(1).permutation(len(clips))
    shuffled = pa.concat_tables([clips.take(pa.array(order[:4])), clips.take(pa.array(order[4:]))])
    written(shuffled, tmp_path)
    assert contents(tmp_path) == contents(dataset)


def test_a_tar_has_no_times_or_owners_and_three_members_a_clip_in_order(clips: pa.Table, dataset: Path) -> None:
    paths = {path.relative_to(dataset).as_posix(): path for path in dataset.rglob("*.tar")}
    assert set(paths) == {"shards/16x9-96p/train-000001.tar", "shards/16x9-96p-still/train-000001.tar"}
    for name, path in paths.items():
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        still = "-still" in name
        keys = sorted(row["clip_id"] for row in clips.to_pylist() if (row["frames"] == 1) == still)
        endings = ("jpg" if still else "mp4", "txt", "json")
        assert [m.name for m in members] == [f"{key}.{ending}" for key in keys for ending in endings]


def test_the_index_finds_every_member_without_reading_the_tar(clips: pa.Table, dataset: Path) -> None:
    by_id = {row["clip_id"]: row for row in clips.to_pylist()}
    located = [
        (p.read_bytes(), row) for p in dataset.rglob("*.tar") for row in pq.read_table(index_path(p)).to_pylist()
    ]
    assert {row["key"] for _, row in located} == set(by_id)
    for data, row in located:
        clip = by_id[row["key"]]
        member = {name: data[row[f"{name}_offset"] :][: row[f"{name}_size"]] for name in ("media", "text", "json")}
        assert member["text"].decode() == clip["caption"]
        document = json.loads(member["json"])
        assert document["source"]["source_uri"] == clip["source_uri"]
        assert (document["source"]["start_pts"], document["source"]["end_pts"]) == (clip["start_pts"], clip["end_pts"])
        scores = {"motion_object": clip["motion_object"], "camera_label": clip["camera_label"]}
        assert document["scores"] == {name: value for name, value in scores.items() if value is not None}
        assert document["licence"] == "CC-BY"
        assert (row["width"], row["height"]) == bucket_size("16x9-96p") == (160, 96)
        if clip["frames"] > 1:
            with Video(io.BytesIO(member["media"])) as video:
                assert sum(1 for _ in video.frames()) == row["frames"] == clip["frames"]
            assert row["duration"] == pytest.approx(clip["end"] - clip["start"])
            assert row["fps"] == pytest.approx(25)
        else:
            assert (row["media"], row["fps"], row["duration"]) == ("jpg", 0, 0)


def test_webdataset_reads_the_shards(clips: pa.Table, dataset: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    paths = [str(p) for p in dataset.rglob("*.tar")]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode())
    assert {s["__key__"]: s["txt"] for s in samples} == dict(
        zip(clips["clip_id"].to_pylist(), clips["caption"].to_pylist(), strict=True)
    )
    assert all(s["json"]["clip_id"] == s["__key__"] for s in samples)


def test_hugging_face_datasets_reads_the_shards(
    clips: pa.Table, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    for folder, count, media in (("16x9-96p", 9, "mp4"), ("16x9-96p-still", 1, "jpg")):
        files = {"train": [str(p) for p in (dataset / "shards" / folder).glob("*.tar")]}
        loaded = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path))
        assert {media, "txt", "json"} < set(loaded.column_names)
        loaded = loaded.select_columns(["__key__", "txt", "json"])
        captions = dict(zip(clips["clip_id"].to_pylist(), clips["caption"].to_pylist(), strict=True))
        assert len(loaded) == count
        assert all(sample["txt"] == captions[sample["__key__"]] for sample in loaded)
        assert all(sample["json"]["source"]["source_uri"] for sample in loaded)


def test_clips_of_a_finished_shard_are_copied_and_the_result_is_the_same(
    clips: pa.Table, dataset: Path, tmp_path: Path
) -> None:
    store = Store(str(dataset))
    reuse = stored_clips(store, store.list("shards", ".tar"), clips["clip_id"])
    for plan in plan_shards(clips, RECIPE):
        result = write_shard(plan, tmp_path, reuse)
        assert result.reused == result.clips == len(plan.clips)
    assert contents(tmp_path) == contents(dataset)


def test_what_is_encoded_otherwise_or_no_longer_there_is_not_copied(
    clips: pa.Table, dataset: Path, tmp_path: Path
) -> None:
    store = Store(str(dataset))
    reuse = stored_clips(store, store.list("shards", ".tar"), clips["clip_id"])
    few = clips.slice(0, 2)
    (plan,) = plan_shards(few, Recipe(pack=PackOptions(heights=(96,), preset="small")))
    assert write_shard(plan, tmp_path / "a", reuse).reused == 0
    (plan,) = plan_shards(few, RECIPE)
    (tmp_path / "gone.tar").write_bytes(bytes(10_000))
    moved = {key: type(s)(str(tmp_path / "gone.tar"), *list(vars(s).values())[1:]) for key, s in reuse.items()}
    result = write_shard(plan, tmp_path / "b", moved)
    assert (result.reused, result.clips) == (0, 2)


def test_a_clip_that_cannot_be_encoded_is_left_out_with_its_reason(clips: pa.Table, tmp_path: Path) -> None:
    bad = clips.slice(0, 3).to_pylist()
    bad[0]["source_uri"] = str(tmp_path / "missing.mp4")
    bad[1]["start_pts"], bad[1]["end_pts"] = 10**9, 10**9 + 5000
    table = pa.Table.from_pylist(bad, schema=clips.schema)
    (result,) = written(table, tmp_path)
    reasons = dict(result.failures)
    assert result.clips == 1
    assert reasons[bad[0]["clip_id"]] == "the source cannot be opened: no such file"
    assert reasons[bad[1]["clip_id"]] == "no frame in the span"
    (nothing,) = written(table.slice(0, 1), tmp_path / "empty")
    assert (nothing.clips, nothing.bytes) == (0, 0)
    assert next(iter(listed(Store(str(tmp_path / "empty"))).values())).clips == 0


def test_nothing_half_written_stays_when_the_disk_refuses(
    clips: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (plan,) = plan_shards(clips.slice(0, 1), RECIPE)
    monkeypatch.setattr("pipeline.storage.store.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_shard(plan, tmp_path)
    assert contents(tmp_path) == {}


def test_a_shard_is_listed_by_its_content_while_its_tar_is_whole(clips: pa.Table, tmp_path: Path) -> None:
    (plan,) = plan_shards(clips.slice(0, 1), RECIPE)
    result = write_shard(plan, tmp_path)
    assert set(listed(Store(str(tmp_path)))) == {plan.name}
    (changed,) = plan_shards(
        clips.slice(0, 1).set_column(clips.column_names.index("caption"), "caption", pa.array(["other"])), RECIPE
    )
    assert changed.name != plan.name
    with open(tmp_path / result.path, "r+b") as file:
        file.truncate(result.bytes - 1)
    assert listed(Store(str(tmp_path))) == {}


def synthetic(ids: Sequence[int]) -> pa.Table:
    n = len(ids)
    return pa.table(
        {
            "clip_id": [hashlib.sha256(str(i).encode()).hexdigest()[:20] for i in ids],
            "bucket": ["16x9-240p"] * n,
            "split": ["train"] * n,
            "frames": pa.array([50 + i % 200 for i in ids], pa.int32()),
            "start": [0.0] * n,
            "end": [2.0] * n,
        }
    )


def members(plans: Sequence[ShardPlan]) -> dict[str, frozenset[str]]:
    return {plan.path: frozenset(plan.rows()["clip_id"].to_pylist()) for plan in plans}


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 5000), min_size=1, max_size=400), st.integers(5001, 6000))
def test_every_clip_is_in_one_shard_and_a_new_clip_changes_one_shard(ids: set[int], new: int) -> None:
    recipe = Recipe(pack=PackOptions(shard_mb=2.0))
    before = members(plan_shards(synthetic(sorted(ids)), recipe))
    after = members(plan_shards(synthetic([new, *sorted(ids)]), recipe))
    assert sum(len(m) for m in before.values()) == len(ids) == len(frozenset().union(*before.values()))
    gone, come = before.items() - after.items(), after.items() - before.items()
    assert len(gone) <= 1
    assert len(come) >= 1
    assert (
        frozenset().union(*(m for _, m in come)) - frozenset().union(*(m for _, m in gone))
        == members(plan_shards(synthetic([new]), recipe)).popitem()[1]
    )


def test_shards_are_about_as_large_as_asked() -> None:
    recipe = Recipe(pack=PackOptions(shard_mb=20.0))
    table = synthetic(range(20_000))
    plans = plan_shards(table, recipe)
    frames = np.array([table["frames"].to_numpy()[plan.clips].sum() for plan in plans])
    assert len(plans) > 16
    assert frames.max() / frames.min() < 2.6
    width, height = bucket_size("16x9-240p")
    mean = frames.mean() * width * height * 0.12 / 8 / 1e6
    assert 14 < mean < 29
