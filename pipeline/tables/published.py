"""The files of a finished dataset: which there are is what dataset.json says."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
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


def list_shards(store: Store, pattern: str = "shards/*/*.tar", info: Mapping[str, Any] | None = None) -> list[str]:
    """Names of the shards that match `pattern`, sorted: those that dataset.json names, or all that have an index where
    there is none (encoded latents)."""
    if info is None:
        if not store.exists("dataset.json"):
            tars = (name.removesuffix(".parquet") + ".tar" for name in store.list("shards", ".parquet"))
            return [tar for tar in tars if fnmatch.fnmatch(tar, pattern)]
        info = json.loads(store.read("dataset.json"))
    return sorted(shard["path"] for shard in info["shards"] if fnmatch.fnmatch(shard["path"], pattern))


def retired_path(path: str) -> str:
    """Where a shard's path or URL leads once a newer dataset.json no longer names it."""
    folder, mark, rest = path.rpartition("/shards/")
    return f"{folder}/{RETIRED}{mark}{rest}"


def open_shards(paths: Iterable[Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    """A stage of a webdataset pipeline, in place of `url_opener`: shards with a stream, also those that have been
    replaced since they were listed.

        wds.DataPipeline(wds.SimpleShardList(paths), open_shards, tar_file_expander, group_by_keys, wds.decode(...))
    """
    for sample in paths:
        store, _, name = sample["url"].rpartition("/shards/")
        yield {**sample, "stream": open_published(Store(store), f"shards/{name}")}


def open_published(store: Store, name: str) -> BinaryIO:
    """Open a file that a dataset.json names, also if a rebuild has replaced the file since that dataset.json was
    read."""
    try:
        return store.open(name)
    except FileNotFoundError:
        try:
            return store.open(f"{RETIRED}/{name}")
        except FileNotFoundError:
            pass
        raise


def read_table(store: Store, folder: str, wanted: Callable[[pa.Field], bool] = lambda field: True) -> pa.Table | None:
    """Read a finished table, its files in order of name, with the columns that are `wanted`; None if it has no file."""
    tables = []
    for name in table_files(store, folder):
        with open_published(store, name) as file:
            parquet = pq.ParquetFile(file)
            tables.append(parquet.read([field.name for field in parquet.schema_arrow if wanted(field)]))
    return pa.concat_tables(tables, promote_options="permissive") if tables else None
