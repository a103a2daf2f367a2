"""FastVideo: videos/ and videos2caption.json, and the preprocessing command of its `merged` layout.

Clips without rate, frames or resolution are dropped by the trainer's validator, and so are clips that last more than
five times what it trains on; it converts rates. Source: fastvideo/workflow/preprocess/components.py.
"""

from __future__ import annotations

import shlex

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
    options = {
        "preprocess.dataset_type": "merged",
        "preprocess.dataset_path": job.out,
        "preprocess.dataset_output_dir": job.out / "preprocessed",
        "preprocess.max_height": height,
        "preprocess.max_width": width,
        "preprocess.num_frames": job.longest,
        "preprocess.train_fps": round(job.model.fps),
        "preprocess.video_length_tolerance_range": 5,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = ["torchrun", "--nproc_per_node=1", "-m", "fastvideo.pipelines.preprocess.v1_preprocessing_new"]
    line = shlex.join([*command, "--mode", "preprocess", "--workload_type", "t2v", *words])
    write_text(job.out / "preprocess.sh", f'#!/bin/sh\n# usage: preprocess.sh MODEL\nexec {line} --model_path "$1"\n')
    return [f"sh {shlex.quote(str(job.out / 'preprocess.sh'))} MODEL"]


EXPORTER = Exporter("FastVideo", write, Reads(converts=True, longest=5.0))
