"""Trainers that read a list of files with captions: the files, the list, and the trainer's arguments or command."""

from __future__ import annotations

import math
import pprint
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from pipeline.config.video_models import MODELS
from pipeline.export.job import Job
from pipeline.export.layout import text_file, write_csv, write_json, write_json_list, write_text
from pipeline.export.reader import Clip

PROCESSORS = {"hunyuan": "hunyuan", "hunyuan-1.5": "hunyuan", "ltx": "ltx2"}  # of AutoModel; all others are of Wan
OPEN_SORA = ("path", "text", "num_frames", "height", "width", "aspect_ratio", "resolution", "fps")  # columns
SIDES = {"256px": 256, "768px": 768}  # Open-Sora's buckets, and the sides of squares with as many pixels


def diffsynth(job: Job) -> list[str]:
    """DiffSynth-Studio: metadata.csv with the columns `video` and `prompt`, and arguments of train.py.

    The trainer takes the first `num_frames` of a file at the file's own rate, or the largest count of its rule that a
    shorter file has. Source: diffsynth/core/data/unified_dataset.py.
    """
    files = ["video", "control_video"] if job.control else ["video"]
    rows = (
        (path, *_control(job, clip, "control_video").values(), clip.caption) for path, clip in job.media(stills=True)
    )
    write_csv(job.out / "metadata.csv", (*files, "prompt"), rows)
    width, height = job.size
    options = {
        "dataset_base_path": job.out,
        "dataset_metadata_path": job.out / "metadata.csv",
        "data_file_keys": ",".join(files),
        **({"extra_inputs": "control_video"} if job.control else {}),
        "width": width,
        "height": height,
        "num_frames": job.longest,
        "dataset_repeat": 1,
    }
    return [f"accelerate launch examples/wanvideo/model_training/train.py $(cat {_arguments(job, options)}) ..."]


def videox_fun(job: Job) -> list[str]:
    """VideoX-Fun: metadata.json, a list of files with text, type and size, and arguments of its training scripts.

    The trainer reads `video_sample_n_frames` at the file's own rate, a stride apart; with control videos, of the middle
    80% of a clip. Source: videox_fun/data/dataset_image_video.py.
    """
    rows = (
        {
            "file_path": path,
            "text": clip.caption,
            "type": "video" if clip.media == "mp4" else "image",
            "width": clip.width,
            "height": clip.height,
            **_control(job, clip, "control_file_path"),
        }
        for path, clip in job.media(stills=True)
    )
    write_json_list(job.out / "metadata.json", rows)
    options = {
        "train_data_dir": job.out,
        "train_data_meta": job.out / "metadata.json",
        "video_sample_n_frames": job.longest,
        "video_sample_stride": 1,
        "video_sample_size": job.side,
        "image_sample_size": job.side,
    }
    file = _arguments(job, options, " --enable_bucket --random_hw_adapt")
    return [f"accelerate launch scripts/wan2.1/train_lora.py $(cat {file}) ..."]


def ltx(job: Job) -> list[str]:
    """LTX-2 trainer: dataset.json of captions and paths beside it, and the preprocessing command with its buckets.

    The trainer takes the first frames of a clip at the file's own rate, and drops clips shorter than all buckets. Sizes
    are multiples of 32, frames 8n + 1. Source: packages/ltx-trainer/docs/dataset-preparation.md.
    """
    rows = (
        {"caption": clip.caption, "video": path, **_control(job, clip, "reference_video")}
        for path, clip in job.media(stills=True)
    )
    write_json_list(job.out / "dataset.json", rows)
    width, height = job.size
    buckets = ";".join(f"{width}x{height}x{frames}" for frames in [*([1] if job.stills else []), *job.frames])
    command = [
        *("python", "scripts/process_dataset.py", str(job.out / "dataset.json"), "--resolution-buckets", buckets),
        *([] if job.dataset.info["recipe"]["pack"].get("audio") == "keep" else ["--skip-audio"]),
        *("--output-dir", str(job.out / ".precomputed")),
    ]
    usage = "MODEL.safetensors TEXT_ENCODER, in packages/ltx-trainer"
    script = _script(job, command, usage, ' --model-path "$1" --text-encoder-path "$2"')
    batch = ["set optimization.batch_size: 1 in its configuration: there are several buckets"] if ";" in buckets else []
    return [f"{script} MODEL TEXT_ENCODER", *batch]


def fastvideo(job: Job) -> list[str]:
    """FastVideo: videos2caption.json, and the preprocessing command of its `merged` layout.

    The trainer's validator drops clips without rate, frames or resolution, clips shorter than `num-frames`, and clips
    that are longer than a multiple of it: the command has the smallest count, and a multiple that admits all clips. The
    trainer converts rates. Source: fastvideo/workflow/preprocess/components.py.
    """
    rows = (
        {
            "path": clip.name,
            "cap": clip.caption,
            "resolution": {"width": clip.width, "height": clip.height},
            "fps": clip.fps,
            "duration": clip.duration,
            "num_frames": clip.frames,
        }
        for _, clip in job.media()
    )
    write_json_list(job.out / "videos2caption.json", rows)
    width, height = job.size
    seconds = pc.max(job.dataset.index["duration"]).as_py()
    options = {
        "preprocess.dataset-type": "merged",
        "preprocess.dataset-path": job.out,
        "preprocess.dataset-output-dir": job.out / "preprocessed",
        "preprocess.max-height": height,
        "preprocess.max-width": width,
        "preprocess.num-frames": job.shortest,
        "preprocess.train-fps": round(job.model.fps),
        "preprocess.video-length-tolerance-range": math.ceil(seconds * job.model.fps / job.shortest),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = ["torchrun", "--nproc_per_node=1", "-m", "fastvideo.pipelines.preprocess.v1_preprocessing_new"]
    command += ["--mode", "preprocess", "--workload_type", "t2v", *words]
    larger = [f"with a larger preprocess.num-frames in it, shorter clips are dropped; the longest have {job.longest}"]
    script = _script(job, command, "MODEL", ' --model_path "$1"')
    return [f"{script} MODEL", *larger * (job.longest > job.shortest)]


def automodel(job: Job) -> list[str]:
    """NeMo AutoModel: videos/ with meta.json, and the preprocessing command.

    A clip that meta.json does not name would be trained with its file name as the caption: every clip is named. The
    trainer spreads `target_frames` over longer clips, and takes shorter ones whole. Source: tools/diffusion/processors
    of its repository.
    """
    folder = job.out / "videos"
    rows = ({"file_name": clip.name, "caption": clip.caption} for _, clip in job.media())
    write_json_list(folder / "meta.json", rows)
    name = next((name for name, model in MODELS.items() if model == job.model), "")
    command = [
        *("python", "-m", "tools.diffusion.preprocessing_multiprocess", "video", "--video_dir", str(folder)),
        *("--output_dir", str(job.out / "cache"), "--processor", PROCESSORS.get(name, "wan")),
        *("--resolution_preset", f"{min(job.side, 512)}p"),
        *("--caption_format", "meta_json", "--target_frames", str(job.longest)),
    ]
    return [_script(job, command)]


def finetrainers(job: Job) -> list[str]:
    """finetrainers: videos.txt and prompts.txt, a line a clip, and the training JSON with its buckets.

    The trainer reads videos only, at their own rate, and resizes each to the nearest bucket of (frames, height, width).
    Source: finetrainers/data/dataset.py, VideoFileCaptionFileListDataset.
    """
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


def cosmos(job: Job) -> list[str]:
    """Cosmos-Predict2: videos/KEY.mp4 and metas/KEY.txt, and the dataset part of an experiment.

    The trainer reads 93 frames of a video at its own rate, and cannot read a video that has no frame more. Text
    embeddings are made next, in t5_xxl/. Source: cosmos_predict2/data/dataset_video.py.
    """
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


def open_sora(job: Job) -> list[str]:
    """Open-Sora 2: a CSV of paths, texts and picture facts, and the `bucket_config` that fits them.

    Buckets of frames are 4n + 1; `resolution` is height times width. Source: docs/train.md of Open-Sora.
    """

    def rows() -> Iterator[tuple[Any, ...]]:
        for path, clip in job.media(stills=True):
            size = (clip.height, clip.width, round(clip.height / clip.width, 6), clip.height * clip.width)
            yield (str(job.out / path), clip.caption, clip.frames, *size, clip.fps)

    write_csv(job.out / "clips.csv", OPEN_SORA, rows())
    name = min(SIDES, key=lambda label: abs(SIDES[label] - job.side))
    counts = [*([1] if job.stills else []), *job.frames]
    config = {name: dict.fromkeys(counts, (1.0, 1))}  # probability, batch size
    text = f"dataset = dict(type='video_text', data_path={str(job.out / 'clips.csv')!r}, fps_max=24)\n"
    write_text(job.out / "dataset.py", f"{text}bucket_config = {pprint.pformat(config)}\n")
    return [f"train with --dataset.data-path {job.out / 'clips.csv'}, bucket_config as in {job.out / 'dataset.py'}"]


def _control(job: Job, clip: Clip, key: str) -> dict[str, str]:
    """Return the path of a clip's control video under `key`, nothing where the export has none."""
    return {key: f"{job.control}/{clip.name}"} if job.control else {}


def _arguments(job: Job, options: Mapping[str, object], flags: str = "") -> str:
    """Write options as arguments of a command, followed by `flags`, to arguments.txt; return its path."""
    line = shlex.join(f"--{name}={value}" for name, value in options.items())
    write_text(job.out / "arguments.txt", f"{line}{flags}\n")
    return str(job.out / "arguments.txt")


def _script(job: Job, command: Sequence[str], usage: str = "", more: str = "") -> str:
    """Write preprocess.sh, which runs `command` and `more`, shell text that refers to its arguments; return the command
    that starts it."""
    note = f"# usage: preprocess.sh {usage}\n" if usage else ""
    write_text(job.out / "preprocess.sh", f"#!/bin/sh\n{note}exec {shlex.join(command)}{more}\n")
    return f"sh {shlex.quote(str(job.out / 'preprocess.sh'))}"
