"""Pixels rearranged into blocks: lossless latents for tests and very small videos, and the blocks that PCA works on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model.errors import LatentError


class Pixels:
    """Space-time to depth; lossless."""

    id = "pixel-2x4x4"
    stride = (2, 4, 4)
    channels = 2 * 4 * 4 * 3

    def encode(self, video: Tensor) -> Tensor:
        return to_blocks(video, self.stride)

    def decode(self, latents: Tensor) -> Tensor:
        return from_blocks(latents, self.stride)

    def to(self, device: torch.device) -> Pixels:
        return self

    def save(self, folder: Path) -> None:
        """Do nothing: there are no weights."""


def to_blocks(video: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Rearrange (b, c, 1 + st*k, h, w) to (b, c*st*sh*sw, 1 + k, h/sh, w/sw); the first frame is repeated to fill its
    block. Raises LatentError when the video does not divide into blocks."""
    st, sh, sw = stride
    b, c, t, h, w = video.shape
    if (t - 1) % st or h % sh or w % sw:
        raise LatentError(f"{t} frames of {h}x{w} do not divide into blocks of {st}x{sh}x{sw} after the first frame")
    video = torch.cat([video[:, :, :1].expand(-1, -1, st - 1, -1, -1), video], dim=2)
    video = video.reshape(b, c, (t - 1) // st + 1, st, h // sh, sh, w // sw, sw)
    return video.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * st * sh * sw, (t - 1) // st + 1, h // sh, w // sw)


def from_blocks(blocks: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Invert `to_blocks`; the first frame is the mean of its block."""
    st, sh, sw = stride
    b, n, t, h, w = blocks.shape
    c = n // (st * sh * sw)
    video = blocks.reshape(b, c, st, sh, sw, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    video = video.reshape(b, c, t * st, h * sh, w * sw)
    return torch.cat([video[:, :, :st].mean(2, keepdim=True), video[:, :, st:]], dim=2)
