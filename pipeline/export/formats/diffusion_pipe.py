"""diffusion-pipe: folders of KEY.mp4 and KEY.txt, captions.json where clips have several captions, and a dataset TOML.

The trainer converts clips to its model's rate, which may lose a frame, gives each the largest frame bucket that it
reaches and drops those that reach none. Source: utils/dataset.py and examples/dataset.toml.
"""

from __future__ import annotations

from collections import defaultdict

from pipeline.export.job import Exporter, Job
from pipeline.export.layout import toml, write_json, write_media, write_text, write_with_caption
from pipeline.export.usability import Reads


def write(job: Job) -> list[str]:
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


EXPORTER = Exporter("diffusion-pipe", write, Reads(converts=True, stills=True, loses=1), takes_control=True)
