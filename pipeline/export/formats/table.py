"""Tables: the kept clips with all their columns as one CSV, JSON lines or Parquet file, without media."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.finish import DatasetError, read_whole
from pipeline.storage.store import Store, atomic
from pipeline.tables.published import read_table

OWN = {"clip_id", "source_uri", "start_pts"}  # columns by which a table of clips is recognised
LONGEST_LINE = 1 << 20  # characters of a file's first line that are read to recognise it
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first characters that spreadsheets take for a formula


def write_table(store: Store, out: Path, name: str) -> int:
    """Write the kept clips of a dataset to the file `out` in the format `name`, one of WRITERS; return how many.

    An earlier table is replaced. Embeddings and hashes are left out of the text formats. Raises DatasetError where
    there is no whole dataset, or `out` is a folder or another file.
    """
    if out.is_dir():
        raise DatasetError(f"{out} is a folder: give a file to write to")
    if out.exists() and not _is_table(out, name):
        raise DatasetError(f"{out} holds something else: give a new file or delete it")
    read_whole(store)
    table = read_table(store, "tables/clips")
    if table is None:
        raise DatasetError(f"{store.uri} has no tables/clips: build it again")
    table = table.filter(table["keep"])
    if name != "parquet":
        table = table.drop_columns([c for c in ("embedding", "phash") if c in table.column_names])
    with atomic(out) as temporary:
        WRITERS[name](table, temporary)
    return table.num_rows


def _is_table(path: Path, name: str) -> bool:
    """Return whether a file is a table of clips in the format `name`, by the columns that it has."""
    try:
        if name == "parquet":
            columns = pq.read_schema(path).names
        else:
            with open(path, newline="", encoding="utf-8") as file:
                first = file.readline(LONGEST_LINE)
            columns = next(csv.reader([first]), []) if name == "csv" else list(json.loads(first))
    except (OSError, ValueError, TypeError, csv.Error):  # Arrow's errors are ValueErrors
        return False
    return set(columns) >= OWN


def _csv(table: pa.Table, path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.column_names)
        for row in table.to_pylist():
            writer.writerow([_cell(value) for value in row.values()])


def _jsonl(table: pa.Table, path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())


def _parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def _cell(value: Any) -> Any:
    """Return what a cell holds: lists as JSON, and a text that a spreadsheet would run as a formula behind a single
    quote, which keeps it a text there (OWASP, CSV injection)."""
    value = json.dumps(value) if isinstance(value, (list, dict)) else value
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


WRITERS = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}
