"""Open-Sora 2: a CSV of paths, texts and picture facts, and the `bucket_config` that fits them.

Buckets of frames are 4n + 1; `resolution` is height times width. Source: docs/train.md of Open-Sora.
"""

from __future__ import annotations

import pprint
from collections.abc import Iterator
from typing import Any

from pipeline.export.job import Exporter, Job
from pipeline.export.layout import write_csv, write_text
from pipeline.export.usability import Reads

COLUMNS = ("path", "text", "num_frames", "height", "width", "aspect_ratio", "resolution", "fps")
RESOLUTIONS = {"256px": 256, "768px": 768}  # the names of its buckets, and the sides of squares with as many pixels


def write(job: Job) -> list[str]:
    def rows() -> Iterator[tuple[Any, ...]]:
        for path, clip in job.media(stills=True):
            size = (clip.height, clip.width, round(clip.height / clip.width, 6), clip.height * clip.width)
            yield (str(job.out / path), clip.caption, clip.frames, *size, clip.fps)

    write_csv(job.out / "clips.csv", COLUMNS, rows())
    name = min(RESOLUTIONS, key=lambda label: abs(RESOLUTIONS[label] - job.side))
    counts = [*([1] if job.stills else []), *job.frames]
    config = {name: dict.fromkeys(counts, (1.0, 1))}  # probability, batch size
    text = f"dataset = dict(type='video_text', data_path={str(job.out / 'clips.csv')!r}, fps_max=24)\n"
    write_text(job.out / "dataset.py", f"{text}bucket_config = {pprint.pformat(config)}\n")
    return [f"train with --dataset.data-path {job.out / 'clips.csv'}, bucket_config as in {job.out / 'dataset.py'}"]


EXPORTER = Exporter("Open-Sora 2", write, Reads(converts=False, stills=True), "open-sora")
