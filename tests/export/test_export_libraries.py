"""Exports are opened by the libraries that they are for: each clip is there, with its caption and sizes."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
import types
from pathlib import Path

import pytest
from exported import clips_of, exported, frames_of

from filters.torchvision_ops import ensure_torchvision
from pipeline.export.reader import read_dataset


def without_models(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets modules of `package` be imported without its __init__ files, which import every model."""
    spec = importlib.util.find_spec(package.partition(".")[0])
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"{package} is not installed")
    path = Path(spec.submodule_search_locations[0])
    for depth, name in enumerate(package.split(".")):
        module = types.ModuleType(".".join(package.split(".")[: depth + 1]))
        path = path / name if depth else path
        module.__path__ = [str(path)]
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_webshart_reads_the_linked_tars_and_no_clip_is_copied(dataset: Path, tmp_path: Path) -> None:
    webshart = pytest.importorskip("webshart")
    out = exported(dataset, "simpletuner", tmp_path / "out")
    clips = {clip.name: (clip.data(), clip.captions(), clip.width) for clip in read_dataset(str(dataset)).clips()}
    loaded = set()
    for backend in json.loads((out / "multidatabackend.json").read_text()):
        if backend["type"] != "webshart":
            assert backend["dataset_type"] == "text_embeds"
            continue
        shards = webshart.discover_dataset(backend["source"], metadata=backend["metadata"])
        loader = webshart.TarDataLoader(shards)
        for shard in range(shards.num_shards):
            for number in range(shards.get_shard_sample_count(shard)):
                entry = loader.load_sample(shard, number)
                data, captions, width = clips[entry.path]
                assert bytes(entry.data) == data
                assert entry.captions == captions
                assert len(captions) == 2  # the one in .txt, and a short one
                assert entry.metadata["width"] == width
                loaded.add(entry.path)
        if backend["dataset_type"] == "video":
            assert backend["video"]["min_frames"] >= backend["video"]["num_frames"]  # the trainer's own check
    assert loaded == set(clips)
    tars = list(out.rglob("*.tar"))
    originals = {os.stat(path).st_ino for path in dataset.rglob("*.tar")}
    assert {os.stat(path).st_ino for path in tars} == originals


def test_diffsynth_loads_every_clip_with_the_frames_of_its_rule(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_torchvision()
    without_models("diffsynth.core.data", monkeypatch)
    unified = pytest.importorskip("diffsynth.core.data.unified_dataset")
    out = exported(dataset, "diffsynth", tmp_path / "out")
    words = shlex.split((out / "arguments.txt").read_text())
    options = dict(word.removeprefix("--").split("=", 1) for word in words)
    base, frames = options["dataset_base_path"], int(options["num_frames"])
    size = {"height": int(options["height"]), "width": int(options["width"])}
    operator = unified.UnifiedDataset.default_video_operator(base, num_frames=frames, **size)
    metadata = options["dataset_metadata_path"]
    data = unified.UnifiedDataset(base, metadata, data_file_keys=("video",), main_data_operator=operator)
    clips = clips_of(dataset)
    captions = {clip.key: clip.caption for clip in clips.values()}
    assert len(data) == len(clips)
    for number in (0, 1, len(data) - 1):  # the last is the still image
        key = Path(data.data[number]["video"]).stem
        sample = data[number]
        assert sample["prompt"] == captions[key]
        expected = 1 if clips[key].media == "jpg" else min(frames, (clips[key].frames - 1) // 4 * 4 + 1)
        assert len(sample["video"]) == expected
        assert sample["video"][0].size == (size["width"], size["height"])


def test_datasets_loads_the_video_folder_with_its_columns(dataset: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = exported(dataset, "videofolder", tmp_path / "out")
    loaded = datasets.load_dataset("videofolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert isinstance(loaded.features["video"], datasets.Video)
    clips = clips_of(dataset)
    captions = {clip.key: clip.captions() for clip in read_dataset(str(dataset)).clips()}
    rows = list(loaded.cast_column("video", datasets.Video(decode=False)))
    assert len(rows) == 6
    for row in rows:
        clip = clips[row["key"]]
        assert (row["text"], row["num_frames"], row["captions"]) == (clip.caption, clip.frames, captions[clip.key])
        assert frames_of(Path(row["video"]["path"])) == clip.frames


def test_datasets_loads_video_bytes_from_the_parquet_files(dataset: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = exported(dataset, "hf-parquet", tmp_path / "out")
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert isinstance(loaded.features["video"], datasets.Video)
    data = {clip.key: (clip.data(), clip.caption) for clip in read_dataset(str(dataset)).clips()}
    rows = list(loaded.cast_column("video", datasets.Video(decode=False)))
    assert len(rows) == 6
    assert all((row["video"]["bytes"], row["text"]) == data[row["key"]] for row in rows)


def test_the_hub_layout_loads_by_its_configs_and_its_croissant_is_valid(dataset: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = exported(dataset, "hub", tmp_path / "out")
    cache = str(tmp_path / "cache")
    videos = datasets.load_dataset(str(out), "default", cache_dir=cache)["train"]
    videos = videos.cast_column("mp4", datasets.Video(decode=False))
    texts = {clip.key: clip.caption for clip in clips_of(dataset).values() if clip.media == "mp4"}
    assert {row["__key__"]: " ".join(row["txt"].split()) for row in videos} == texts
    assert len(datasets.load_dataset(str(out), "images", cache_dir=cache)["train"]) == 1
    files = [str(path) for path in (out / "tables" / "clips").iterdir()]
    table = datasets.load_dataset("parquet", data_files=files, cache_dir=cache)["train"]
    assert len(table) == 7
    mlcroissant = pytest.importorskip("mlcroissant")
    metadata = mlcroissant.Dataset(jsonld=out / "croissant.json")
    assert not metadata.metadata.ctx.issues.errors
    rows = list(metadata.records("clips"))
    assert {row["clips/clip_id"].decode() for row in rows} == set(table["clip_id"])
    shard = next(path for path in out.rglob("*.tar"))
    assert shard.stat().st_nlink > 1
