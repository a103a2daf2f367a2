"""The command line: what goes wrong is said in one line, with a status, before any work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from repository import ROOT

from pipeline.cli import TRAINER, cli, main
from pipeline.config.recipe import presets
from pipeline.engine.progress import Progress, clock
from pipeline.passes.base import Outlook
from pipeline.plan import estimated


@pytest.fixture
def video(tmp_path: Path) -> str:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"not really")
    return str(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "VIDEO", "--out", "OUT", "scan.max_second=3"], "did you mean 'max_seconds'"),
        (
            ["build", "VIDEO", "--out", "OUT", "filters.sharpnes={}"],
            "unknown filter 'sharpnes'; did you mean 'sharpness'?",
        ),
        (["build", "VIDEO", "--out", "OUT", "filters.tags.cuont=1"], "'filters.tags.cuont'; did you mean 'count'?"),
        (["build", "VIDEO", "--out", "OUT", "filters.tags.count=few"], "filters.tags.count: expected int, got 'few'"),
        (["build", "VIDEO", "--out", "OUT", "filters.similarity.encoder=x"], "'filters.similarity.encoder': expected"),
        (["build", "VIDEO", "--out", "OUT", "caption.captioner=oracle"], "unknown captioner 'oracle'"),
        (
            ["build", "VIDEO", "--out", "OUT", "caption.options.leest=1"],
            "'caption.options.leest'; did you mean 'least'?",
        ),
        (
            ["build", "VIDEO", "--out", "OUT", "caption.options.least=few"],
            "caption.options.least: expected float, got 'few'",
        ),
        (["build", "VIDEO", "--out", "OUT", "caption={captioner: listed}"], "none of the inputs has one"),
        (["build", "VIDEO", "--out", "OUT", "scan.shots=cuts"], "scan.shots: expected 'cascade'"),
        (["build", "VIDEO", "--out", "OUT", "select.thresholds.motion_objekt.min=1"], "did you mean 'motion_object'"),
        (["build", "VIDEO", "--out", "OUT", "--recipe", "best"], "is called 'best': expected one of embedded"),
        (["build", "VIDEO", "--out", "OUT", "--gpus"], "no model of this recipe runs on a GPU"),
        (["build", "nothing/here", "--out", "OUT"], "nothing/here: no such file or folder"),
        (["build", "VIDEO", "--out", "s3://key:secret@bucket/x"], "put credentials into the environment"),
        (["build", "VIDEO", "--out", "FULL"], "holds something else"),
        (["build", "VIDEO", "--out", "LATIN"], "holds something else"),
        (["build", "VIDEO", "--out", "VIDEO"], "is a file: give an empty or new folder"),
        (["build", "VIDEO", "--out", "nothing://bucket/x"], "Protocol not known: nothing"),
        (["build", "LIST", "--out", "OUT"], "row 1: path is empty"),
        (["report", "OUT"], "is not a dataset"),
        (["verify", "OUT"], "is not a dataset"),
        (["export", "OUT", "--to", "csv", "--out", "x.csv"], "is not a dataset"),
    ],
)
def test_wrong_input_ends_with_status_2_and_one_line(words, message, video, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").touch()
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / os.fsdecode(b"caf\xe9.mp4")).touch()
    (tmp_path / "list.csv").write_text("path,caption\n,no\n")
    folders = {name.upper(): str(tmp_path / name) for name in ("out", "full", "latin")}
    names = {"VIDEO": video, "LIST": str(tmp_path / "list.csv"), **folders}
    assert main([names.get(word, word) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("clipmill: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_words_in_any_order_are_sources_and_overrides(video, tmp_path, capsys):
    assert main(["plan", "scan.min_seconds=1", video, "--out", str(tmp_path / "out"), "scan.max_seconds=8"]) == 0
    out = capsys.readouterr().out
    assert "sources   1 of 1 file: new or changed" in out
    assert "pack      not known yet, depends on the passes before (0 clips done)" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [name for name in cli.commands if name not in TRAINER])
def test_every_command_has_help_with_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"  clipmill {command}" in out.partition("Examples:")[2]


def test_the_help_names_every_preset(capsys):
    main(["build", "--help"])
    help_text = capsys.readouterr().out
    assert all(name in help_text for name in presets())


def test_help_and_completion_import_nothing_heavy():
    code = "import sys; from pipeline.cli import main; main(['build', '--help']); assert 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
    environment = {**os.environ, "_CLIPMILL_COMPLETE": "bash_complete", "COMP_WORDS": "clipmill cal", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli"], env=environment, capture_output=True, text=True, check=True,
        cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.strip() == "plain,calibrate"


@pytest.mark.parametrize(
    "line",
    ["nonsense", "build", "report", "build x --out y --nope", "build x --out y --cores 0", "select x a=1 --dry-run"],
)
def test_a_wrong_command_line_ends_with_status_2_and_the_usage(line, capsys):
    assert main(line.split()) == 2
    assert "Usage: clipmill" in capsys.readouterr().err


def test_a_source_whose_name_begins_with_a_dash_follows_two_dashes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("-rf.mp4").write_bytes(b"not really")
    assert main(["plan", "--out", "out", "--", "-rf.mp4"]) == 0
    assert "1 of 1 file:" in capsys.readouterr().out


def test_an_error_cannot_control_the_terminal_or_show_a_password(tmp_path, capsys):
    assert main(["plan", "no\x1bM\u202efile\udce9", "--out", str(tmp_path / "out")]) == 2
    assert "no\\u001BM\\u202Efile\\uDCE9: no such file" in capsys.readouterr().err
    assert main(["plan", "https://me:hush@host/a.mp4", "--out", str(tmp_path / "out")]) == 2
    assert "hush" not in capsys.readouterr().err


def test_doctor_names_cores_weights_and_the_hub(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in (
        "cores",
        "GPU",
        "libx264",
        "model hub",
        "weights: sentence embeddings (MiniLM)",
        "ray",
        "--recipe small",
    ):
        assert word in out


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
def test_export_writes_what_is_kept(name, tmp_path, capsys):
    rows = [{"clip_id": "a", "keep": True, "caption": 'says "hi", twice', "rejected_by": []}]
    rows.append({"clip_id": "b", "keep": False, "caption": None, "rejected_by": ["duration"]})
    (tmp_path / "tables" / "clips").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tables" / "clips" / "00000.parquet")
    (tmp_path / "dataset.json").write_text(json.dumps({"format": 1}))
    out = tmp_path / f"kept.{name}"
    assert main(["export", str(tmp_path), "--to", name, "--out", str(out)]) == 0
    text = out.read_bytes()
    assert b"twice" in text
    assert b"duration" not in text or name == "parquet"
    assert "1 clip written" in capsys.readouterr().out


def test_time_is_written_like_a_clock():
    assert [clock(s) for s in (0, 59.6, 61, 3600, 360_000)] == ["0:00", "1:00", "1:01", "1:00:00", "100:00:00"]


def test_a_progress_line_does_not_repeat_the_amount_of_work(capsys):
    for counts in ({"clips": 2, "reused": 2, "failed": 0}, {"clips": 1, "reused": 0, "failed": 1}, {"clips": 2}):
        progress = Progress({"transcode": "clips"}, 2)
        progress.add("transcode", 2, counts)
        progress.close()
    shown = [line.partition("(")[0] for line in capsys.readouterr().out.splitlines()]
    counted = ("2 reused  ", "1 clip, 0 reused, 1 failed  ", "")
    assert shown == [f"transcode      2 clips  {text}" for text in counted]


def test_a_plan_estimates_later_passes_from_what_earlier_builds_measured():
    outlooks = {name: Outlook(0, 10, "") for name in ("sources", "scan", "embed", "caption", "pack")}
    outlooks["scan"] = Outlook(60, 90, "new sources")
    outlooks["caption"] = Outlook(2, 10, "new")
    amounts = {"scan": (30, 15), "embed": (10, 15), "caption": (5, 20)}  # seconds of video or clips, and seconds
    works = estimated(outlooks, {name: {"amount": done, "seconds": took} for name, (done, took) in amounts.items()})
    assert {name: (work.more, work.seconds) for name, work in works.items()} == {
        "sources": (0, 0),
        "scan": (0, 30),
        "embed": (20, 30),
        "caption": (10, 48),
        "pack": (None, None),
    }


def test_each_pass_of_a_chain_has_a_line_of_progress(capsys):
    progress = Progress({"scan": "video", "embed": "clips"}, 60)
    progress.add("embed", 3, {"clips": 3})
    progress.add("scan", 30, {"clips": 4})
    assert progress.amount == 30  # of the first pass, whose total is known
    progress.close()
    lines = [line.partition("(")[0].split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["scan", "0:30", "video", "4", "clips"], ["embed", "3", "clips"]]
