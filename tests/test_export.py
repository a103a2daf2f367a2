"""Exports: every layout field by field, opened by the real library where it installs, and nothing left out unsaid."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import decord
import pytest
import yaml
from finished_dataset import finished, footage

import pipeline.export
from filters.torchvision_ops import ensure_torchvision
from pipeline.cli import main
from pipeline.config.recipe import RecipeError, load_recipe
from pipeline.config.video_models import MODELS
from pipeline.dataset.finish import DatasetError
from pipeline.dataset.verify import verify
from pipeline.export.export import EXPORTERS, LISTED, export
from pipeline.export.layout import MARKER
from pipeline.export.reader import Clip, read_dataset
from pipeline.state.fingerprints import check

LOOSE = tuple(name for name in EXPORTERS if name not in ("simpletuner", "hf-parquet", "hub"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips at 16 fps under Wan's contract, and a still image."""
    out = tmp_path_factory.mktemp("dataset") / "clips"
    rows = footage(tmp_path_factory.mktemp("sources"))
    rows[0]["caption"] = 'A "red" tile, slides\nto the left: naïve.'
    finished(out, rows, model="wan2.1")
    assert verify(out, 1) == []
    return out


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips at two rates of their own, without a contract."""
    out = tmp_path_factory.mktemp("mixed") / "clips"
    finished(out, footage(tmp_path_factory.mktemp("sources"), fps=(60, 25)))
    return out


def clips_of(dataset: Path) -> dict[str, Clip]:
    return {clip.key: clip for clip in read_dataset(str(dataset)).clips()}


def exported(dataset: Path, to: str, out: Path, model: str | None = None) -> Path:
    export(str(dataset), to, out, model)
    assert json.loads((out / MARKER).read_text())["finished"] is True
    return out


def frames_of(path: Path) -> int:
    return len(decord.VideoReader(str(path), num_threads=1))


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
    videos = [one for one in config["datasets"] if "video_directory" in one]
    assert [one["source_fps"] for one in videos] == [25.0, 60.0]
    assert all(isinstance(one["source_fps"], float) for one in videos)  # the trainer refuses integers
    assert len({one["cache_directory"] for one in config["datasets"]}) == len(config["datasets"]) == 3
    clips = clips_of(mixed)
    for one in videos:
        assert all(count % 4 == 1 and count > 1 for count in one["target_frames"])
        for path in Path(one["video_directory"]).glob("*.mp4"):
            clip = clips[path.stem]
            assert clip.fps == pytest.approx(one["source_fps"], rel=0.01)
            assert path.with_suffix(".txt").read_text(encoding="utf-8") == clip.caption


def test_diffusion_pipe_gets_frame_buckets_that_its_clips_reach(dataset: Path, tmp_path: Path) -> None:
    out = exported(dataset, "diffusion-pipe", tmp_path / "out")
    config = tomllib.loads((out / "dataset.toml").read_text())
    assert config["frame_buckets"][0] == 1
    assert all(count % 4 == 1 for count in config["frame_buckets"])
    for one in config["directory"]:
        files = [path for path in Path(one["path"]).iterdir() if path.suffix in (".mp4", ".jpg")]
        assert files
        assert all(path.with_suffix(".txt").read_text(encoding="utf-8") for path in files)
    # the trainer loses one frame to rounding: the spare one of the contract
    for path in (out / "videos").glob("*.mp4"):
        assert frames_of(path) - 1 >= config["frame_buckets"][1]


def test_ai_toolkit_folders_hold_clips_that_last_their_frame_count(dataset: Path, tmp_path: Path) -> None:
    out = exported(dataset, "ai-toolkit", tmp_path / "out")
    entries = yaml.safe_load((out / "datasets.yaml").read_text())["datasets"]
    assert [one["num_frames"] for one in entries if "fps" not in one] == [1]
    for one in entries:
        files = [path for path in Path(one["folder_path"]).iterdir() if path.suffix != ".txt"]
        assert files
        if one["num_frames"] > 1:
            assert one["fps"] == 16
            assert one["shrink_video_to_frames"] is False
            assert all(frames_of(path) >= one["num_frames"] for path in files)


def test_ltx_manifest_and_command_have_sizes_of_32_and_frames_of_8n_plus_1(mixed: Path, tmp_path: Path) -> None:
    out = exported(mixed, "ltx", tmp_path / "out")
    rows = json.loads((out / "dataset.json").read_text())
    assert all((out / row["video"]).is_file() and row["caption"] for row in rows)
    words = shlex.split((out / "preprocess.sh").read_text().splitlines()[-1])
    buckets = words[words.index("--resolution-buckets") + 1].split(";")
    for width, height, frames in (map(int, bucket.split("x")) for bucket in buckets):
        assert (width % 32, height % 32, frames % 8) == (0, 0, 1)
    assert subprocess.run(["sh", "-n", str(out / "preprocess.sh")], check=False).returncode == 0


def test_webshart_reads_the_linked_tars_and_no_clip_is_copied(dataset: Path, tmp_path: Path) -> None:
    webshart = pytest.importorskip("webshart")
    out = exported(dataset, "simpletuner", tmp_path / "out")
    clips = {clip.name: (clip.data(), clip.captions(), clip.width) for clip in read_dataset(str(dataset)).clips()}
    seen = set()
    for backend in json.loads((out / "multidatabackend.json").read_text()):
        if backend["type"] != "webshart":
            assert backend["dataset_type"] == "text_embeds"
            continue
        found = webshart.discover_dataset(backend["source"], metadata=backend["metadata"])
        loader = webshart.TarDataLoader(found)
        for shard in range(found.num_shards):
            for number in range(found.get_shard_sample_count(shard)):
                entry = loader.load_sample(shard, number)
                data, captions, width = clips[entry.path]
                assert bytes(entry.data) == data
                assert entry.captions == captions
                assert len(captions) == 2  # the one in .txt, and a short one
                assert entry.metadata["width"] == width
                seen.add(entry.path)
        if backend["dataset_type"] == "video":
            assert backend["video"]["min_frames"] >= backend["video"]["num_frames"]  # the trainer's own check
    assert seen == set(clips)
    tars = list(out.rglob("*.tar"))
    originals = {os.stat(path).st_ino for path in dataset.rglob("*.tar")}
    assert {os.stat(path).st_ino for path in tars} == originals


def without_models(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets modules of `package` be imported without its __init__ files, which import every model."""
    found = importlib.util.find_spec(package.partition(".")[0])
    if found is None or found.submodule_search_locations is None:
        pytest.skip(f"{package} is not installed")
    path = Path(found.submodule_search_locations[0])
    for depth, name in enumerate(package.split(".")):
        module = types.ModuleType(".".join(package.split(".")[: depth + 1]))
        path = path / name if depth else path
        module.__path__ = [str(path)]
        monkeypatch.setitem(sys.modules, module.__name__, module)


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
    assert words[words.index("--preprocess.train_fps") + 1] == "16"


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


def test_clips_that_a_trainer_would_drop_are_counted_and_listed_with_the_reason(mixed: Path, tmp_path: Path) -> None:
    text = export(str(mixed), "diffsynth", tmp_path / "wan", "wan2.1")
    assert "6 would not be seen as they are: not 16 fps: motion has a wrong speed" in text
    text = export(str(mixed), "diffusion-pipe", tmp_path / "cosmos", "cosmos-predict2")
    assert "6 would be dropped: fewer than 93 frames at 16 fps" in text
    rows = list(csv.DictReader(open(tmp_path / "cosmos" / LISTED)))
    assert {row["key"] for row in rows} == {clip.key for clip in clips_of(mixed).values() if clip.media == "mp4"}
    assert {row["effect"] for row in rows} == {"dropped"}
    text = export(str(mixed), "diffusion-pipe", tmp_path / "wan2", "wan2.1")
    assert "dropped" not in text
    assert not (tmp_path / "wan2" / LISTED).exists()
    text = export(str(mixed), "fastvideo", tmp_path / "fast", "mochi")
    assert "1 would be dropped: a still image, and the trainer reads videos only" in text


@pytest.mark.parametrize(
    ("to", "model", "message"),
    [
        ("mussubi", None, "unknown export 'mussubi'; did you mean 'musubi'"),
        ("kohya", None, "expected one of musubi, diffusion-pipe"),
        ("musubi", "wan21", r"unknown video model 'wan21'; did you mean 'wan2\.1'"),
    ],
)
def test_an_unknown_trainer_or_model_names_the_nearest(dataset, to, model, message, tmp_path):
    with pytest.raises((DatasetError, RecipeError), match=message):
        export(str(dataset), to, tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_a_table_is_not_written_over_a_folder(dataset, tmp_path):
    with pytest.raises(DatasetError, match="is a folder: give a file to write to"):
        export(str(dataset), "csv", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
def test_a_table_replaces_an_earlier_one_and_no_other_file(dataset, tmp_path, name):
    path = tmp_path / f"clips.{name}"
    export(str(dataset), name, path)
    first = path.read_bytes()
    assert export(str(dataset), name, path).endswith(f"written to {path}")
    assert path.read_bytes() == first
    for other in (b"clip_id,label\na,good\n", b'{"clip_id": "a"}\n', b"\xff\n", b""):
        path.write_bytes(other)
        with pytest.raises(DatasetError, match="holds something else"):
            export(str(dataset), name, path)
        assert path.read_bytes() == other


def test_an_export_stops_at_a_folder_that_holds_something_else(dataset, tmp_path):
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(DatasetError, match="holds something else"):
        export(str(dataset), "ltx", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]
    exported(dataset, "ltx", tmp_path / "out")
    for to in ("ltx", "musubi"):
        with pytest.raises(DatasetError, match="holds an export already"):
            export(str(dataset), to, tmp_path / "out")


def test_a_damaged_shard_is_not_exported(dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    tar = next(copy.glob("shards/*/*.tar"))
    tar.chmod(0o644)
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 0xFF
    tar.write_bytes(data)
    with pytest.raises(DatasetError, match="is damaged: run `clipmill verify"):
        export(str(copy), "videofolder", tmp_path / "out")


def test_an_interrupted_export_goes_on_with_what_is_missing(dataset, tmp_path, monkeypatch):
    whole = exported(dataset, "ltx", tmp_path / "whole")
    written = []

    def fail_at_the_fourth(self: Clip) -> bytes:
        written.append(self.key)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        return self._member("media")

    with monkeypatch.context() as patch:
        patch.setattr(Clip, "data", fail_at_the_fourth)
        with pytest.raises(OSError, match="No space left"):
            export(str(dataset), "ltx", tmp_path / "out")
        assert not (tmp_path / "out" / "dataset.json").exists()
        exported(dataset, "ltx", tmp_path / "out")
    assert len(written) == 4 + 4  # seven clips, three of which were there
    files = {p.relative_to(whole) for p in whole.rglob("*") if p.is_file()}
    assert {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file()} == files


def test_the_command_line_exports_and_says_what_to_do_next(dataset, tmp_path, capsys):
    assert main(["export", str(dataset), "--to", "musubi", "--out", str(tmp_path / "out"), "--model", "wan2.1"]) == 0
    out = capsys.readouterr().out
    assert "6 videos and 1 still image for musubi-tuner" in out
    assert "next: python src/musubi_tuner/wan_cache_latents.py" in out
    assert main(["export", str(dataset), "--to", "muse", "--out", str(tmp_path / "other")]) == 2
    assert "did you mean" in capsys.readouterr().err


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


def test_every_command_of_the_exports_readme_runs(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(pipeline.export.__file__).parent / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    commands = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
    assert [words[0] for words in commands] == ["build", "export", "export", "compare"]
    monkeypatch.chdir(tmp_path)
    rows = footage(tmp_path / "footage", fps=(24,), still=False)
    finished(tmp_path / "clips", rows, model="wan2.1")  # in place of the build: its options are checked below
    finished(tmp_path / "other_clips", rows)
    check(load_recipe("embedded", [word for word in commands[0] if "=" in word]))
    for words in commands[1:]:
        assert main(words) == 0, words
    out = capsys.readouterr().out
    assert "for musubi-tuner" in out
    assert (tmp_path / "differences.csv").read_text().startswith("clip_id,what,before,after")
    assert set(re.findall(r"^\| `([a-z-]+)`", text, re.MULTILINE)) >= set(EXPORTERS)
