"""Verification finds what was changed, and nothing in a dataset that was not."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import packing_rows as rows
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from footage import videos
from light_recipe import GOLDEN_OPTIONS

from pipeline.build import build
from pipeline.config.recipe import PackOptions, Recipe, SelectOptions, load_recipe
from pipeline.dataset.verify import verify
from pipeline.engine.base import Stage
from pipeline.engine.local import LocalEngine
from pipeline.pack.shards import plan_shards, write_shard
from pipeline.pack.worker import TranscodeUnit
from pipeline.selection.select import select
from pipeline.state.units import UnitResult

RECIPE = Recipe(select=SelectOptions(duplicates=False, val_fraction=0.0), pack=PackOptions(heights=(64,)))


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("packed"), RECIPE)


@pytest.fixture
def dataset(untouched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untouched, tmp_path / "dataset"))


def packed(folder: Path, recipe: Recipe) -> Path:
    moving = videos.pan(videos.texture(1, 72, 128), 20, 2)
    source = videos.write_video(folder / "source.mp4", moving)
    clips = select(rows.clips_table(rows.rows_of(source, [(0, 8), (8, 20)])), recipe)
    dataset = folder / "dataset"
    shards = [write_shard(plan, dataset) for plan in plan_shards(clips, recipe)]
    save(dataset, [dataclasses.asdict(shard) for shard in shards], clips)
    return dataset


def save(folder: Path, shards: list[dict], clips: pa.Table | None = None) -> None:
    info = {"recipe": dataclasses.asdict(RECIPE), "shards": shards}
    (folder / "dataset.json").write_text(json.dumps(info))
    if clips is not None:
        (folder / "tables" / "clips").mkdir(parents=True, exist_ok=True)
        pq.write_table(clips, folder / "tables" / "clips" / "00000.parquet")


def tar_and_index(dataset: Path) -> tuple[Path, dict]:
    (tar,) = dataset.rglob("*.tar")
    return tar, pq.read_table(tar.with_suffix(".parquet")).to_pylist()[0]


def with_column(clips: pa.Table, name: str, values: list) -> pa.Table:
    return clips.set_column(clips.column_names.index(name), name, pa.array(values, clips.schema.field(name).type))


def test_a_dataset_as_it_was_built_has_no_problems(dataset: Path) -> None:
    assert verify(dataset, workers=1) == []


@pytest.mark.parametrize("codec", ["h264", "h265", "av1"])
def test_clips_with_b_frames_have_the_same_frames_for_every_decoder(tmp_path: Path, codec: str) -> None:
    recipe = dataclasses.replace(RECIPE, pack=PackOptions(codec=codec, preset="small", heights=(64,)))
    assert verify(packed(tmp_path, recipe), workers=1) == []


def test_processes_find_what_one_finds(dataset: Path) -> None:
    info = json.loads((dataset / "dataset.json").read_text())
    save(dataset, info["shards"] * 2)
    assert len(verify(dataset, workers=2)) == 2  # every clip is in two places


def test_a_flipped_byte_is_found_by_checksum_and_where_it_matters_by_decoding(dataset: Path) -> None:
    tar, row = tar_and_index(dataset)
    data = bytearray(tar.read_bytes())
    for i in range(row["media_size"] // 4, row["media_size"]):
        data[row["media_offset"] + i] = 0
    tar.write_bytes(bytes(data))
    problems = verify(dataset, workers=1)
    assert any("checksum" in p for p in problems)
    assert any(row["key"] in p and ("decoded" in p or "frames" in p) for p in problems)


def test_a_cut_off_a_missing_and_a_strange_shard_are_named(dataset: Path) -> None:
    tar, row = tar_and_index(dataset)
    whole = tar.read_bytes()
    tar.write_bytes(whole[: row["media_offset"] + 100])
    assert any("not where the index says" in p for p in verify(dataset, workers=1))
    tar.unlink()
    assert any("cannot be read" in p for p in verify(dataset, workers=1))
    tar.write_bytes(whole)
    tar.with_name("train-000099.tar").write_bytes(whole)
    assert verify(dataset, workers=1) == ["shards/16x9-64p/train-000099.tar: not in dataset.json"]


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("caption", ["another", "caption"], "text is not the caption"),
        ("frames", [8, 13], "13"),
        ("split", ["val", "train"], "another bucket or split"),
        ("keep", [True, False], "tables do not keep it"),
    ],
)
def test_tables_that_say_otherwise_are_named(dataset: Path, column: str, values: list, words: str) -> None:
    (path,) = (dataset / "tables" / "clips").iterdir()
    clips = pq.read_table(path)
    save(dataset, json.loads((dataset / "dataset.json").read_text())["shards"], with_column(clips, column, values))
    assert any(words in problem for problem in verify(dataset, workers=1))


def test_a_kept_clip_that_is_in_no_shard_is_named(dataset: Path) -> None:
    (path,) = (dataset / "tables" / "clips").iterdir()
    clips = pq.read_table(path)
    more = pa.concat_tables([clips, with_column(clips.slice(0, 1), "clip_id", ["f" * 20])])
    save(dataset, json.loads((dataset / "dataset.json").read_text())["shards"], more)
    assert verify(dataset, workers=1) == [f"clip {'f' * 20} is kept by the tables, and in no shard"]


def test_what_build_makes_has_no_problems(golden_dataset: Path) -> None:
    assert verify(golden_dataset, workers=1) == []


def test_a_shard_of_which_no_clip_could_be_encoded_is_not_listed_and_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source is damaged between its scan and its packing; size and time of change stay."""
    folder = tmp_path / "in"
    folder.mkdir()
    videos.write_video(folder / "wide.mp4", videos.pan(videos.texture(1, 240, 640), 60, 3.0))
    tall = videos.write_video(folder / "tall.mp4", videos.pan(videos.texture(2, 640, 400), 60, 0.0, 3.0))
    recipe = load_recipe("embedded", GOLDEN_OPTIONS)
    run = LocalEngine.run

    def damaging(engine: LocalEngine, units: Iterable[Any], stages: Sequence[Stage]) -> Iterator[UnitResult]:
        if stages[0].takes is TranscodeUnit and tall.read_bytes()[:4] != bytes(4):
            before = tall.stat()
            tall.write_bytes(bytes(before.st_size))
            os.utime(tall, ns=(before.st_atime_ns, before.st_mtime_ns))
        return run(engine, units, stages)

    monkeypatch.setattr(LocalEngine, "run", damaging)
    built = build([str(folder)], str(tmp_path / "dataset"), recipe, cores=1, engine="local")
    assert {row["keep"]: row["rejected_by"] for row in built.clips.to_pylist()} == {True: [], False: ["encoding"]}
    assert len(built.info["shards"]) == 1
    assert verify(tmp_path / "dataset", workers=1) == []
    (tmp_path / "dataset" / "state" / "unchanged").unlink()
    capsys.readouterr()
    again = build([str(folder)], str(tmp_path / "dataset"), recipe, cores=1, engine="local")
    assert capsys.readouterr().out == "", "a shard that cannot be made is not tried again"
    assert again.info == built.info


def test_what_is_no_dataset_is_one_problem(tmp_path: Path) -> None:
    (problem,) = verify(tmp_path)
    assert "cannot be read" in problem
