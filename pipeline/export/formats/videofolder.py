"""Hugging Face VideoFolder: train/ and validation/ with metadata.jsonl beside the files.

`datasets.load_dataset("videofolder", data_dir=FOLDER)` gives the columns video, text and those below.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, TextIO

from pipeline.export.job import Exporter, Job
from pipeline.export.layout import json_line, text_file, write_media
from pipeline.export.reader import Clip
from pipeline.export.usability import Reads

SPLITS = {"train": "train", "val": "validation"}


def write(job: Job) -> list[str]:
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


EXPORTER = Exporter("Hugging Face VideoFolder", write, Reads(converts=True))
