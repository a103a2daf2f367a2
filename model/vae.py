"""A small causal video autoencoder: 4 frames x 8 x 8 pixels to one latent pixel of 16 channels.

Convolutions are split into space and time and never look ahead, so the first frame is encoded by itself, an image is a
video of one frame, and any length of 1 + 4k frames fits (as in Wan 2.1 and MAGVIT-v2). `clipmill train-vae` trains it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CHANNELS = 16


class CausalConv(nn.Module):
    """Convolution over (time, height, width) that sees no later frame; before the first frame it sees copies of it."""

    def __init__(self, a: int, b: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.before = kernel[0] - 1
        self.conv = nn.Conv3d(a, b, kernel, stride, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            x = torch.cat([x[:, :, :1].expand(-1, -1, self.before, -1, -1), x], dim=2)
        return self.conv(x)


class ChannelNorm(nn.Module):
    """Root-mean-square norm over channels, pixel by pixel: it mixes neither frames nor places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.weight


class Residual(nn.Module):
    """x + time(space(x)); the last convolution starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = CausalConv(width, width, (3, 1, 1))
        nn.init.zeros_(last.conv.weight)
        self.layers = nn.Sequential(
            ChannelNorm(width), nn.SiLU(), CausalConv(width, width, (1, 3, 3)), ChannelNorm(width), nn.SiLU(), last
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Up(nn.Module):
    """Doubles height and width and, with `time`, turns 1 + k frames into 1 + 2k."""

    def __init__(self, a: int, b: int, time: bool) -> None:
        super().__init__()
        self.time = time
        self.conv = CausalConv(a, b, (3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        if self.time:
            x = x.repeat_interleave(2, dim=2)[:, :, 1:]
        return self.conv(x)


class VideoVAE(nn.Module):
    """Videos (b, 3, 1 + 4k, h, w) in [-1, 1]; latents (b, 16, 1 + k, h / 8, w / 8).

    width: channels at full size; they double twice on the way down. 64 makes about 9 million parameters.
    """

    stride = (4, 8, 8)

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        self.encoder = nn.Sequential(
            CausalConv(3, a, (1, 3, 3)), Residual(a),
            CausalConv(a, b, (1, 3, 3), (1, 2, 2)), Residual(b),
            CausalConv(b, c, (3, 3, 3), (2, 2, 2)), Residual(c),
            CausalConv(c, c, (3, 3, 3), (2, 2, 2)), Residual(c), Residual(c),
            ChannelNorm(c), nn.SiLU(), CausalConv(c, 2 * CHANNELS, (1, 1, 1)),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            CausalConv(CHANNELS, c, (1, 3, 3)), Residual(c), Residual(c),
            Up(c, c, True), Residual(c), Up(c, b, True), Residual(b), Up(b, a, False), Residual(a),
            ChannelNorm(a), nn.SiLU(), CausalConv(a, 3, (1, 3, 3)),
        )  # fmt: skip

    def distribution(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents."""
        mean, log_variance = self.encoder(video).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)


def vae_loss(vae: VideoVAE, video: Tensor, noise: Tensor, kl_weight: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The loss and the reconstruction: L1 of pixels and of their differences in space and time at three scales, and a
    faint KL term (Kingma and Welling, 2013). noise: as the latents."""
    mean, log_variance = vae.distribution(video)
    rebuilt = vae.decoder(mean + noise * torch.exp(0.5 * log_variance))
    loss = (rebuilt - video).abs().mean()
    a, b = rebuilt, video
    for scale in range(3):
        if scale:
            a, b = (F.avg_pool3d(x, (1, 2, 2)) for x in (a, b))
        for axis in (2, 3, 4):
            if a.shape[axis] > 1:
                loss = loss + (a.diff(dim=axis) - b.diff(dim=axis)).abs().mean() / 3
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return loss + kl_weight * kl, rebuilt


class VAELatents:
    """A trained VideoVAE as latents, each channel normalised by its mean and deviation over the training clips."""

    stride = VideoVAE.stride
    channels = CHANNELS

    def __init__(self, vae: VideoVAE, mean: Tensor, deviation: Tensor) -> None:
        """mean and deviation: (16,) of the encoder's latents."""
        self.vae = vae.eval().requires_grad_(False)
        self.mean, self.deviation = (x.view(1, -1, 1, 1, 1) for x in (mean, deviation))
        digest = hashlib.sha256()
        for name, value in sorted(vae.state_dict().items()):
            digest.update(name.encode() + value.cpu().float().numpy().tobytes())
        self.id = f"vae-{digest.hexdigest()[:12]}"

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        return (self.vae.distribution(video)[0] - self.mean) / self.deviation

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decoder(latents * self.deviation + self.mean)

    def to(self, device: torch.device) -> VAELatents:
        self.vae.to(device)
        self.mean, self.deviation = self.mean.to(device), self.deviation.to(device)
        return self

    def save(self, folder: Path) -> None:
        tensors = {f"vae.{k}": v.cpu() for k, v in self.vae.state_dict().items()}
        tensors |= {"mean": self.mean.flatten().cpu(), "deviation": self.deviation.flatten().cpu()}
        save_file(tensors, folder / "vae.safetensors")

    @classmethod
    def load(cls, folder: Path) -> VAELatents:
        tensors = load_file(folder / "vae.safetensors")
        vae = VideoVAE(tensors["vae.encoder.0.conv.weight"].shape[0])
        vae.load_state_dict({k.removeprefix("vae."): v for k, v in tensors.items() if k.startswith("vae.")})
        return cls(vae, tensors["mean"], tensors["deviation"])
