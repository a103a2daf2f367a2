"""Hugging Face `datasets`: VideoFolder, with the files beside a list, and Parquet files with the videos' bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.job import Job
from pipeline.export.layout import json_line, text_file, write_media, write_text
from pipeline.export.reader import Clip
from pipeline.storage.store import atomic

SPLITS = {"train": "train", "val": "validation"}
GROUP_BYTES = 64 << 20  # of video in one row group
VALUES = {
    **{"key": "string", "text": "string", "num_frames": "int32", "fps": "float64", "width": "int32"},
    **{"height": "int32", "duration": "float64", "bucket": "string"},
}
SCHEMA = pa.schema(
    [
        ("video", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("captions", pa.list_(pa.string())),
        *((name, pa.type_for_alias(dtype)) for name, dtype in VALUES.items()),
    ],
    metadata={
        "huggingface": json.dumps(
            {
                "info": {
                    "features": {
                        "video": {"_type": "Video"},
                        "captions": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
                        **{name: {"dtype": dtype, "_type": "Value"} for name, dtype in VALUES.items()},
                    }
                }
            }
        )
    },
)


def videofolder(job: Job) -> list[str]:
    """VideoFolder: train/ and validation/ with metadata.jsonl beside the files.

    `datasets.load_dataset("videofolder", data_dir=FOLDER)` gives the columns video, text and those of `facts`.
    """
    with ExitStack() as stack:
        files: dict[str, TextIO] = {}
        for clip in moving_clips(job):
            split = SPLITS[clip.split]
            if split not in files:
                files[split] = stack.enter_context(text_file(job.out / split / "metadata.jsonl"))
            write_media(clip, job.out / split / clip.name)
            files[split].write(json_line({"file_name": clip.name, **facts(clip)}))
    return [f'datasets.load_dataset("videofolder", data_dir={str(job.out)!r})']


def moving_clips(job: Job) -> Iterator[Clip]:
    return (clip for clip in job.dataset.clips() if clip.media == "mp4")


def facts(clip: Clip) -> dict[str, Any]:
    """Return the columns beside the video."""
    return {
        "key": clip.key,
        "text": clip.caption,
        "captions": clip.captions(),
        "num_frames": clip.frames,
        "fps": clip.fps,
        "width": clip.width,
        "height": clip.height,
        "duration": clip.duration,
        "bucket": clip.bucket,
    }


def hf_parquet(job: Job) -> list[str]:
    """data/SPLIT-NNNNN-of-NNNNN.parquet with the video files' bytes, one file a shard.

    The schema's metadata names the column `video` a Video, so that `datasets.load_dataset(FOLDER)` decodes it.
    """
    names = _parquet_names(job)
    for shard, clips in groupby(moving_clips(job), key=lambda clip: clip.shard):
        path = job.out / "data" / names[shard]
        path.parent.mkdir(exist_ok=True)
        with atomic(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="none") as out:
            rows: list[dict[str, Any]] = []
            held = 0
            for clip in clips:
                rows.append({"video": {"bytes": clip.data(), "path": clip.name}, **facts(clip)})
                held += clip.size
                if held > GROUP_BYTES:
                    out.write_table(pa.Table.from_pylist(rows, SCHEMA))
                    rows, held = [], 0
            if rows:
                out.write_table(pa.Table.from_pylist(rows, SCHEMA))
    lines = ["---", "task_categories: [text-to-video]", "configs:", "- config_name: default", "  data_files:"]
    for split in sorted({name.partition("-")[0] for name in names.values()}):
        lines += [f"  - split: {split}", f'    path: "data/{split}-*.parquet"']
    write_text(job.out / "README.md", "\n".join([*lines, "---", ""]))
    return [f"datasets.load_dataset({str(job.out)!r})"]


def _parquet_names(job: Job) -> dict[str, str]:
    """Return the name of the Parquet file of each shard with videos."""
    names: dict[str, str] = {}
    moving = [shard["path"] for shard in job.dataset.shards if not shard["path"].split("/")[1].endswith("-still")]
    for split, name in SPLITS.items():
        mine = [path for path in moving if path.rsplit("/", 1)[1].startswith(f"{split}-")]
        names |= {path: f"{name}-{number:05}-of-{len(mine):05}.parquet" for number, path in enumerate(mine)}
    return names
