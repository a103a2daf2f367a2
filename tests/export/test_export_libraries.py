"""Exports are opened by the libraries that they are for: each clip is there, with its caption and sizes."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shlex
import types
from pathlib import Path

import decord
import numpy as np
import packing_rows
import pytest
import torch
from exported import clips_of, exported, frames_of, without_models
from finished_dataset import finished
from footage import videos

from filters.torchvision_ops import ensure_torchvision
from pipeline.export.export import LISTED
from pipeline.export.reader import read_dataset


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


def test_finetrainers_pairs_every_video_with_its_caption(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    ensure_torchvision()
    without_models("finetrainers.data", monkeypatch)
    # Of torchvision before 0.26, which finetrainers 0.2.0 names in a type.
    old = types.SimpleNamespace(VideoReader=type("VideoReader", (), {}))
    monkeypatch.setattr("torchvision.io.video_reader", old, raising=False)
    reader = pytest.importorskip("finetrainers.data.dataset")
    (entry,) = json.loads((exported(dataset, "finetrainers", tmp_path / "out") / "training.json").read_text())[
        "datasets"
    ]
    loaded = reader.initialize_dataset(entry.pop("data_root"), entry.pop("dataset_type"))
    assert isinstance(loaded, reader.VideoFileCaptionFileListDataset)
    loaded._data = loaded._data.cast_column("video", datasets.Video(decode=False))
    wrapped = reader.wrap_iterable_dataset_for_preprocessing(loaded, "any", entry)
    clips = {clip.key: clip for clip in clips_of(dataset).values() if clip.media == "mp4"}
    assert {Path(row["video"]["path"]).stem: row["caption"] for row in wrapped} == {
        k: c.caption for k, c in clips.items()
    }
    frames = videos.pan(videos.texture(1, 96, 160), clips[min(clips)].frames, 2)
    video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()
    decord.bridge.reset_bridge()  # the reader has set it to torch for the whole process
    resized, first_only = reader.FF.resize_to_nearest_bucket_video(video, entry["video_resolution_buckets"], "bicubic")
    assert not first_only
    assert [len(resized), *resized.shape[2:]] in entry["video_resolution_buckets"]


def test_fastvideo_keeps_every_clip_with_the_arguments_of_its_command(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_torchvision()
    components = pytest.importorskip("fastvideo.workflow.preprocess.components")
    arguments = importlib.import_module("fastvideo.fastvideo_args")
    out = exported(dataset, "fastvideo", tmp_path / "out")
    words = shlex.split((out / "preprocess.sh").read_text().splitlines()[-1])
    parser = arguments.FastVideoArgs.add_cli_args(importlib.import_module("fastvideo.utils").FlexibleArgumentParser())
    given = parser.parse_args(words[words.index("--mode") :])
    config = components.PreprocessConfig.from_kwargs(vars(given))
    names = ("max_height", "max_width", "num_frames", "train_fps", "video_length_tolerance_range", "drop_short_ratio")
    validator = components.PreprocessingDataValidator(**{name: getattr(config, name) for name in names})
    monkeypatch.setattr(components, "get_world_size", lambda: 1)
    monkeypatch.setattr(components, "get_world_rank", lambda: 0)
    config.video_loader_type = components.VideoLoaderType.TORCHVISION  # the other needs torchcodec
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = components.build_dataset(config, "train", validator)
    clips = {clip.name: clip for clip in clips_of(dataset).values() if clip.media == "mp4"}
    assert {row["name"]: row["caption"] for row in rows} == {name: clip.caption for name, clip in clips.items()}
    assert validator.filter_counts == dict.fromkeys(validator.filter_counts, 0)
    for row in rows:
        assert len(np.arange(0, frames_of(Path(row["video"])), row["fps"] / config.train_fps)) >= config.num_frames


def test_cosmos_predict2_reads_93_frames_of_every_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_torchvision()
    without_models("cosmos_predict2.data", monkeypatch)
    reader = pytest.importorskip("cosmos_predict2.data.dataset_video")
    path = videos.write_video(tmp_path / "v.mp4", videos.pan(videos.texture(1, 96, 160), 100, 1), fps=16)
    finished(tmp_path / "clips", packing_rows.rows_of(path, [(0, 100)]), model="cosmos-predict2")
    out = exported(tmp_path / "clips", "cosmos", tmp_path / "out")
    assert not (out / LISTED).exists()
    for text in (out / "metas").iterdir():  # what the next command computes
        (out / "t5_xxl").mkdir(exist_ok=True)
        (out / "t5_xxl" / f"{text.stem}.pickle").write_bytes(pickle.dumps([np.zeros((1, 1024), np.float32)]))
    call = (out / "dataset.py").read_text().partition("clips = L(Dataset)")[2]
    loaded = eval(f"reader.Dataset{call}", {"reader": reader})
    (clip,) = clips_of(tmp_path / "clips").values()
    assert [Path(name).stem for name in loaded.video_paths] == [clip.key]
    sample = loaded[0]
    assert tuple(sample["video"].shape) == (3, 93, 96, 160)
    assert sample["fps"] == pytest.approx(16)


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
