"""The export job: what it refuses, what it lists as lost, and how it continues after an interruption."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from pathlib import Path

import pytest
from exported import clips_of, exported
from finished_dataset import finished, footage

import pipeline.export
from pipeline.cli import main
from pipeline.config.recipe import RecipeError, load_recipe
from pipeline.dataset.finish import DatasetError
from pipeline.export.export import EXPORTERS, LISTED, export
from pipeline.export.reader import Clip
from pipeline.state.fingerprints import check


def test_clips_that_a_trainer_would_drop_are_counted_and_listed_with_the_reason(mixed: Path, tmp_path: Path) -> None:
    text = export(str(mixed), "diffsynth", tmp_path / "wan", "wan2.1")
    assert "6 would not be seen as they are: not 16 fps: motion has a wrong speed" in text
    text = export(str(mixed), "diffusion-pipe", tmp_path / "cosmos", "cosmos-predict2")
    assert "6 would be dropped: fewer than 94 frames at 16 fps" in text  # one may be lost to rounding
    rows = list(csv.DictReader(open(tmp_path / "cosmos" / LISTED)))
    assert {row["key"] for row in rows} == {clip.key for clip in clips_of(mixed).values() if clip.media == "mp4"}
    assert {row["effect"] for row in rows} == {"dropped"}
    text = export(str(mixed), "diffusion-pipe", tmp_path / "wan2", "wan2.1")
    assert "dropped" not in text
    assert not (tmp_path / "wan2" / LISTED).exists()
    text = export(str(mixed), "automodel", tmp_path / "spread", "wan2.1")
    assert "2 would not be seen as they are: 81 frames are spread over a longer clip: motion is too fast" in text
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


@pytest.mark.parametrize("to", ["ltx", "hub", "simpletuner"])
def test_a_missing_shard_is_named(to, dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    tar = next(copy.glob("shards/*/*.tar"))
    tar.unlink()
    with pytest.raises(DatasetError, match=f"{tar.relative_to(copy)} of the dataset .* is missing: .*verify"):
        export(str(copy), to, tmp_path / "out")


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

    read = Clip.data

    def fail_at_the_fourth(self: Clip, member: str) -> bytes:
        written.append(self.key)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        return read(self, member)

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
