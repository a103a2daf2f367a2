"""The interface of latents, and the conversion between frames and what they encode."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Latents(Protocol):
    """Videos are (b, 3, t, h, w) fp32 in [-1, 1]; latents (b, c, t', h', w') fp32 with a standard deviation of about 1.

    All are causal in time: the first frame is encoded by itself and each following group of `stride[0]` frames becomes
    one latent frame, so a video of 1 + 4k frames has 1 + k latent frames and an image is a video of one frame.
    """

    id: str  # name and a hash of the weights; latent shards and checkpoints record it
    stride: tuple[int, int, int]  # frames, rows and columns of a latent pixel
    channels: int

    def encode(self, video: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def to(self, device: torch.device) -> Latents: ...

    def save(self, folder: Path) -> None: ...


def to_signed(frames: Tensor) -> Tensor:
    """Convert (b, t, h, w, 3) uint8 to (b, 3, t, h, w) fp32 in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_bytes(video: Tensor) -> Tensor:
    """Convert (b, 3, t, h, w) in [-1, 1] to (b, t, h, w, 3) uint8."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1)
