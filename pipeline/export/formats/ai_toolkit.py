"""ai-toolkit: folders of KEY.mp4 and KEY.txt, one a frame count, and the `datasets` of its YAML.

By default the trainer spreads `num_frames` over a whole clip whatever its length, which makes motion too fast: so the
clips of a folder all last its `num_frames` at `fps`, and `shrink_video_to_frames` is off. A `num_frames` of 1 reads
images only. Source: toolkit/config_modules.py and toolkit/dataloader_mixins.py.
"""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.export.job import Exporter, Job
from pipeline.export.layout import write_text, write_with_caption
from pipeline.export.usability import Reads


def write(job: Job) -> list[str]:
    folders: dict[str, int] = {}
    for clip in job.dataset.clips():
        if clip.media == "jpg":
            name, frames = "images", 1
        else:
            reached = [count for count in job.frames if count <= int(clip.frames * job.model.fps / clip.fps + 1e-6)]
            frames = max(reached, default=job.model.least)
            name = f"videos-{frames}f" if reached else "too-short"
        folders[name] = frames
        write_with_caption(clip, job.out / name)
    datasets: list[dict[str, Any]] = []
    for name, frames in sorted(folders.items()):
        if name == "too-short":
            continue
        entry: dict[str, Any] = {"folder_path": str(job.out / name), "caption_ext": "txt", "resolution": [job.side]}
        entry |= {"num_frames": frames, "cache_latents_to_disk": True}
        if frames > 1:
            entry |= {"fps": round(job.model.fps), "shrink_video_to_frames": False, "do_audio": False}
        datasets.append(entry)
    write_text(job.out / "datasets.yaml", yaml.safe_dump({"datasets": datasets}, sort_keys=False))
    return [f"copy `datasets` of {job.out / 'datasets.yaml'} to config.process of the job's YAML"]


EXPORTER = Exporter("ai-toolkit", write, Reads(converts=True, stills=True))
