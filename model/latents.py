"""What the diffusion model works on: video to latents and back.

All of them are causal in time: the first frame is encoded by itself and every following group of `stride[0]` frames
becomes one latent frame, so a video of 1 + 4k frames has 1 + k latent frames and an image is a video of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import Config
from model.hub_latents import HubLatents
from model.vae import VAELatents


class LatentError(ValueError):
    """Latents that do not fit: of another kind than the run's, or a shape that cannot be encoded."""


class Latents(Protocol):
    """Videos are (b, 3, t, h, w) fp32 in [-1, 1]; latents (b, c, t', h', w') fp32 with a deviation of about 1."""

    id: str  # kind and a hash of the weights; shards of latents and checkpoints carry it
    stride: tuple[int, int, int]  # frames, rows and columns a latent pixel
    channels: int

    def encode(self, video: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def to(self, device: torch.device) -> Latents: ...

    def save(self, folder: Path) -> None: ...


class Pixels:
    """Space-time to depth, nothing lost: for tests and very small videos."""

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
        """There is nothing to save."""


class PCA:
    """Principal components of blocks of 4 frames x 8 x 8 pixels, fitted on the dataset in one pass; no network.

    The first frame counts as a block of four equal frames, so that a channel means the same in every latent frame.
    Component i is divided by its deviation to the power `whiten`: all of it would make the model spend itself on the
    faint components, none of it would drown them in noise.
    """

    stride = (4, 8, 8)
    whiten = 0.5

    def __init__(self, basis: Tensor, mean: Tensor, deviation: Tensor) -> None:
        """basis (768, c) with orthonormal columns, mean (768,), deviation (c,) of the components."""
        self.basis, self.mean, self.deviation = basis, mean, deviation
        self.channels = basis.shape[1]
        scale = deviation**self.whiten
        self.scale = scale * (deviation / scale).square().mean().sqrt()
        digest = hashlib.sha256(basis.numpy().tobytes() + mean.numpy().tobytes() + deviation.numpy().tobytes())
        self.id = f"pca{self.channels}-{digest.hexdigest()[:12]}"

    @classmethod
    def fit(cls, videos: Iterable[Tensor], channels: int) -> PCA:
        """From videos (b, 3, t, h, w) in [-1, 1] of any shapes that divide into blocks."""
        size = 3 * cls.stride[0] * cls.stride[1] * cls.stride[2]
        total, square, count = torch.zeros(size).double(), torch.zeros(size, size).double(), 0
        for video in videos:
            rows = to_blocks(video, cls.stride).movedim(1, -1).reshape(-1, size).double()
            total += rows.sum(0)
            square += rows.T @ rows
            count += len(rows)
        if count == 0:
            raise LatentError("no video to fit the principal components on")
        mean = total / count
        values, vectors = torch.linalg.eigh(square / count - mean[:, None] * mean)
        order = values.argsort(descending=True)[:channels]
        basis = vectors[:, order]
        basis = basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)  # an eigenvector's sign is arbitrary
        return cls(basis.float(), mean.float(), values[order].clamp_min(1e-6).sqrt().float())

    def encode(self, video: Tensor) -> Tensor:
        blocks = to_blocks(video, self.stride).movedim(1, -1) - self.mean
        return ((blocks @ self.basis) / self.scale).movedim(-1, 1).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        blocks = (latents.movedim(1, -1) * self.scale) @ self.basis.T + self.mean
        return from_blocks(blocks.movedim(-1, 1), self.stride)

    def to(self, device: torch.device) -> PCA:
        self.basis, self.mean, self.scale = (x.to(device) for x in (self.basis, self.mean, self.scale))
        return self

    def save(self, folder: Path) -> None:
        tensors = {"basis": self.basis.contiguous(), "mean": self.mean, "deviation": self.deviation}
        save_file(tensors, folder / "pca.safetensors")

    @classmethod
    def load(cls, folder: Path) -> PCA:
        tensors = load_file(folder / "pca.safetensors")
        return cls(tensors["basis"], tensors["mean"], tensors["deviation"])


def make_latents(config: Config, videos: Callable[[tuple[int, int, int]], Iterable[Tensor]]) -> Latents:
    """New latents for a run; `videos(stride)` yields what principal components are fitted on. Raises LatentError."""
    kind, _, source = config.latents.partition(":")
    if kind == "pixel":
        return Pixels()
    if kind == "pca":
        return PCA.fit(videos(PCA.stride), config.latent_channels)
    if kind == "vae":
        return VAELatents.load(_vae_folder(source))
    if kind == "diffusers":
        try:
            return HubLatents(source)
        except (OSError, ValueError) as error:
            raise LatentError(f"cannot load the autoencoder {source}: {error}") from error
    raise LatentError(f"no latents called {config.latents!r}: pixel, pca, vae:RUN or diffusers:FOLDER_OR_REPO")


def latent_stride(config: Config) -> tuple[int, int, int]:
    """What `make_latents` will make, before it is fitted. Raises LatentError."""
    return PCA.stride if config.latents == "pca" else make_latents(config, lambda _: ()).stride


def load_latents(name: str, folder: Path) -> Latents:
    """The latents that a run saved in `folder`; name: its config's `latents`."""
    kind = name.partition(":")[0]
    if kind == "pixel":
        return Pixels()
    kinds: dict[str, Callable[[Path], Latents]] = {
        "pca": PCA.load,
        "vae": VAELatents.load,
        "diffusers": HubLatents.load,
    }
    return kinds[kind](folder)


def _vae_folder(run: str) -> Path:
    folder = Path(run) / "latents"
    if not (folder / "vae.safetensors").exists():
        raise LatentError(f"{run}: no trained autoencoder in it; `clipmill train-vae DATASET --out {run}` makes one")
    return folder


def to_blocks(video: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """(b, c, 1 + st*k, h, w) to (b, c*st*sh*sw, 1 + k, h/sh, w/sw), the first frame repeated to fill its block."""
    st, sh, sw = stride
    b, c, t, h, w = video.shape
    if (t - 1) % st or h % sh or w % sw:
        raise LatentError(f"{t} frames of {h}x{w} do not divide into blocks of {st}x{sh}x{sw} after the first frame")
    video = torch.cat([video[:, :, :1].expand(-1, -1, st - 1, -1, -1), video], dim=2)
    video = video.reshape(b, c, (t - 1) // st + 1, st, h // sh, sh, w // sw, sw)
    return video.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * st * sh * sw, (t - 1) // st + 1, h // sh, w // sw)


def from_blocks(blocks: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """The inverse of `to_blocks`; the first frame is the mean of its block."""
    st, sh, sw = stride
    b, n, t, h, w = blocks.shape
    c = n // (st * sh * sw)
    video = blocks.reshape(b, c, st, sh, sw, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    video = video.reshape(b, c, t * st, h * sh, w * sw)
    return torch.cat([video[:, :, :st].mean(2, keepdim=True), video[:, :, st:]], dim=2)


def to_signed(frames: Tensor) -> Tensor:
    """(b, t, h, w, 3) uint8 to (b, 3, t, h, w) fp32 in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_bytes(video: Tensor) -> Tensor:
    """(b, 3, t, h, w) in [-1, 1] to (b, t, h, w, 3) uint8."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1)
