"""A file's content decides whether it is a video; its ending is only a hint."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from footage.videos import texture, write_video

from pipeline.config.recipe import load_recipe
from pipeline.scan.worker import Identify
from pipeline.sources.content import not_media
from pipeline.sources.discover import discover
from pipeline.state.units import IdentifyUnit
from pipeline.storage.store import Store
from pipeline.tables.fragments import read_fragment


def test_files_of_unknown_endings_are_videos_by_their_content(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    film = write_video(tmp_path / "film.mp4", [texture(i, 96, 160) for i in range(3)]).read_bytes()
    (folder / "film").write_bytes(film)
    (folder / "film.weird").write_bytes(film)
    (folder / "notes.txt").write_text("a film\n" * 1000)
    (folder / "noise.bin").write_bytes(np.random.default_rng(0).bytes(10_000))
    with zipfile.ZipFile(folder / "films.zip", "w") as archive:
        archive.writestr("film.mp4", film)
    os.mkfifo(folder / "pipe")
    store = Store(str(tmp_path / "out"))
    done = Identify(store, load_recipe())(IdentifyUnit(tuple(discover([str(folder)]))))
    rows = {Path(row["uri"]).name: row for row in read_fragment(store, done.fragment).rows(store).to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "film": "ok",
        "film.weird": "ok",
        "notes.txt": "skipped",
        "noise.bin": "skipped",
        "films.zip": "skipped",
        "pipe": "skipped",
    }
    assert rows["notes.txt"]["error"] == "not a video (text)"
    assert rows["films.zip"]["error"] == "not a video (a zip archive)"
    assert "not a video file" in rows["noise.bin"]["error"]


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"", "text"),
        (b"WEBVTT\n\n00:00.000", "text"),
        (("x" * 4095 + "\N{EURO SIGN}").encode()[:4096], "text"),
        (b"%PDF-1.7 \xe2\xe3", "a PDF"),
        (b"\0" * 257 + b"ustar\x0000", "a tar"),
        (b"\0\0\0\x18ftypisom", None),
        (b"\x1aE\xdf\xa3\x01\0", None),
        (b"\0\0\0\x01\x67\x42", None),
        (b"\x47" + b"\x40\0\x10\0" * 10, None),
        (b"YUV4MPEG2 W2 H2\nFRAME\n" + b"\x10" * 4000, None),
        (b"YUV4MPEG2 W2 H2\nFRAME\n\x80\x81\x82", None),
    ],
)
def test_first_bytes_say_what_cannot_be_a_video(head: bytes, what: str | None) -> None:
    assert not_media(head) == what


def test_what_numpy_and_gzip_write_is_no_video() -> None:
    saved = io.BytesIO()
    np.save(saved, np.zeros(3))
    assert not_media(saved.getvalue()) == "a NumPy array"
