"""Cosmos-Predict2: videos/KEY.mp4 and metas/KEY.txt, and the dataset part of an experiment.

The trainer reads 93 frames of a video at its own rate, and cannot read a video that has no frame more. Text embeddings
are made next, in t5_xxl/. Source: cosmos_predict2/data/dataset_video.py.
"""

from __future__ import annotations

import shlex

from pipeline.export.job import Exporter, Job
from pipeline.export.layout import write_text
from pipeline.export.usability import Reads


def write(job: Job) -> list[str]:
    for _, clip in job.media():
        write_text(job.out / "metas" / f"{clip.key}.txt", clip.caption)
    width, height = job.size
    lines = [
        "from cosmos_predict2.data.dataset_video import Dataset",
        "from imaginaire.lazy_config import LazyCall as L",
        "",
        "clips = L(Dataset)(",
        f"    dataset_dir={str(job.out)!r},",
        f"    num_frames={job.shortest},",
        f"    video_size=({height}, {width}),",
        ")",
    ]
    write_text(job.out / "dataset.py", "\n".join(lines) + "\n")
    return [f"python -m scripts.get_t5_embeddings --dataset_path {shlex.quote(str(job.out))}"]


EXPORTER = Exporter("Cosmos-Predict2", write, Reads(converts=False, loses=1), "cosmos-predict2")
