"""Hugging Face Parquet: data/SPLIT-NNNNN-of-NNNNN.parquet with the video files' bytes, one file a shard.

The schema's metadata names the column `video` a Video, so that `datasets.load_dataset(FOLDER)` decodes it.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.formats.videofolder import SPLITS, facts, moving_clips
from pipeline.export.job import Exporter, Job
from pipeline.export.layout import write_text
from pipeline.export.usability import Reads
from pipeline.storage.store import atomic

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


def write(job: Job) -> list[str]:
    names = _names(job)
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


def _names(job: Job) -> dict[str, str]:
    """Return the name of the Parquet file of each shard with videos."""
    names: dict[str, str] = {}
    moving = [shard["path"] for shard in job.dataset.shards if not shard["path"].split("/")[1].endswith("-still")]
    for split, name in SPLITS.items():
        mine = [path for path in moving if path.rsplit("/", 1)[1].startswith(f"{split}-")]
        names |= {path: f"{name}-{number:05}-of-{len(mine):05}.parquet" for number, path in enumerate(mine)}
    return names


EXPORTER = Exporter("Hugging Face Parquet", write, Reads(converts=True))
