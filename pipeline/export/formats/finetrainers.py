"""finetrainers: videos.txt and prompts.txt, a line a clip, and the training JSON with its buckets.

The trainer reads videos only, at their own rate, and resizes each to the nearest bucket of (frames, height, width).
Source: finetrainers/data/dataset.py, VideoFileCaptionFileListDataset.
"""

from __future__ import annotations

from pipeline.export.job import Exporter, Job
from pipeline.export.layout import text_file, write_json
from pipeline.export.usability import Reads


def write(job: Job) -> list[str]:
    folder = job.out / "dataset"
    with text_file(folder / "videos.txt") as videos, text_file(folder / "prompts.txt") as prompts:
        for path, clip in job.media(below="dataset"):
            videos.write(f"{path}\n")
            prompts.write(f"{clip.caption}\n")
    width, height = job.size
    entry = {
        "data_root": str(folder),
        "dataset_type": "video",
        "id_token": None,
        "video_resolution_buckets": [[frames, height, width] for frames in job.frames],
        "reshape_mode": "bicubic",
        "remove_common_llm_caption_prefixes": True,
    }
    write_json(job.out / "training.json", {"datasets": [entry]})
    return [f"train with --dataset_config {job.out / 'training.json'}"]


EXPORTER = Exporter("finetrainers", write, Reads(converts=False))
