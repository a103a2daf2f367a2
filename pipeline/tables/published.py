"""The files of a finished dataset: which there are is what dataset.json says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.store import Store

RETIRED = "state/old"  # files that a newer dataset.json no longer names, under the names that they had


def table_files(store: Store, folder: str, info: Mapping[str, Any] | None = None) -> list[str]:
    """Names of the files of a finished table such as tables/clips, in order. `info` is the content of dataset.json,
    read where it is not given; a folder that it does not list is listed as it is."""
    if info is None:
        try:
            info = json.loads(store.read("dataset.json"))
        except (OSError, ValueError):
            info = {}
    names = info.get("tables", {}).get(folder.removeprefix("tables/"))
    return store.list(folder, ".parquet") if names is None else list(names)


def open_published(store: Store, name: str) -> BinaryIO:
    """A seekable reader of a file that a dataset.json names, also of one that has been replaced since it was read."""
    try:
        return store.open(name)
    except FileNotFoundError:
        try:
            return store.open(f"{RETIRED}/{name}")
        except FileNotFoundError:
            pass
        raise


def read_table(store: Store, folder: str, wanted: Callable[[pa.Field], bool] = lambda field: True) -> pa.Table | None:
    """All files of a finished table, in order of name, with the columns that are `wanted`; None where there is none."""
    tables = []
    for name in table_files(store, folder):
        with open_published(store, name) as file:
            parquet = pq.ParquetFile(file)
            tables.append(parquet.read([field.name for field in parquet.schema_arrow if wanted(field)]))
    return pa.concat_tables(tables, promote_options="permissive") if tables else None
