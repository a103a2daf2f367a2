"""FastVideo: videos/ and videos2caption.json, and the preprocessing command of its `merged` layout.

The trainer's validator drops clips without rate, frames or resolution, clips shorter than `num-frames`, and clips that
are longer than a multiple of it: the command has the smallest count, and a multiple that admits all clips. The trainer
converts rates. Source: fastvideo/workflow/preprocess/components.py.
"""

from __future__ import annotations

import math
import shlex

import pyarrow.compute as pc

from pipeline.export.job import Exporter, Job
from pipeline.export.layout import write_json_list, write_text
from pipeline.export.usability import Reads


def write(job: Job) -> list[str]:
    rows = (
        {
            "path": clip.name,
            "cap": clip.caption,
            "resolution": {"width": clip.width, "height": clip.height},
            "fps": clip.fps,
            "duration": clip.duration,
            "num_frames": clip.frames,
        }
        for _, clip in job.media()
    )
    write_json_list(job.out / "videos2caption.json", rows)
    width, height = job.size
    seconds = pc.max(job.dataset.index["duration"]).as_py()
    options = {
        "preprocess.dataset-type": "merged",
        "preprocess.dataset-path": job.out,
        "preprocess.dataset-output-dir": job.out / "preprocessed",
        "preprocess.max-height": height,
        "preprocess.max-width": width,
        "preprocess.num-frames": job.shortest,
        "preprocess.train-fps": round(job.model.fps),
        "preprocess.video-length-tolerance-range": math.ceil(seconds * job.model.fps / job.shortest),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = ["torchrun", "--nproc_per_node=1", "-m", "fastvideo.pipelines.preprocess.v1_preprocessing_new"]
    line = shlex.join([*command, "--mode", "preprocess", "--workload_type", "t2v", *words])
    write_text(job.out / "preprocess.sh", f'#!/bin/sh\n# usage: preprocess.sh MODEL\nexec {line} --model_path "$1"\n')
    larger = [f"with a larger preprocess.num-frames in it, shorter clips are dropped; the longest have {job.longest}"]
    return [f"sh {shlex.quote(str(job.out / 'preprocess.sh'))} MODEL", *larger * (job.longest > job.shortest)]


EXPORTER = Exporter("FastVideo", write, Reads(converts=True))
