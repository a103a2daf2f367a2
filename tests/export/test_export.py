"""Exports: every layout field by field, and the same bytes from the same dataset."""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from exported import clips_of, exported, frames_of
from finished_dataset import finished, footage

from pipeline.config.video_models import MODELS
from pipeline.export.export import EXPORTERS, LISTED
from pipeline.export.reader import read_dataset

LOOSE = tuple(name for name in EXPORTERS if name not in ("simpletuner", "hf-parquet", "hub"))


@pytest.mark.parametrize("to", LOOSE)
def test_every_loose_export_holds_each_clip_once_byte_for_byte(dataset: Path, to: str, tmp_path: Path) -> None:
    out = exported(dataset, to, tmp_path / "out")
    media = {path.name: path for path in out.rglob("*") if path.suffix in (".mp4", ".jpg")}
    data = {clip.name: clip.data() for clip in read_dataset(str(dataset)).clips()}
    stills = EXPORTERS[to].reads is None or EXPORTERS[to].reads.stills
    assert set(media) == {name for name in data if stills or name.endswith(".mp4")}
    assert len([path for path in out.rglob("*") if path.suffix in (".mp4", ".jpg")]) == len(media)
    for name, path in media.items():
        assert path.read_bytes() == data[name]
    if not stills:
        listed = list(csv.DictReader(open(out / LISTED)))
        assert [row["key"] + ".jpg" for row in listed if "still" in row["reason"]] == [n for n in data if "jpg" in n]


@pytest.mark.parametrize("to", EXPORTERS)
def test_the_same_dataset_is_exported_to_the_same_bytes(dataset: Path, to: str, tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        out = exported(dataset, to, tmp_path / "out")
        contents.append({str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()})
        out.rename(tmp_path / f"done{len(contents)}")
    assert contents[0] == contents[1]


def test_musubi_reads_a_folder_a_rate_with_frame_counts_of_4n_plus_1(mixed: Path, tmp_path: Path) -> None:
    out = exported(mixed, "musubi", tmp_path / "out", "wan2.1")
    config = tomllib.loads((out / "dataset.toml").read_text())
    assert config["general"]["resolution"] == [160, 96]
    assert config["general"]["caption_extension"] == ".txt"
    videos = [entry for entry in config["datasets"] if "video_directory" in entry]
    assert [entry["source_fps"] for entry in videos] == [25.0, 60.0]
    assert all(isinstance(entry["source_fps"], float) for entry in videos)  # the trainer refuses integers
    assert len({entry["cache_directory"] for entry in config["datasets"]}) == len(config["datasets"]) == 3
    clips = clips_of(mixed)
    for entry in videos:
        assert all(count % 4 == 1 and count > 1 for count in entry["target_frames"])
        for path in Path(entry["video_directory"]).glob("*.mp4"):
            clip = clips[path.stem]
            assert clip.fps == pytest.approx(entry["source_fps"], rel=0.01)
            assert path.with_suffix(".txt").read_text(encoding="utf-8") == clip.caption


def test_diffusion_pipe_gets_frame_buckets_that_its_clips_reach(dataset: Path, tmp_path: Path) -> None:
    out = exported(dataset, "diffusion-pipe", tmp_path / "out")
    config = tomllib.loads((out / "dataset.toml").read_text())
    assert config["frame_buckets"][0] == 1
    assert all(count % 4 == 1 for count in config["frame_buckets"])
    for entry in config["directory"]:
        files = [path for path in Path(entry["path"]).iterdir() if path.suffix in (".mp4", ".jpg")]
        assert files
        assert all(path.with_suffix(".txt").read_text(encoding="utf-8") for path in files)
    # the trainer loses one frame to rounding: the spare one of the contract
    for path in (out / "videos").glob("*.mp4"):
        assert frames_of(path) - 1 >= config["frame_buckets"][1]


def test_ai_toolkit_folders_hold_clips_that_last_their_frame_count(dataset: Path, tmp_path: Path) -> None:
    out = exported(dataset, "ai-toolkit", tmp_path / "out")
    entries = yaml.safe_load((out / "datasets.yaml").read_text())["datasets"]
    assert [entry["num_frames"] for entry in entries if "fps" not in entry] == [1]
    for entry in entries:
        files = [path for path in Path(entry["folder_path"]).iterdir() if path.suffix != ".txt"]
        assert files
        if entry["num_frames"] > 1:
            assert entry["fps"] == 16
            assert entry["shrink_video_to_frames"] is False
            assert all(frames_of(path) >= entry["num_frames"] for path in files)


def test_ltx_manifest_and_command_have_sizes_of_32_and_frames_of_8n_plus_1(mixed: Path, tmp_path: Path) -> None:
    out = exported(mixed, "ltx", tmp_path / "out")
    rows = json.loads((out / "dataset.json").read_text())
    assert all((out / row["video"]).is_file() and row["caption"] for row in rows)
    words = shlex.split((out / "preprocess.sh").read_text().splitlines()[-1])
    buckets = words[words.index("--resolution-buckets") + 1].split(";")
    for width, height, frames in (map(int, bucket.split("x")) for bucket in buckets):
        assert (width % 32, height % 32, frames % 8) == (0, 0, 1)
    assert subprocess.run(["sh", "-n", str(out / "preprocess.sh")], check=False).returncode == 0


def test_finetrainers_lists_pair_a_line_of_each_file(dataset: Path, tmp_path: Path) -> None:
    out = exported(dataset, "finetrainers", tmp_path / "out")
    entry = json.loads((out / "training.json").read_text())["datasets"][0]
    root = Path(entry["data_root"])
    videos = (root / "videos.txt").read_text().splitlines()
    prompts = (root / "prompts.txt").read_text(encoding="utf-8").splitlines()
    clips = clips_of(dataset)
    assert [clips[Path(video).stem].caption for video in videos] == prompts
    assert all(len(bucket) == 3 and bucket[1:] == [96, 160] for bucket in entry["video_resolution_buckets"])


def test_fastvideo_records_have_what_its_validator_asks_for(dataset: Path, tmp_path: Path) -> None:
    out = exported(dataset, "fastvideo", tmp_path / "out")
    clips = clips_of(dataset)
    rows = json.loads((out / "videos2caption.json").read_text())
    for row in rows:
        clip = clips[Path(row["path"]).stem]
        assert (out / "videos" / row["path"]).is_file()
        assert row["cap"] == clip.caption != ""
        assert (row["fps"], row["num_frames"]) == (16, clip.frames)
        assert row["resolution"] == {"width": 160, "height": 96}
        assert row["duration"] == pytest.approx(clip.frames / 16)
    assert len(rows) == 6
    words = shlex.split((out / "preprocess.sh").read_text().splitlines()[-1])
    assert words[words.index("--preprocess.train-fps") + 1] == "16"


def test_lists_of_the_other_trainers_name_files_texts_and_sizes(dataset: Path, tmp_path: Path) -> None:
    clips = clips_of(dataset)
    out = exported(dataset, "videox-fun", tmp_path / "videox")
    for row in json.loads((out / "metadata.json").read_text()):
        clip = clips[Path(row["file_path"]).stem]
        assert (out / row["file_path"]).is_file()
        assert (row["text"], row["width"], row["height"]) == (clip.caption, 160, 96)
        assert row["type"] == ("video" if clip.media == "mp4" else "image")

    out = exported(dataset, "automodel", tmp_path / "automodel")
    rows = json.loads((out / "videos" / "meta.json").read_text())
    assert {row["file_name"] for row in rows} == {path.name for path in (out / "videos").glob("*.mp4")}
    assert all(row["caption"] == clips[Path(row["file_name"]).stem].caption for row in rows)

    out = exported(dataset, "cosmos", tmp_path / "cosmos")
    assert {p.stem for p in (out / "videos").iterdir()} == {p.stem for p in (out / "metas").iterdir()}
    assert "num_frames=93" in (out / "dataset.py").read_text()

    out = exported(dataset, "open-sora", tmp_path / "open-sora")
    for row in csv.DictReader(open(out / "clips.csv", encoding="utf-8")):
        clip = clips[Path(row["path"]).stem]
        assert (row["text"], int(row["num_frames"]), int(row["resolution"])) == (clip.caption, clip.frames, 96 * 160)
        assert float(row["aspect_ratio"]) == pytest.approx(0.6)
    config: dict[str, Any] = {}
    exec((out / "dataset.py").read_text(), config)
    assert all(count % 4 == 1 for count in config["bucket_config"]["256px"])


def test_captions_lose_their_line_breaks_and_keep_their_letters(dataset, tmp_path):
    out = exported(dataset, "finetrainers", tmp_path / "out")
    assert 'A "red" tile, slides to the left: naïve.' in (out / "dataset" / "prompts.txt").read_text("utf-8").split(
        "\n"
    )


def test_splits_are_folders_of_the_video_folder(tmp_path):
    finished(tmp_path / "clips", footage(tmp_path / "sources", still=False), val_fraction=0.5)
    clips = clips_of(tmp_path / "clips")
    out = exported(tmp_path / "clips", "videofolder", tmp_path / "out")
    for split, name in (("train", "train"), ("val", "validation")):
        keys = {clip.key for clip in clips.values() if clip.split == split}
        assert {path.stem for path in (out / name).glob("*.mp4")} == keys


def test_a_trainer_of_one_model_names_a_known_one():
    assert all(exporter.model in (None, *MODELS) for exporter in EXPORTERS.values())
