"""File names that are not text: one row each, with a readable name that opens the same file."""

from __future__ import annotations

import csv
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.recipe import ScanOptions, SourceOptions, load_recipe
from pipeline.config.secrets import redact
from pipeline.export.formats.table import WRITERS
from pipeline.passes.identify import identify_units
from pipeline.passes.snapshot import source_rows
from pipeline.scan.worker import Identify
from pipeline.sources.content import content_id
from pipeline.sources.discover import discover, open_media
from pipeline.sources.names import clean, from_text, printable, to_text, url_text
from pipeline.storage.store import Store

ODD_NAMES = (
    b"caf\xe9.mp4",
    b"\xff\xfe\x80.mp4",
    "Ünïcode 日本.mp4".encode(),
    b"line\nbreak\ttab\x1b[31m.mp4",
    b"-rf.mp4",
    "right\u202eto left.mp4".encode(),
    b"literal\\xE9.mp4",
    b"both\\xE9\xe9.mp4",
    b"<script>alert(1)</script>.mp4".replace(b"/", b"\\"),
    b"#hash.mp4",
    b"100%25.mp4",
    b"x" * 251 + b".mp4",
    b"=1+1.mp4",
)


@given(st.binary().map(os.fsdecode) | st.text(alphabet=st.sampled_from("\\x5CE9\udce9\udcff\ud800a")))
def test_the_text_of_a_name_is_unicode_and_gives_the_name_back(name: str) -> None:
    text = to_text(name)
    text.encode()
    assert to_text(from_text(text)) == text
    if "\ud800" not in name:
        assert os.fsencode(from_text(text)) == os.fsencode(name)


@given(st.text(), st.text())
def test_names_in_utf_8_stay_as_they_are_and_two_names_never_share_a_text(name: str, other: str) -> None:
    if "\\x" not in name and not any("\ud800" <= c <= "\udfff" for c in name):
        assert to_text(name) == name
    if name != other and not any("\ud800" <= c <= "\udbff" for c in name + other):
        assert to_text(name) != to_text(other)


@given(st.text())
def test_what_is_printed_is_one_line_without_control_or_bidirectional_characters(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert not any(c in shown for c in "\n\r\t\x1b\x9b\u202e\u2066\u200f\u2028")


def test_printed_texts_stay_readable() -> None:
    assert printable("Ünïcode 日本 'a b'.mp4") == "Ünïcode 日本 'a b'.mp4"
    assert printable("a\x1b[31m\u202eb") == "a\\u001B[31m\\u202Eb"
    assert printable("a\nb", lines=True) == "a\nb"


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=5
    )
)
def test_metadata_is_unicode_at_every_depth(value: object) -> None:
    json.dumps(clean(value), ensure_ascii=False).encode()


def test_urls_are_percent_encoded() -> None:
    assert url_text("http://host/caf\udce9 é.mp4?a=b") == "http://host/caf%E9 é.mp4?a=b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x.mp4", "https://***@host/x.mp4"),
        ("GET https://h/x?X-Amz-Signature=abc123&n=1 failed", "GET https://h/x?X-Amz-Signature=***&n=1 failed"),
        ("https://h/x?sig=abc%2F&X-Amz-Security-Token=zz", "https://h/x?sig=***&X-Amz-Security-Token=***"),
        ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer ***"),
        ("key sk-abcdefghijklmnop was refused", "key sk-*** was refused"),
        ("https://host/path/task-list?page=2", "https://host/path/task-list?page=2"),
    ],
)
def test_secrets_are_never_shown(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert printable(text) == shown


@pytest.fixture
def odd_folder(tmp_path: Path, sample_videos: dict[str, Path]) -> Path:
    """Files with every odd name, each a real video with some bytes of its own at the end."""
    folder = tmp_path / "raw"
    folder.mkdir()
    video = sample_videos["bikes"].read_bytes()
    for i, name in enumerate(ODD_NAMES):
        path = os.path.join(os.fsencode(folder), name)
        with open(path, "wb") as file:
            file.write(video + bytes([i]))
    return folder


def rows_of(inputs: list[str], store: Store) -> list[dict[str, object]]:
    """Rows of tables/sources that a build makes of `inputs`, without Ray."""
    recipe = load_recipe("embedded")
    files = discover(inputs, recipe.sources)
    identify = Identify(store, recipe)
    for unit in identify_units(files, store, ScanOptions()):
        identify(unit)
    assert list(identify_units(files, store, ScanOptions())) == []
    return source_rows(files, store, ScanOptions()).to_pylist()


def test_every_odd_name_is_one_row_that_opens_the_file(odd_folder: Path, tmp_path: Path) -> None:
    rows = rows_of([str(odd_folder)], Store(str(tmp_path / "out")))
    assert [row["status"] for row in rows] == ["ok"] * len(ODD_NAMES)
    names = {os.fsencode(from_text(str(row["source_uri"]))).rpartition(b"/")[2] for row in rows}
    assert names == set(ODD_NAMES)
    assert f"{odd_folder}/caf\\xE9.mp4" in [row["source_uri"] for row in rows]
    assert len({row["source_id"] for row in rows}) == len(ODD_NAMES)


def test_a_list_names_odd_files_by_their_bytes_or_by_the_text_of_a_table(odd_folder: Path) -> None:
    by_bytes = odd_folder / "bytes.csv"
    by_bytes.write_bytes(b"path,title\ncaf\xe9.mp4,caf\xe9\n")
    (file,) = discover([str(by_bytes)])
    assert (file.uri, file.metadata) == (f"{odd_folder}/caf\\xE9.mp4", {"title": "caf\\xE9"})
    assert not file.problem
    by_text = odd_folder / "text.csv"
    with open(by_text, "w", newline="") as out:
        csv.writer(out).writerows([["path"], [file.uri]])
    assert [(item.uri, item.size) for item in discover([str(by_text)])] == [(file.uri, file.size)]
    strange = odd_folder / "strange.jsonl"
    names = ["\ud800.mp4", "a\0b.mp4", "y" * 300 + ".mp4"]
    strange.write_text("".join(json.dumps({"path": name}) + "\n" for name in names))
    problems = {item.uri.rpartition("/")[2][:6]: item.problem for item in discover([str(strange)])}
    assert problems == {"\\xED\\x": "not a file name", "a\0b.mp": "not a file name", "yyyyyy": "file name too long"}


def test_members_of_a_tar_with_odd_names_are_rows_and_open(odd_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        for name in ODD_NAMES:
            tar.add(os.path.join(str(odd_folder), os.fsdecode(name)), "in/" + os.fsdecode(name))
    files = discover([str(tmp_path / "odd.tar")])
    assert len(files) == len(ODD_NAMES)
    (file,) = (file for file in files if file.uri.endswith("caf\\xE9.mp4"))
    assert content_id(file.uri) == content_id(f"{odd_folder}/caf\\xE9.mp4")


def test_a_folder_with_an_odd_name_and_what_is_no_file_in_it_are_rows(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9p\xf4t"))
    (folder / "x.mp4").mkdir(parents=True)
    (folder / "x.mp4" / "a.mp4").write_bytes(b"a")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "circle.mp4").symlink_to("circle.mp4")
    (folder / "bad.tar").write_bytes(b"not a tar" * 100)
    problems = {file.uri.rpartition("/")[2]: file.problem for file in discover([str(folder)])}
    assert problems.pop("a.mp4") == ""
    assert problems.pop("pipe.mp4") == "not a regular file"
    assert problems.pop("circle.mp4") == "too many levels of symbolic links"
    assert problems.pop("bad.tar").startswith("not a readable tar")
    assert not problems


def test_links_and_too_many_or_too_large_members_of_a_tar_are_problems(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    (tmp_path / "a.mp4").write_bytes(b"a" * 2000)
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "a.mp4", "../../etc/a.mp4")
        for member_type, name in ((tarfile.SYMTYPE, "link.mp4"), (tarfile.FIFOTYPE, "pipe.mp4")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = member_type, "/etc/passwd"
            tar.addfile(member)
    files = {file.uri.rpartition("#")[2]: file for file in discover([str(archive)])}
    assert not files["../../etc/a.mp4"].problem
    assert files["link.mp4"].problem == files["pipe.mp4"].problem == "not a regular file in its tar"
    with pytest.raises(FileNotFoundError):
        open_media(files["link.mp4"].uri)
    large = [file.problem for file in discover([str(archive)], SourceOptions(max_gb=1e-6))]
    assert "larger than 1e-06 GB (sources.max_gb)" in large
    (only,) = discover([str(tmp_path)], SourceOptions(archive_members=2))[1:]
    assert only.problem == "not a readable tar: more than 2 members (sources.archive_members)"


def test_the_tables_of_odd_names_are_valid_parquet(odd_folder: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    rows_of([str(odd_folder)], store)
    for name in store.list("state/sources", ".parquet"):
        with store.open(name) as file:
            pq.read_table(file)["uri"].combine_chunks().validate(full=True)


def test_cells_that_a_spreadsheet_would_run_are_exported_as_texts(tmp_path: Path) -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "a=1", "", "'=1"]
    table = pa.table({"text": texts, "number": [-1.5] * len(texts)})
    WRITERS["csv"](table, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [*("'" + text for text in texts[:6]), *texts[6:]]
    assert {row["number"] for row in rows} == {"-1.5"}
