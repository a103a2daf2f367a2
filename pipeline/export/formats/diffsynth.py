"""DiffSynth-Studio: metadata.csv with the columns `video` and `prompt`, files beside it, and arguments of train.py.

The trainer takes the first `num_frames` of a file at the file's own rate, or the largest count of its rule that a
shorter file has. Source: diffsynth/core/data/unified_dataset.py.
"""

from __future__ import annotations

import shlex

from pipeline.export.job import Exporter, Job
from pipeline.export.layout import write_csv, write_text
from pipeline.export.usability import Reads


def write(job: Job) -> list[str]:
    files = ["video", "control_video"] if job.control else ["video"]
    rows = (
        (path, *([f"{job.control}/{clip.name}"] if job.control else []), clip.caption)
        for path, clip in job.media(stills=True)
    )
    write_csv(job.out / "metadata.csv", (*files, "prompt"), rows)
    width, height = job.size
    arguments = {
        "dataset_base_path": job.out,
        "dataset_metadata_path": job.out / "metadata.csv",
        "data_file_keys": ",".join(files),
        **({"extra_inputs": "control_video"} if job.control else {}),
        "width": width,
        "height": height,
        "num_frames": job.longest,
        "dataset_repeat": 1,
    }
    line = shlex.join(f"--{name}={value}" for name, value in arguments.items())
    write_text(job.out / "arguments.txt", line + "\n")
    return [f"accelerate launch examples/wanvideo/model_training/train.py $(cat {job.out / 'arguments.txt'}) ..."]


EXPORTER = Exporter("DiffSynth-Studio", write, Reads(converts=False, stills=True), takes_control=True)
