"""Files of an export: its folder, media extracted from the tars, linked tars, and small text files."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from pipeline.dataset.finish import DatasetError
from pipeline.export.reader import Clip, Dataset, open_listed
from pipeline.storage.store import atomic, remove_abandoned

MARKER = "clipmill-export.json"  # says what an export is, and whether it was finished


@contextlib.contextmanager
def export_folder(out: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """Let one export, described by `about`, write to `out`. One that was interrupted is continued.

    Raises DatasetError where the folder holds anything else: a finished export, another one, or other files.
    """
    marker = out / MARKER
    if marker.exists():
        try:
            earlier = json.loads(marker.read_text())
        except ValueError:
            earlier = {}
        if earlier != {**about, "finished": False}:
            raise DatasetError(f"{out} holds an export already ({MARKER} says which): give a new folder or delete it")
        remove_abandoned(out)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} holds something else: give an empty or new folder")
    write_json(marker, {**about, "finished": False})
    yield
    write_json(marker, {**about, "finished": True})


def write_media(clip: Clip, path: Path, member: str = "media") -> None:
    """Write the clip's media, or its companion `member`, to `path`, unless an interrupted export did so."""
    if not path.exists() or path.stat().st_size != clip.place(member)[1]:
        with atomic(path) as temporary:
            temporary.write_bytes(clip.data(member))


def write_with_caption(clip: Clip, folder: Path) -> None:
    """Write KEY.mp4 (or .jpg) and KEY.txt to `folder`."""
    write_media(clip, folder / clip.name)
    write_text(folder / f"{clip.key}.txt", clip.caption)


def link_shards(dataset: Dataset, out: Path) -> dict[str, Path]:
    """Link the dataset's tars as videos/BUCKET-SPLIT-NUMBER.tar and images/... below `out`, or copy them where the file
    system has no hard links. Return the paths by the tars' names in the dataset."""
    links = {}
    for shard in dataset.shards:
        bucket, name = Path(shard["path"]).parts[1:]
        folder = out / ("images" if bucket.endswith("-still") else "videos")
        links[shard["path"]] = link_file(dataset, shard["path"], folder / f"{bucket}-{name}")
    return links


def link_file(dataset: Dataset, name: str, target: Path) -> Path:
    """Link a file of the dataset to `target`, or copy it where the file system has no hard links; return `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if dataset.store.local:
        with contextlib.suppress(OSError):
            os.link(dataset.store.local / name, target)
            return target
    with atomic(target) as temporary, open_listed(dataset.store, name) as source, open(temporary, "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    return target


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 without a byte order mark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, tree: Any) -> None:
    with atomic(path) as temporary:
        write_text(temporary, json.dumps(tree, ensure_ascii=False, indent=2) + "\n")


@contextlib.contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file that appears at `path` when it is complete; line ends are not translated."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        yield file


def json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_json_list(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON list of objects, one a line, without keeping them in memory."""
    with text_file(path) as file:
        file.write("[")
        for number, row in enumerate(rows):
            file.write((",\n" if number else "\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a header and rows, without keeping them in memory."""
    with text_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def toml(value: Any) -> str:
    """Format text, a number, a boolean or a list of them as TOML."""
    return json.dumps(value, ensure_ascii=False)
