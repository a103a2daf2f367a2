"""Lists of sources with metadata, and tars of them in WebDataset's form: their rows and members."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import pyarrow.parquet as pq


def list_rows(ending: str, data: bytes) -> list[dict[str, Any]]:
    """Return the rows of a list file whose name ends in `ending`. Raises ValueError where it is not such a list."""
    if ending == ".parquet":
        return list(pq.read_table(io.BytesIO(data)).to_pylist())
    text = data.decode("utf-8-sig", "surrogateescape")  # paths may be in any encoding
    if ending == ".csv":
        try:
            rows = list(csv.DictReader(io.StringIO(text)))
        except csv.Error as error:
            raise ValueError(str(error)) from error
        if long := [number for number, row in enumerate(rows, start=1) if None in row]:
            raise ValueError(f"row {long[0]} has more fields than the header; put texts that contain commas in quotes")
        return rows
    return [_object(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return value


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
                beside.setdefault(key, {}).update(_sidecar(ending, content.read() if content else b""))
    for member, key in media:
        whole = member.isreg() and not member.sparse
        yield member, beside.get(key, {}), "" if whole else "not a regular file in its tar"


def _webdataset_key(name: str) -> tuple[str, str]:
    """Split a name by WebDataset's rule: the key is the path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{ending}".lower()


def _sidecar(ending: str, data: bytes) -> dict[str, Any]:
    if ending == ".txt":
        return {"text": data.decode("utf-8", "replace")}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {"json": value}
