"""musubi-tuner: a folder of KEY.mp4 and KEY.txt for each frame rate, and a dataset TOML.

The trainer does not read a file's rate: `source_fps` sets it for a folder. With `frame_extraction = "head"` a clip
gives one sample for each of the `target_frames` that it reaches. Source: docs/dataset_config.md.
"""

from __future__ import annotations

from pipeline.export.job import Exporter, Job
from pipeline.export.layout import toml, write_media, write_text, write_with_caption
from pipeline.export.usability import SAME_RATE, Reads

RATES = (8, 10, 12, 15, 16, 23.976, 24, 25, 29.97, 30, 48, 50, 59.94, 60)


def write(job: Job) -> list[str]:
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


EXPORTER = Exporter("musubi-tuner", write, Reads(converts=True, stills=True), takes_control=True)
