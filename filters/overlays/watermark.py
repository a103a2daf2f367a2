"""Watermarks by LAION's classifier, for those who have its weights.

EfficientNet-B3 with a head of three layers; class 0 is "watermark" (https://github.com/LAION-AI/watermark-detection).
The filter `logo` needs no weights and finds marks that stay in a corner; this one also knows faint and large ones.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown
from filters.encoders.base import one_thread
from filters.weights import load_state, weights_file

KEY = "weights"
INPUT_SIZE = 256  # pixels
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's, of RGB in 0..1
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


class Watermark:
    """`watermark_probability`: mean over the sampled frames, 0..1. Text in the scene raises it. Raises ValueError,
    before any work, if the weights are not available."""

    name = "watermark"
    version = 1
    gpu = True
    needs = frozenset({Track.FRAMES})
    columns: Mapping[str, pa.DataType] = {"watermark_probability": pa.float32()}

    def __init__(self, weights: str = "hf://finetrainers/laion-watermark-detection/watermark_model_v1.pt"):
        self.path = weights_file(weights, KEY)

    @functools.cached_property
    def model(self) -> Any:
        """The network, on a GPU if there is one."""
        from filters.torchvision_ops import ensure_torchvision

        ensure_torchvision()  # timm imports it
        import timm
        import torch
        from torch import nn

        model = timm.create_model("efficientnet_b3", pretrained=False, num_classes=2)
        model.classifier = nn.Sequential(
            nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(0.3), nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)
        )
        try:
            model.load_state_dict(load_state(self.path, KEY))
        except RuntimeError as error:
            raise ValueError(f"{KEY}: {self.path} is not LAION's watermark model: {error}") from error
        return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def score(self, clip: ClipView) -> dict[str, Score]:
        if not len(clip.frames):
            return unknown(self, "no frames")
        import torch

        batch = torch.from_numpy(np.stack([_input(frame) for frame in clip.frames]))
        with one_thread(), torch.inference_mode():
            device = next(self.model.parameters()).device
            mean = float(self.model(batch.to(device)).softmax(dim=1)[:, 0].mean())
        return {"watermark_probability": mean}


def _input(frame: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (3, 256, 256) float32: the whole frame, squeezed to a square, as in training."""
    small = cv2.resize(frame, (INPUT_SIZE, INPUT_SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return np.ascontiguousarray(((small - MEAN) / DEVIATION).transpose(2, 0, 1))
