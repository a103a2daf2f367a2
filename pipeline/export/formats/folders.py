"""Trainers that read folders of KEY.mp4 and KEY.txt: the folders, and the trainer's configuration of them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import yaml

from pipeline.export.job import Job
from pipeline.export.layout import toml, write_json, write_media, write_text, write_with_caption
from pipeline.export.usability import SAME_RATE

RATES = (8, 10, 12, 15, 16, 23.976, 24, 25, 29.97, 30, 48, 50, 59.94, 60)  # usual frame rates


def musubi(job: Job) -> list[str]:
    """musubi-tuner: a folder for each frame rate, and a dataset TOML.

    The trainer does not read a file's rate: `source_fps` sets it for a folder. With `frame_extraction = "head"` a clip
    gives one sample for each of the `target_frames` that it reaches. Source: docs/dataset_config.md.
    """
    folders: dict[str, float] = {}
    for clip in job.clips():
        rate = nearest_rate(clip.fps) if clip.media == "mp4" else 0.0
        name = f"videos-{rate:g}fps" if rate else "images"
        folders[name] = rate
        write_with_caption(clip, job.out / name)
        if job.control:
            write_media(clip, job.out / job.control / name / clip.name, job.control)
    lines = [
        "[general]",
        f"resolution = {toml(list(job.size))}",
        'caption_extension = ".txt"',
        "batch_size = 1",
        "enable_bucket = true",
        "bucket_no_upscale = true",
    ]
    for name, rate in sorted(folders.items()):
        directory = "video_directory" if rate else "image_directory"
        lines += ["", "[[datasets]]", f"{directory} = {toml(str(job.out / name))}"]
        lines += [f"cache_directory = {toml(str(job.out / 'cache' / name))}", "num_repeats = 1"]
        if job.control:
            lines += [f"control_directory = {toml(str(job.out / job.control / name))}"]
        if rate:
            lines += [f"target_frames = {toml(job.frames)}", 'frame_extraction = "head"', f"source_fps = {rate:.3f}"]
    write_text(job.out / "dataset.toml", "\n".join(lines) + "\n")
    return [f"python src/musubi_tuner/wan_cache_latents.py --dataset_config {job.out / 'dataset.toml'} --vae ..."]


def nearest_rate(fps: float) -> float:
    """Return the usual frame rate that is within SAME_RATE of `fps`; otherwise `fps` rounded to a whole number, at
    least 1."""
    near = min(RATES, key=lambda rate: abs(rate - fps))
    return near if abs(near / max(fps, 1e-6) - 1) <= SAME_RATE / 2 else max(1.0, round(fps))


def diffusion_pipe(job: Job) -> list[str]:
    """diffusion-pipe: videos/ and images/, captions.json where clips have several captions, and a dataset TOML.

    The trainer converts clips to its model's rate, which may lose a frame, gives each the largest frame bucket that it
    reaches and drops those that reach none. Source: utils/dataset.py and examples/dataset.toml.
    """
    captions: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for clip in job.clips():
        folder = "videos" if clip.media == "mp4" else "images"
        write_with_caption(clip, job.out / folder)
        if job.control:
            write_media(clip, job.out / job.control / clip.name, job.control)
        captions[folder][clip.name] = clip.captions()
    for folder, texts in captions.items():
        if any(len(given) > 1 for given in texts.values()):
            write_json(job.out / folder / "captions.json", texts)
    lines = [
        f"resolutions = [{toml(list(job.size))}]",
        "enable_ar_bucket = true",
        "min_ar = 0.4",
        "max_ar = 2.4",
        "num_ar_buckets = 9",
        f"frame_buckets = {toml([1, *job.frames])}",
    ]
    for folder in sorted(captions):
        lines += ["", "[[directory]]", f"path = {toml(str(job.out / folder))}", "num_repeats = 1"]
        lines += [f"control_path = {toml(str(job.out / job.control))}"] if job.control else []
    write_text(job.out / "dataset.toml", "\n".join(lines) + "\n")
    return [f"name it in the training TOML: dataset = {toml(str(job.out / 'dataset.toml'))}"]


def ai_toolkit(job: Job) -> list[str]:
    """ai-toolkit: a folder for each frame count, and the `datasets` of its YAML.

    By default the trainer spreads `num_frames` over a whole clip whatever its length, which makes motion too fast: so
    the clips of a folder all last its `num_frames` at `fps`, and `shrink_video_to_frames` is off. A `num_frames` of 1
    reads images only. Source: toolkit/config_modules.py and toolkit/dataloader_mixins.py.
    """
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
