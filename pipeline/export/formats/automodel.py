"""NeMo AutoModel: one folder of clips with meta.json, and the preprocessing command.

A clip that meta.json does not name would be trained with its file name as the caption: every clip is named. The trainer
spreads `target_frames` over longer clips, and takes shorter ones whole. Source: tools/diffusion/processors of its
repository.
"""

from __future__ import annotations

import shlex

from pipeline.config.video_models import MODELS
from pipeline.export.job import Exporter, Job
from pipeline.export.layout import write_json_list, write_text
from pipeline.export.usability import Reads

PROCESSORS = {"hunyuan": "hunyuan", "hunyuan-1.5": "hunyuan", "ltx": "ltx2"}  # all others are of Wan


def write(job: Job) -> list[str]:
    folder = job.out / "videos"
    rows = ({"file_name": clip.name, "caption": clip.caption} for _, clip in job.media())
    write_json_list(folder / "meta.json", rows)
    name = next((name for name, model in MODELS.items() if model == job.model), "")
    command = [
        *("python", "-m", "tools.diffusion.preprocessing_multiprocess", "video", "--video_dir", str(folder)),
        *("--output_dir", str(job.out / "cache"), "--processor", PROCESSORS.get(name, "wan")),
        *("--resolution_preset", f"{min(job.side, 512)}p" if job.side < 512 else "512p"),
        *("--caption_format", "meta_json", "--target_frames", str(job.longest)),
    ]
    write_text(job.out / "preprocess.sh", f"#!/bin/sh\nexec {shlex.join(command)}\n")
    return [f"sh {shlex.quote(str(job.out / 'preprocess.sh'))}"]


EXPORTER = Exporter("NeMo AutoModel", write, Reads(converts=False, spreads=True))
