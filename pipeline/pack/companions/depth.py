"""Depth of every frame by a model of transformers, as a video of the same size, frames and times."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.media.packed_clip import PackedClip

FILES = ("*.json", "*.safetensors")  # of a repository
BATCH = 4  # frames
SMALLEST_RANGE = 1e-6  # of depth over a clip; with less it is one grey


class Depth:
    """Member KEY.depth.mp4: near is bright and far is dark, by the range of the whole clip, so that nothing flickers.

    `model` is the folder or the hub's repository of a depth-estimation model of transformers: DPT, Depth Anything ...
    Metric models give distances, of which the inverse is taken. It runs on one CPU thread in each process that encodes:
    the same bytes on the same type of CPU.
    """

    version = 1
    endings: Mapping[str, str] = {"depth": "depth.mp4"}

    def __init__(self, model: str) -> None:
        self._model, self._folder = model, _folder(model)
        if not (self._folder / "config.json").is_file():
            raise ValueError(f"model: {model} has no config.json: expected a model of transformers")

    def identity(self) -> Mapping[str, Any]:
        return {"version": self.version, "model": Path(self._model).name, "weights": self._weights}

    def make(self, clip: PackedClip) -> dict[str, bytes]:
        depths = list(self._depths(clip.frames()))
        least = min(float(depth.min()) for depth in depths)
        scale = 255 / max(max(float(depth.max()) for depth in depths) - least, SMALLEST_RANGE)
        grey = (np.rint((depth - least) * scale).clip(0, 255).astype(np.uint8) for depth in depths)
        return {"depth": clip.video(cv2.resize(picture, clip.size, interpolation=cv2.INTER_LINEAR) for picture in grey)}

    @cached_property
    def _weights(self) -> str:
        digest = hashlib.sha256()
        for path in sorted(path for pattern in FILES for path in self._folder.glob(pattern)):
            with open(path, "rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()[:16]

    @cached_property
    def _network(self) -> tuple[Any, Any]:
        """Return the image processor and the network."""
        from filters.torchvision_ops import ensure_torchvision  # imports torch

        ensure_torchvision()
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation  # takes seconds to import

        network = AutoModelForDepthEstimation.from_pretrained(self._folder, local_files_only=True).eval()
        return AutoImageProcessor.from_pretrained(self._folder, local_files_only=True), network

    def _depths(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield what the network says of each frame, near is large: (h, w) float32 at the network's own size."""
        import torch

        processor, network = self._network
        is_metric = network.config.model_type == "zoedepth" or (
            getattr(network.config, "depth_estimation_type", None) == "metric"
        )
        while batch := list(islice(frames, BATCH)):
            with torch.inference_mode():
                depth = network(**processor(images=batch, return_tensors="pt")).predicted_depth.float()
            yield from (1 / depth.clamp(min=SMALLEST_RANGE) if is_metric else depth).numpy()


def _folder(model: str) -> Path:
    """Return the folder of a model, which is downloaded from the hub where it is not there. Raises OSError."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(FILES), local_files_only=True))
    except OSError:
        return Path(snapshot_download(model, allow_patterns=list(FILES)))
