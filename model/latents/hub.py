"""Latents of the autoencoders that diffusers knows: Wan, LTX, CogVideoX, Hunyuan, and image ones frame by frame."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.backbones.pretrained import first_line, load_diffusers
from model.errors import LatentError


class HubLatents:
    """`diffusers:FOLDER_OR_REPO` as latents, normalised as the model's own pipeline does: by the mean and deviation of
    each channel, or by a shift and a scaling factor."""

    def __init__(self, path: str) -> None:
        """path: a folder or hub repository that holds a VAE, at its root or in `vae/`. Raises LatentError."""
        diffusers = load_diffusers()
        self.path = path
        try:
            settings, subfolder = _settings(path)
            vae_class = getattr(diffusers, settings["_class_name"], None)
            if vae_class is None:
                raise LatentError(f"{path}: this version of diffusers has no {settings['_class_name']}")
            self.vae = vae_class.from_pretrained(path, subfolder=subfolder).eval().requires_grad_(False)
        except (OSError, ValueError, KeyError) as error:
            raise LatentError(f"cannot load the autoencoder {path}: {first_line(error)}") from error
        self.frame_wise = settings["_class_name"] == "AutoencoderKL"
        self.channels = int(self.vae.config.get("z_dim") or self.vae.config["latent_channels"])
        self.stride = _stride(self.vae, self.frame_wise)
        self.mean, self.deviation = _moments(self.vae, self.channels)
        self.id = f"{settings['_class_name']}-{self.channels}-{weight_hash(self.vae)}"

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
        if self.vae.config.get("timestep_conditioning"):  # of LTX 0.9.1 and later: t = 0 is a latent without noise
            return self.vae.decode(z, torch.zeros(len(z), device=z.device, dtype=z.dtype)).sample.float()
        return self.vae.decode(z).sample.float()

    def to(self, device: torch.device) -> HubLatents:
        self.vae.to(device)
        self.mean, self.deviation = self.mean.to(device), self.deviation.to(device)
        return self

    def save(self, folder: Path) -> None:
        (folder / "hub.json").write_text(json.dumps({"source": self.path}))

    @classmethod
    def load(cls, folder: Path) -> HubLatents:
        return cls(json.loads((folder / "hub.json").read_text())["source"])


def weight_hash(model: torch.nn.Module) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of all weights, in fp32 and in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _settings(path: str) -> tuple[dict[str, Any], str | None]:
    """The VAE's configuration, and the sub-folder it is in."""
    autoencoder = load_diffusers().AutoencoderKL
    try:
        return dict(autoencoder.load_config(path, subfolder="vae")), "vae"
    except OSError:
        return dict(autoencoder.load_config(path)), None


def _stride(vae: Any, frame_wise: bool) -> tuple[int, int, int]:
    config = vae.config
    blocks = len(config.get("block_out_channels") or ()) or 4
    space = getattr(vae, "spatial_compression_ratio", None)
    space = config.get("scale_factor_spatial") or config.get("spatial_compression_ratio") or space or 2 ** (blocks - 1)
    time = getattr(vae, "temporal_compression_ratio", None)
    time = config.get("scale_factor_temporal") or config.get("temporal_compression_ratio") or time or 4
    return (1 if frame_wise else int(time), int(space), int(space))


def _moments(vae: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the VAE's own output, (1, c, 1, 1, 1) each."""
    config = vae.config
    scale = float(config.get("scaling_factor") or 1.0)
    mean = config.get("latents_mean") or getattr(vae, "latents_mean", None)
    deviation = config.get("latents_std") or getattr(vae, "latents_std", None)
    if mean is None or deviation is None:
        mean, deviation = [float(config.get("shift_factor") or 0.0)] * channels, [1.0] * channels
    both = (torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(deviation, dtype=torch.float32) / scale)
    return both[0].view(1, -1, 1, 1, 1), both[1].view(1, -1, 1, 1, 1)


def _as_images(video: Tensor) -> Tensor:
    """(b, c, t, h, w) to (b*t, c, h, w)."""
    return video.transpose(1, 2).flatten(0, 1)


def _as_video(images: Tensor, batch: int) -> Tensor:
    """(b*t, c, h, w) to (b, c, t, h, w)."""
    return images.unflatten(0, (batch, -1)).transpose(1, 2)
