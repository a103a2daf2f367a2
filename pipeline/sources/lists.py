"""Lists of sources with metadata, and tars of them in WebDataset's form: their rows and members."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from pipeline.sources.names import to_text


def list_rows(ending: str, data: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each row of a list file whose name ends in `ending`, and the reason why it cannot be used, or "". Raises
    ValueError where the file is not such a list."""
    if ending == ".parquet":
        yield from ((row, "") for row in pq.read_table(io.BytesIO(data)).to_pylist())
        return
    text = data.decode("utf-8-sig", "surrogateescape")  # paths may be in any encoding
    if ending == ".csv":
        yield from _csv_rows(text)
    else:
        yield from (_object(line) for line in text.split("\n") if line.strip())


def _csv_rows(text: str) -> Iterator[tuple[dict[str, Any], str]]:
    reader = csv.DictReader(io.StringIO(text))
    try:
        _ = reader.fieldnames
    except csv.Error as error:
        raise ValueError(str(error)) from error
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield {}, str(error)
            continue
        if row is None:
            return
        is_longer = None in row
        yield row, "more fields than the header; put texts that contain commas in quotes" if is_longer else ""


def _object(line: str) -> tuple[dict[str, Any], str]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON: {error}"
    return (value, "") if isinstance(value, dict) else ({}, "not a JSON object")


def members(
    file: BinaryIO, endings: Collection[str], most: int
) -> Iterator[tuple[tarfile.TarInfo, dict[str, Any], str]]:
    """Yield members of a WebDataset tar with one of `endings`, in the order of the tar: the member, its metadata (the
    .json and .txt of the same key), and why it cannot be read or "". Nothing is extracted, so paths in the tar are
    harmless.

    Closes the file. Raises tarfile.TarError for a tar that is compressed, damaged or of more than `most` members.
    """
    media: list[tuple[tarfile.TarInfo, str]] = []
    beside: dict[str, dict[str, Any]] = {}
    with file, tarfile.open(fileobj=file, mode="r:") as tar:
        for number, member in enumerate(tar, start=1):
            if number > most:
                raise tarfile.ReadError(f"more than {most:,} members (sources.archive_members)")
            key, ending = _webdataset_key(member.name)
            if ending in endings and not member.isdir():
                media.append((member, key))
            elif ending in (".json", ".txt") and member.isreg() and not member.sparse and member.size < 1 << 20:
                content = tar.extractfile(member)
                beside.setdefault(key, {}).update(sidecar(ending, content.read() if content else b""))
    for member, key in media:
        whole = member.isreg() and not member.sparse
        yield member, beside.get(key, {}), "" if whole else "not a regular file in its tar"


def member_offsets(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """Return offset and size of every regular file of a tar by the text of its name. Closes the file. Raises like
    `members`."""
    with file, tarfile.open(fileobj=file, mode="r:") as tar:
        return {to_text(member.name): (member.offset_data, member.size) for member in tar if member.isreg()}


def _webdataset_key(name: str) -> tuple[str, str]:
    """Split a name by WebDataset's rule: the key is the path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{ending}".lower()


def sidecar(ending: str, data: bytes) -> dict[str, Any]:
    """Return the metadata in the bytes of a .txt or .json file; empty where it is no JSON."""
    if ending == ".txt":
        return {"text": data.decode("utf-8", "replace")}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {"json": value}
