"""SimpleTuner: the dataset's own tars, linked, each with an index for webshart; no clip is copied.

A tar's index has the offset, length, picture size and captions of its media. Videos and stills are two datasets, which
the trainer requires. Source: webshart's README; documentation/DATALOADER.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.export.job import Job
from pipeline.export.layout import link_shards, write_json
from pipeline.export.reader import Clip


def write(job: Job) -> list[str]:
    tars = link_shards(job.dataset, job.out)
    for shard, clips in groupby(job.dataset.clips(), key=lambda clip: clip.shard):
        members = dict(member for clip in clips for member in _members(clip))
        tar = tars[shard]
        write_json(tar.with_suffix(".json"), {"path": tar.name, "filesize": tar.stat().st_size, "files": members})
    backends = [_backend(job, folder) for folder in sorted({tar.parent for tar in tars.values()}, reverse=True)]
    text = {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True}
    backends.append({**text, "cache_dir": str(job.out / "cache" / "text")})
    write_json(job.out / "multidatabackend.json", backends)
    return [f"set --data_backend_config={job.out / 'multidatabackend.json'}"]


def _members(clip: Clip) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the clip's media, text and JSON as entries of webshart's index."""
    at, size = clip.place("media")
    json_at, json_size = clip.place("json")
    captions = clip.captions()
    yield (
        clip.name,
        {
            "offset": at,
            "length": size,
            "width": clip.width,
            "height": clip.height,
            "aspect": round(clip.width / clip.height, 4),
            "captions": captions if len(captions) > 1 else clip.caption,
            "json_path": f"{clip.key}.json",
            "json_offset": json_at,
            "json_length": json_size,
        },
    )
    yield f"{clip.key}.json", {"offset": json_at, "length": json_size}


def _backend(job: Job, folder: Path) -> dict[str, Any]:
    moving = folder.name == "videos"
    backend: dict[str, Any] = {
        "id": f"clipmill-{folder.name}",
        "type": "webshart",
        "dataset_type": "video" if moving else "image",
        "source": str(folder),
        "metadata": str(folder),
        "caption_strategy": "webshart",
        "metadata_backend": "webshart",
        "webshart": {"cache_dir": str(job.out / "cache" / "webshart" / folder.name)},
        "resolution": job.side**2 / 1e6,
        "resolution_type": "area",
        "cache_dir_vae": str(job.out / "cache" / "vae" / folder.name),
    }
    if moving:
        shortest = job.frames[0] if job.frames else job.model.least
        backend["video"] = {"num_frames": shortest, "min_frames": shortest, "bucket_strategy": "aspect_ratio"}
    return backend
