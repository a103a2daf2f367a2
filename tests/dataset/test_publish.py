"""Publishing: a reader sees one whole dataset, whatever a rebuild is doing and wherever it is killed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import webdataset as wds
from light_recipe import GOLDEN_OPTIONS
from webdataset.tariterators import group_by_keys, tar_file_expander

from model.config import from_dict
from model.data.index import read_index
from model.data.loader import Clips
from pipeline import build as build_module
from pipeline.build import build
from pipeline.config.recipe import load_recipe
from pipeline.dataset.finish import files_of
from pipeline.dataset.verify import verify
from pipeline.storage.store import Store
from pipeline.tables.published import list_shards, open_published, open_shards, read_table


class Killed(BaseException):
    """What ends a build in the middle."""


class KillSwitch:
    """Raises Killed at the n-th rename or deletion of a file that Python makes after `arm(n)`, before it happens."""

    def __init__(self) -> None:
        self.remaining = -1
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.remaining > 0 and event in ("os.rename", "os.remove"):
            if str(args[event == "os.rename"]).endswith(".tmp"):  # of a file that was being written
                return
            self.remaining -= 1
            if self.remaining == 0:
                raise Killed


SWITCH = KillSwitch()


@pytest.fixture(scope="module")
def sources(sample_videos: dict[str, Path]) -> list[str]:
    return [str(sample_videos[name]) for name in ("bikes", "bigbuckbunny")]


def rebuild(sources: list[str], dataset: Path, threshold: float) -> dict[str, Any]:
    """The golden dataset with a threshold that rejects some of its clips."""
    options = [*GOLDEN_OPTIONS, f"select.thresholds.motion_object.min={threshold}"]
    return build(sources, str(dataset), load_recipe("embedded", options), engine="local").info


@pytest.fixture(scope="module")
def threshold(golden_dataset: Path) -> float:
    table = read_table(Store(str(golden_dataset)), "tables/clips")
    assert table is not None
    kept = [row for row in table.to_pylist() if row["keep"]]
    largest = Counter(row["shard"] for row in kept).most_common(1)[0][0]
    scores = sorted(row["motion_object"] for row in kept if row["shard"] == largest)
    return (scores[0] + scores[1]) / 2


def problems_of(dataset: Path) -> list[str]:
    """What a reader that begins now finds wrong: dataset.json's files, their content, and what the tables keep."""
    store = Store(str(dataset))
    info = json.loads(store.read("dataset.json"))
    problems = []
    keys = []
    for shard in info["shards"]:
        with open_published(store, shard["path"]) as file:
            if hashlib.sha256(file.read()).hexdigest() != shard["sha256"]:
                problems.append(f"{shard['path']} has other content")
        with open_published(store, shard["path"].removesuffix(".tar") + ".parquet") as file:
            keys += pq.read_table(file, columns=["key"])["key"].to_pylist()
    clips = read_table(store, "tables/clips")
    assert clips is not None
    if sorted(keys) != sorted(clips.filter(clips["keep"])["clip_id"].to_pylist()):
        problems.append("the shards hold other clips than the tables keep")
    if clips.num_rows != info["rows"]["clips"]:
        problems.append("a table has lost rows")
    return problems


def test_a_build_killed_at_any_step_of_publishing_leaves_the_old_or_the_new_dataset_whole(
    golden_dataset, sources, threshold, tmp_path, monkeypatch
):
    packed = Path(shutil.copytree(golden_dataset, tmp_path / "packed"))

    def stop_before_publishing(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "publish", stop_before_publishing)
        with pytest.raises(Killed):
            rebuild(sources, packed, threshold)
    assert problems_of(packed) == []
    old = (golden_dataset / "dataset.json").read_bytes()
    assert (packed / "dataset.json").read_bytes() == old

    publish, infos = build_module.publish, []
    for step in itertools.count(1):
        dataset = Path(shutil.copytree(packed, tmp_path / str(step)))

        def armed(*args: Any, step: int = step) -> dict[str, Any]:
            SWITCH.remaining = step
            return publish(*args)

        monkeypatch.setattr(build_module, "publish", armed)
        with contextlib.suppress(Killed):
            rebuild(sources, dataset, threshold)
            break
        assert problems_of(dataset) == [], step
        infos.append((dataset / "dataset.json").read_bytes() == old)
        shutil.rmtree(dataset)
    SWITCH.remaining = -1
    assert len(infos) > 8
    assert infos == sorted(infos, reverse=True), "old, then new, and never old again"
    assert {True, False} == set(infos)
    assert verify(dataset, workers=1) == []
    tars = {path.relative_to(dataset).as_posix() for path in dataset.glob("shards/*/*.tar")}
    assert tars == {shard["path"] for shard in json.loads((dataset / "dataset.json").read_text())["shards"]}


def samples(urls: Iterator[str] | list[str]) -> Iterator[tuple[str, str]]:
    """Key and media of each sample, by webdataset."""
    pipeline = wds.DataPipeline(wds.SimpleShardList(list(urls)), open_shards, tar_file_expander, group_by_keys)
    for sample in pipeline:
        yield sample["__key__"], hashlib.sha256(sample["mp4"]).hexdigest()


def test_readers_of_the_old_dataset_go_on_through_a_rebuild(golden_dataset, sources, threshold, tmp_path):
    dataset = Path(shutil.copytree(golden_dataset, tmp_path / "dataset"))
    store = Store(str(dataset))
    before = json.loads(store.read("dataset.json"))
    urls = [store.path(name) for name in list_shards(store)]
    expected = list(samples(urls))
    config = from_dict({"data": [str(dataset)], "resolutions": 48, "frame_counts": 5})
    index = read_index(config.data)
    trainer, reader = Clips(index, None, config), samples(urls)
    first = next(reader)

    after = rebuild(sources, dataset, threshold)
    assert files_of(after) != files_of(before)
    assert after["counts"]["kept"] < before["counts"]["kept"]
    assert [first, *reader] == expected, "webdataset, which had begun"
    assert list(samples(urls)) == expected, "webdataset, with the old list"
    fresh = Clips(index, None, config)
    assert all(trainer.read(i, 0) == fresh.read(i, 0) and fresh.read(i, 0) for i in range(len(index)))

    assert len(read_index(config.data)) < len(index), "what begins now reads the new one"
    assert sorted(path.relative_to(dataset).as_posix() for path in dataset.glob("shards/*/*.tar")) == list_shards(store)
    assert verify(dataset, workers=1) == []
    assert retired(dataset) == tars_of(before) - tars_of(after) != set()
    rebuild(sources, dataset, -1.0)  # all clips again: two datasets ago is given up, one ago is kept
    assert verify(dataset, workers=1) == []
    assert json.loads(store.read("dataset.json"))["shards"] == before["shards"]
    assert retired(dataset) == tars_of(after) - tars_of(before)


def tars_of(info: dict[str, Any]) -> set[str]:
    return {shard["path"] for shard in info["shards"]}


def retired(dataset: Path) -> set[str]:
    folder = dataset / "state" / "old"
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.tar")}
