"""Depth maps: the depth of every frame by a model of transformers, as a video with the size, frames and times of the
clip."""

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

FILES = ("*.json", "*.safetensors")  # files of a model's repository that are downloaded and hashed
BATCH = 4  # frames in one call of the network
SMALLEST_RANGE = 1e-6  # smallest divisor when depth is scaled to the range of a clip


class Depth:
    """Member KEY.depth.mp4: near is bright and far is dark, scaled to the range of the whole clip to avoid flicker.

    `model` is a folder or a hub repository of a depth-estimation model of transformers, such as DPT or Depth Anything.
    The output of metric models, a distance, is inverted. The model runs on one CPU thread in each encoding process; the
    bytes are the same on CPUs of the same type.
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
        """Yield the inverse depth of each frame, near is large: (h, w) float32 at the network's output size."""
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
    """Return the folder of a model; download it from the hub if it is not cached. Raises OSError."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(FILES), local_files_only=True))
    except OSError:
        return Path(snapshot_download(model, allow_patterns=list(FILES)))
