"""Sources: every way to name footage finds it, and opens to the same bytes."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.recipe import SourceOptions
from pipeline.sources.content import content_id
from pipeline.sources.discover import SourceError, discover, open_media


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"first video")
    (tmp_path / "deep" / "b.MKV").write_bytes(b"second video")
    (tmp_path / "notes.txt").write_text("not footage")
    (tmp_path / ".hidden.mp4").write_bytes(b"hidden")
    return tmp_path


def names(files) -> list[str]:
    return [Path(item.uri).name for item in files]


def test_a_folder_gives_every_file_below_it_in_order_but_hidden_ones(folder):
    files = discover([str(folder)])
    assert names(files) == ["a.mp4", "b.MKV", "notes.txt"]
    assert [item.worth_opening for item in files] == [True, True, False]


def test_a_file_that_is_named_is_opened_whatever_its_ending(folder):
    assert discover([str(folder / "notes.txt")])[0].worth_opening


def test_globs_and_folders_that_overlap_name_each_file_once(folder):
    assert names(discover([str(folder), str(folder / "*.mp4"), str(folder / "deep")])) == [
        "a.mp4",
        "b.MKV",
        "notes.txt",
    ]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_list_gives_metadata_and_keeps_missing_files_for_their_row(folder, ending):
    rows = [{"path": "a.mp4", "licence": "CC0"}, {"path": "deep/b.MKV", "licence": "CC-BY"}, {"path": "gone.mp4"}]
    listed = folder / f"list{ending}"
    if ending == ".csv":
        with open(listed, "w", newline="") as file:
            writer = csv.DictWriter(file, ["path", "licence"])
            writer.writeheader()
            writer.writerows(rows)
    elif ending == ".jsonl":
        listed.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), listed)
    files = {Path(item.uri).name: item for item in discover([str(listed)])}
    assert files["a.mp4"].metadata["licence"] == "CC0"
    assert files["b.MKV"].metadata["licence"] == "CC-BY"
    assert files["gone.mp4"].problem == "no such file"


def test_a_list_whose_captions_hold_separators_is_read_or_says_which_row_is_wrong(folder):
    (folder / "list.jsonl").write_text(json.dumps({"path": "a.mp4", "caption": "one\u2028two"}, ensure_ascii=False))
    assert discover([str(folder / "list.jsonl")])[0].metadata == {"caption": "one\u2028two"}
    (folder / "list.csv").write_text("path,caption\na.mp4,A man, running\n")
    with pytest.raises(SourceError, match="row 1: more fields than the header"):
        discover([str(folder / "list.csv")])


BAD_ROWS = {  # by list: its rows, and why some cannot be used
    "fields.csv": (
        ["path,caption", "a.mp4,A man", ",nothing", "b.MKV,A man, running", "b.MKV,A dog"],
        {2: "path is empty", 3: "more fields"},
    ),
    "huge.csv": (["path,caption", f"a.mp4,{'x' * 200_000}", "b.MKV,A dog"], {1: "field larger"}),
    "list.jsonl": (
        ['{"path": "a.mp4"}', '{"path": ', "[1]", '{"caption": "none"}'],
        {2: "not JSON", 3: "not a JSON object", 4: "no column"},
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_of_a_list_is_a_source_with_a_reason_and_the_others_are_used(folder, name):
    lines, bad = BAD_ROWS[name]
    (folder / name).write_text("\n".join(lines))
    files = discover([str(folder / name)])
    rows = {int(file.uri.rpartition(" ")[2]): file.problem for file in files if "#row " in file.uri}
    assert rows.keys() == bad.keys()
    assert all(rows[number].startswith(reason) for number, reason in bad.items())
    assert len(files) > len(rows)


def test_a_list_without_a_column_for_the_video_says_so(folder):
    (folder / "list.csv").write_text("title,licence\nx,CC0\n")
    with pytest.raises(SourceError, match=r"row 1: no column of uri, url, path"):
        discover([str(folder / "list.csv")])


def test_members_of_a_tar_carry_their_sidecars_and_read_like_the_file(folder):
    archive = folder / "pack.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "a.mp4", "clips/one.mp4")
        (folder / "one.json").write_text('{"licence": "CC0"}')
        tar.add(folder / "one.json", "clips/one.json")
    (member,) = discover([str(archive)])
    assert member.uri.endswith("pack.tar#clips/one.mp4")
    assert member.metadata == {"licence": "CC0"}
    with open_media(member.uri) as file:
        assert file.read() == b"first video"
        file.seek(6)
        assert file.read(3) == b"vid"
        assert file.seek(-5, 2) == 6
    assert content_id(member.uri) == content_id(str(folder / "a.mp4"))


def test_sampled_identity_tells_files_by_size_and_pieces_and_small_ones_by_all_bytes(tmp_path):
    sampled, path, same = SourceOptions(identity="sampled"), tmp_path / "a.mp4", tmp_path / "b.mp4"
    data = bytearray(np.random.default_rng(0).bytes(9 << 20))
    for where in (path, same):
        where.write_bytes(data)
    first = content_id(str(path), sampled)
    assert first == content_id(str(same), sampled) != content_id(str(path))
    for at in (0, len(data) // 15, len(data) - 1):
        data[at] ^= 1
        path.write_bytes(data)
        first, before = content_id(str(path), sampled), first
        assert first != before
    path.write_bytes(data + b"0")
    assert content_id(str(path), sampled) != first
    path.write_bytes(b"few bytes")
    assert content_id(str(path), sampled) == content_id(str(path))
    assert discover([str(path)], sampled)[0].stamp != discover([str(path)])[0].stamp


def test_nothing_is_an_error_before_any_work(tmp_path):
    with pytest.raises(SourceError, match="no such file or folder"):
        discover([str(tmp_path / "none")])
    with pytest.raises(SourceError, match="nothing found"):
        discover([str(tmp_path)])
    with pytest.raises(SourceError, match="no sources"):
        discover([])


def test_a_broken_tar_is_named(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(SourceError, match=r"x\.tar is not a readable tar"):
        discover([str(tmp_path / "x.tar")])
