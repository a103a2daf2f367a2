"""Parquet files with video bytes: every row is a source, read without the rest of the file in memory."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from light_recipe import GOLDEN_OPTIONS

from captioners.listed import listed_texts
from pipeline.build import build
from pipeline.config.recipe import SourceOptions, load_recipe
from pipeline.dataset.verify import verify
from pipeline.scan.worker import Identify
from pipeline.sources.content import content_id
from pipeline.sources.discover import SourceError, discover, open_file
from pipeline.sources.discovered import suffix
from pipeline.sources.parquet_videos import VideoRows
from pipeline.state.units import IdentifyUnit
from pipeline.storage.store import Store

RANDOM = np.random.default_rng(0)
VIDEOS = [RANDOM.bytes(3000 + i) for i in range(10)]


def written(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def structs(videos: list[bytes | None]) -> pa.Array:
    rows = [{"bytes": video, "path": f"{i}.mp4"} for i, video in enumerate(videos)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


@pytest.mark.parametrize(
    "columns",
    [
        {"mp4": pa.array(VIDEOS), "json": [{"title": f"film {i}"} for i in range(10)]},
        {"mp4": pa.array(VIDEOS, pa.large_binary()), "json": [json.dumps({"title": f"film {i}"}) for i in range(10)]},
        {"title": [f"film {i}" for i in range(10)], "thumbnail": VIDEOS, "video": structs(VIDEOS)},
    ],
    ids=["structs of metadata", "texts of JSON", "structs of bytes and path"],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_each_row_is_a_source_with_the_other_columns_as_metadata(tmp_path, columns, in_folder):
    path = written(tmp_path / "part.parquet", columns, row_group_size=4)
    files = discover([str(tmp_path if in_folder else path)])
    column = "video" if "video" in columns else "mp4"
    assert sorted(file.uri for file in files) == sorted(f"{path}#{column}/{i}" for i in range(10))
    rows = {int(file.uri.rpartition("/")[2]): file for file in files}
    assert all(rows[i].metadata == {"title": f"film {i}"} for i in range(10))
    assert listed_texts(json.dumps(rows[3].metadata), "title") == ["film 3"]
    for i in (0, 1, 3, 4, 9, 2, 2):  # in order, over row groups, and back
        with open_file(files[0].uri.rpartition("/")[0] + f"/{i}") as file:
            assert file.read() == VIDEOS[i]
    assert all(file.named and not file.problem for file in files)


def test_real_videos_in_a_parquet_file_are_identified_and_bad_rows_have_a_reason(tmp_path, sample_videos):
    bikes = sample_videos["bikes"].read_bytes()
    path = written(tmp_path / "v.parquet", {"video": structs([bikes, None, b"not a video", b""])})
    files = discover([str(path)])
    assert [suffix(file.uri) for file in files] == [""] * 4
    store = Store(str(tmp_path / "out"))
    result = Identify(store, load_recipe("embedded"))(IdentifyUnit(tuple(files)))
    rows = pq.read_table(io.BytesIO(store.read(result.fragment))).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "failed", "failed", "failed"]
    assert (rows[0]["width"], rows[0]["source_id"]) == (640, content_id(str(sample_videos["bikes"])))
    assert [row["error"] for row in rows[1::2]] == [f"row {i} has no bytes in its column video" for i in (1, 3)]
    assert rows[2]["error"]


def test_a_dataset_of_parquet_rows_has_their_captions(tmp_path, sample_videos):
    videos = [sample_videos[name].read_bytes() for name in ("bikes", "bigbuckbunny")]
    titles = [{"title": "Riders on a road."}, {"title": "A rabbit in a meadow."}]
    written(tmp_path / "v.parquet", {"mp4": videos, "json": titles})
    captions = ("caption.captioner=listed", "caption.options.column=title")
    out = tmp_path / "dataset"
    done = build([str(tmp_path)], str(out), load_recipe("embedded", [*GOLDEN_OPTIONS, *captions]), cores=1)
    assert verify(str(out)) == []
    assert done.info["counts"]["kept"] > 0
    clips = pq.read_table(out / "tables" / "clips").to_pylist()
    texts = {(row["source_uri"].rpartition("#")[2], row["caption"]) for row in clips if row["caption"]}
    assert texts == {("mp4/0", "Riders on a road."), ("mp4/1", "A rabbit in a meadow.")}


def test_a_row_that_has_no_video_says_so(tmp_path):
    path = written(tmp_path / "v.parquet", {"video": structs([VIDEOS[0], None])})
    with pytest.raises(OSError, match="row 1 has no bytes in its column video"):
        open_file(f"{path}#video/1")
    with pytest.raises(FileNotFoundError, match="no row 'video/2'"):
        open_file(f"{path}#video/2")
    with pytest.raises(OSError, match=r"larger than 1e-06 GB \(sources\.max_gb\)"):
        open_file(f"{path}#video/0", SourceOptions(max_gb=1e-6))
    with pytest.raises(SourceError, match=r"more than 1 rows \(sources\.archive_members\)"):
        discover([str(path)], SourceOptions(archive_members=1))


def test_a_changed_file_changes_every_stamp_and_a_list_stays_a_list(tmp_path):
    path = written(tmp_path / "v.parquet", {"mp4": VIDEOS[:2]})
    before = [file.stamp for file in discover([str(path)])]
    assert before == [file.stamp for file in discover([str(path)])]
    written(path, {"mp4": VIDEOS[1:3]})
    assert not {*before} & {file.stamp for file in discover([str(path)])}
    (tmp_path / "a.mp4").write_bytes(b"a")
    (listed,) = discover([str(written(tmp_path / "list.parquet", {"video": ["a.mp4"]}))])
    assert listed.uri == str(tmp_path / "a.mp4")


class Counted(io.FileIO):
    """A file that counts the bytes that are read."""

    count = 0

    def readinto(self, buffer: Any) -> int:
        size = super().readinto(buffer)
        self.count += size or 0
        return size or 0

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        data = super().read(-1 if size is None else size) or b""
        self.count += len(data)
        return data


@pytest.mark.parametrize(("rows_of_a_page", "most"), [(1024, 12), (1, 3)])
def test_rows_in_order_read_the_column_once_and_memory_holds_one_page(tmp_path, rows_of_a_page, most):
    size = 1 << 20
    videos = [RANDOM.bytes(size) for _ in range(24)]
    options = {"row_group_size": 12, "write_batch_size": rows_of_a_page, "use_dictionary": False}
    path = written(tmp_path / "v.parquet", {"mp4": videos, "other": videos}, compression="none", **options)
    pool = pa.default_memory_pool()
    with Counted(str(path)) as file:
        rows, before, highest = VideoRows(file), pool.bytes_allocated(), 0
        assert rows.read("mp4/12", 1e9) == videos[12]
        assert file.count < (most + 1) * size, "neither the first row group nor the other column is read"
        file.count = 0
        for i in range(24):
            assert rows.read(f"mp4/{i}", 1e9) == videos[i]
            highest = max(highest, pool.bytes_allocated() - before)
        assert file.count < 25 * size
        assert highest < (most + 4) * size
