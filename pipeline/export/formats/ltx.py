"""LTX-2 trainer: dataset.json of captions and paths beside it, and the preprocessing command with its buckets.

The trainer takes the first frames of a clip at the file's own rate, and drops clips shorter than all buckets. Sizes
are multiples of 32, frames 8n + 1. Source: packages/ltx-trainer/docs/dataset-preparation.md.
"""

from __future__ import annotations

import shlex

from pipeline.export.job import Exporter, Job
from pipeline.export.layout import write_json_list, write_text
from pipeline.export.usability import Reads


def write(job: Job) -> list[str]:
    rows = (
        {
            "caption": clip.caption,
            "video": path,
            **({"reference_video": f"{job.control}/{clip.name}"} if job.control else {}),
        }
        for path, clip in job.media(stills=True)
    )
    write_json_list(job.out / "dataset.json", rows)
    width, height = job.size
    buckets = ";".join(f"{width}x{height}x{frames}" for frames in [*([1] if job.stills else []), *job.frames])
    command = [
        *("python", "scripts/process_dataset.py", str(job.out / "dataset.json"), "--resolution-buckets", buckets),
        *([] if job.dataset.info["recipe"]["pack"].get("audio") == "keep" else ["--skip-audio"]),
        *("--output-dir", str(job.out / ".precomputed")),
    ]
    where = '--model-path "$1" --text-encoder-path "$2"'
    text = "#!/bin/sh\n# usage: preprocess.sh MODEL.safetensors TEXT_ENCODER, in packages/ltx-trainer\n"
    write_text(job.out / "preprocess.sh", f"{text}exec {shlex.join(command)} {where}\n")
    batch = ["set optimization.batch_size: 1 in its configuration: there are several buckets"] if ";" in buckets else []
    return [f"sh {shlex.quote(str(job.out / 'preprocess.sh'))} MODEL TEXT_ENCODER", *batch]


EXPORTER = Exporter("LTX-2 trainer", write, Reads(converts=False, stills=True), "ltx", takes_control=True)
