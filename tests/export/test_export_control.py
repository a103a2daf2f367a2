"""Exports with control videos: beside their clips, where each trainer looks for them."""

from __future__ import annotations

import csv
import json
import shlex
import tomllib
from pathlib import Path

import pytest
from exported import clips_of, frames_of, without_models
from finished_dataset import finished, footage

from filters.torchvision_ops import ensure_torchvision
from pipeline.dataset.finish import DatasetError
from pipeline.dataset.verify import verify
from pipeline.export.export import EXPORTERS, export


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips with edges, and a still image."""
    out = tmp_path_factory.mktemp("dataset") / "clips"
    finished(out, footage(tmp_path_factory.mktemp("sources"), fps=(24,)), companions={"canny": {}, "first_last": {}})
    assert verify(out, 1) == []
    return out


@pytest.mark.parametrize("to", [name for name, exporter in EXPORTERS.items() if exporter.takes_control])
def test_each_clip_has_its_control_video_where_the_trainer_looks_for_it(dataset: Path, to: str, tmp_path: Path) -> None:
    out = tmp_path / to
    export(str(dataset), to, out, control="canny")
    if to == "musubi":
        (part,) = tomllib.loads((out / "dataset.toml").read_text())["datasets"]
        pairs = by_name(part["video_directory"], part["control_directory"])
    elif to == "diffusion-pipe":
        (part,) = tomllib.loads((out / "dataset.toml").read_text())["directory"]
        pairs = by_name(part["path"], part["control_path"])
    elif to == "diffsynth":
        with open(out / "metadata.csv") as file:
            pairs = [(out / row["video"], out / row["control_video"]) for row in csv.DictReader(file)]
        arguments = (out / "arguments.txt").read_text()
        assert "--data_file_keys=video,control_video" in arguments
        assert "--extra_inputs=control_video" in arguments
    else:
        names = {"ltx": ("dataset.json", "video", "reference_video")}
        manifest, video, control = names.get(to, ("metadata.json", "file_path", "control_file_path"))
        pairs = [(out / row[video], out / row[control]) for row in json.loads((out / manifest).read_text())]
    clips = {key: clip for key, clip in clips_of(dataset).items() if clip.media == "mp4"}
    assert {video.stem for video, _ in pairs} == set(clips)
    for video, control in pairs:
        assert video.read_bytes() != control.read_bytes()
        assert frames_of(video) == frames_of(control) == clips[video.stem].frames


def test_diffsynth_loads_control_videos_beside_their_clips(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_torchvision()
    without_models("diffsynth.core.data", monkeypatch)
    unified = pytest.importorskip("diffsynth.core.data.unified_dataset")
    export(str(dataset), "diffsynth", tmp_path / "out", control="canny")
    words = shlex.split((tmp_path / "out" / "arguments.txt").read_text())
    options = dict(word.removeprefix("--").split("=", 1) for word in words)
    base, keys = options["dataset_base_path"], options["data_file_keys"].split(",")
    sizes = {name: int(options[name]) for name in ("num_frames", "height", "width")}
    operator = unified.UnifiedDataset.default_video_operator(base, **sizes)
    data = unified.UnifiedDataset(
        base, options["dataset_metadata_path"], data_file_keys=keys, main_data_operator=operator
    )
    assert len(data) == 3
    sample = data[0]
    assert len(sample["video"]) == len(sample["control_video"])
    assert sample["video"][0].size == sample["control_video"][0].size
    colours = {frame.getpixel((x, 48)) for frame in sample["control_video"][:3] for x in range(0, 160, 5)}
    assert all(max(pixel) - min(pixel) < 16 for pixel in colours)  # edges are grey


def by_name(videos: str, controls: str) -> list[tuple[Path, Path]]:
    return [(path, Path(controls, path.name)) for path in sorted(Path(videos).glob("*.mp4"))]


def test_a_layout_or_dataset_without_control_videos_says_so(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"the layout of csv has no place .* there are musubi, diffusion-pipe"):
        export(str(dataset), "csv", tmp_path / "a.csv", control="canny")
    with pytest.raises(DatasetError, match=r"no companion videos 'first'; there are canny"):
        export(str(dataset), "musubi", tmp_path / "out", control="first")
    assert not (tmp_path / "out").exists()
