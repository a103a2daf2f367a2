"""Croissant metadata of a dataset: its files with checksums, and the columns of its clips table.

Source: MLCommons Croissant format specification 1.0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.reader import Dataset

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
TYPES = ((pa.types.is_boolean, "sc:Boolean"), (pa.types.is_integer, "sc:Integer"), (pa.types.is_floating, "sc:Float"))


def croissant(dataset: Dataset, out: Path, tables: Sequence[str]) -> dict[str, Any]:
    """Return the JSON-LD of a dataset whose files are below `out`; `tables` are the files of its clips table. Lists and
    embeddings have no field."""
    tars = [
        {
            "@type": "cr:FileObject",
            "@id": shard["path"],
            "name": shard["path"],
            "contentUrl": shard["path"],
            "contentSize": f"{shard['bytes']} B",
            "encodingFormat": "application/x-tar",
            "sha256": shard["sha256"],
        }
        for shard in dataset.shards
    ]
    parts = [_table(out, name) for name in tables]
    files = {
        "@type": "cr:FileSet",
        "@id": "clips-files",
        "name": "clips-files",
        "containedIn": [{"@id": name} for name in tables],
        "encodingFormat": "application/x-parquet",
        "includes": "*.parquet",
    }
    source = {"fileSet": {"@id": "clips-files"}} if len(tables) > 1 else {"fileObject": {"@id": tables[0]}}
    schema = pq.read_schema(out / tables[0])
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"clips/{column.name}",
            "name": column.name,
            "dataType": next((name for check, name in TYPES if check(column.type)), "sc:Text"),
            "source": {**source, "extract": {"column": column.name}},
        }
        for column in schema
        if not pa.types.is_nested(column.type) and not pa.types.is_binary(column.type)
    ]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": out.name,
        "description": "Text-video clips: KEY.mp4, KEY.txt and KEY.json in tars, and a table of all clips with scores.",
        "url": f"https://huggingface.co/datasets/{out.name}",
        "version": "1.0.0",
        "distribution": [*tars, *parts, *([files] if len(tables) > 1 else [])],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "clips", "name": "clips", "field": fields}],
    }


def _table(out: Path, name: str) -> dict[str, Any]:
    with open(out / name, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{(out / name).stat().st_size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": digest,
    }
