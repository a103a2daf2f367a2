"""Latents of the autoencoders that diffusers knows: Wan, LTX, CogVideoX, Hunyuan, and image ones frame by frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class HubLatents:
    """`diffusers:FOLDER_OR_REPO` as latents: normalised by the model's own mean and deviation, or scaling factor."""

    def __init__(self, source: str) -> None:
        """source: a folder or hub repository that holds a VAE (or has one in `vae/`). Raises OSError when there is
        none, ValueError when diffusers does not know it."""
        from filters.torchvision_ops import ensure_torchvision

        ensure_torchvision()
        import diffusers

        self.source = source
        inside = "vae" if (Path(source) / "vae" / "config.json").exists() else None
        settings: dict[str, Any] = diffusers.AutoencoderKL.load_config(source, subfolder=inside)
        kind = getattr(diffusers, settings["_class_name"], None)
        if kind is None:
            raise ValueError(f"{source}: diffusers has no {settings['_class_name']}")
        self.vae = kind.from_pretrained(source, subfolder=inside).eval().requires_grad_(False)
        config = self.vae.config
        self.frame_wise = settings["_class_name"] == "AutoencoderKL"
        self.channels = int(config.get("z_dim") or config["latent_channels"])
        blocks = len(config.get("block_out_channels") or ()) or 4
        space = int(config.get("scale_factor_spatial") or config.get("spatial_compression_ratio") or 2 ** (blocks - 1))
        time = int(config.get("scale_factor_temporal") or config.get("temporal_compression_ratio") or 4)
        self.stride = (1 if self.frame_wise else time, space, space)
        mean = config.get("latents_mean") or getattr(self.vae, "latents_mean", None)
        deviation = config.get("latents_std") or getattr(self.vae, "latents_std", None)
        if mean is None or deviation is None:
            mean = [float(config.get("shift_factor") or 0.0)] * self.channels
            deviation = [1 / float(config.get("scaling_factor") or 1.0)] * self.channels
        self.mean, self.deviation = (
            torch.as_tensor(x, dtype=torch.float32).view(1, -1, 1, 1, 1) for x in (mean, deviation)
        )
        first = next(iter(self.vae.parameters())).detach().float()
        self.id = f"{settings['_class_name']}-{self.channels}-{float(first.double().sum()):.9g}"

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        x = _as_images(video) if self.frame_wise else video
        z = self.vae.encode(x.to(self.vae.dtype)).latent_dist.mode().float()
        return (_as_video(z, len(video)) if self.frame_wise else z).sub(self.mean) / self.deviation

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        z = (latents * self.deviation + self.mean).to(self.vae.dtype)
        if self.frame_wise:
            return _as_video(self.vae.decode(_as_images(z)).sample.float(), len(latents))
        return self.vae.decode(z).sample.float()

    def to(self, device: torch.device) -> HubLatents:
        self.vae.to(device)
        self.mean, self.deviation = self.mean.to(device), self.deviation.to(device)
        return self

    def save(self, folder: Path) -> None:
        (folder / "hub.json").write_text(json.dumps({"source": self.source}))

    @classmethod
    def load(cls, folder: Path) -> HubLatents:
        return cls(json.loads((folder / "hub.json").read_text())["source"])


def _as_images(video: Tensor) -> Tensor:
    """(b, c, t, h, w) to (b*t, c, h, w)."""
    return video.transpose(1, 2).flatten(0, 1)


def _as_video(images: Tensor, batch: int) -> Tensor:
    """(b*t, c, h, w) to (b, c, t, h, w)."""
    return images.unflatten(0, (batch, -1)).transpose(1, 2)
