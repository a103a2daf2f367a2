"""VideoX-Fun: metadata.json, a list of files with text, type and size, and the arguments of its training scripts.

The trainer reads `video_sample_n_frames` at the file's own rate, a stride apart; with control videos, of the middle 80%
of a clip. Source: videox_fun/data/dataset_image_video.py.
"""

from __future__ import annotations

import shlex

from pipeline.export.job import Exporter, Job
from pipeline.export.layout import write_json_list, write_text
from pipeline.export.usability import Reads


def write(job: Job) -> list[str]:
    rows = (
        {
            "file_path": path,
            "text": clip.caption,
            "type": "video" if clip.media == "mp4" else "image",
            "width": clip.width,
            "height": clip.height,
            **({"control_file_path": f"{job.control}/{clip.name}"} if job.control else {}),
        }
        for path, clip in job.media(stills=True)
    )
    write_json_list(job.out / "metadata.json", rows)
    options = {
        "train_data_dir": job.out,
        "train_data_meta": job.out / "metadata.json",
        "video_sample_n_frames": job.longest,
        "video_sample_stride": 1,
        "video_sample_size": job.side,
        "image_sample_size": job.side,
    }
    line = shlex.join(f"--{name}={value}" for name, value in options.items())
    write_text(job.out / "arguments.txt", line + " --enable_bucket --random_hw_adapt\n")
    return [f"accelerate launch scripts/wan2.1/train_lora.py $(cat {job.out / 'arguments.txt'}) ..."]


EXPORTER = Exporter("VideoX-Fun", write, Reads(converts=False, stills=True), takes_control=True)
