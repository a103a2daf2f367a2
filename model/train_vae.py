"""Training of the small video autoencoder on a dataset's shards, for `latents=vae:RUN`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import Config, load_config
from model.data import Clips, make_loader, micro_batches
from model.index import DataError, latent_size, make_order, read_index
from model.latents import to_signed
from model.optimise import learning_rate
from model.parallel import autocast, join
from model.train import ERRORS, draw_noise, parse
from model.vae import CHANNELS, VAELatents, VideoVAE, vae_loss

PRESET = {"resolutions": (64,), "frame_counts": (1, 9), "image_ratio": 0.2, "tokens": 512, "lr": 1e-3, "steps": 300}
CUDA_PRESET = {
    "resolutions": (256,), "frame_counts": (1, 17), "image_ratio": 0.2, "fps": 16.0, "tokens": 40960, "lr": 3e-4,
    "warmup": 500, "steps": 20_000, "workers": 8, "precision": "bf16", "log_every": 100,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """`clipmill train-vae`; 0 when the autoencoder is written, 2 when it cannot be trained."""
    parser = argparse.ArgumentParser(
        prog="clipmill train-vae",
        description="Train a small video autoencoder on a dataset; then train with latents=vae:RUN.",
    )
    parser.add_argument("--width", type=int, default=0, help="channels at full size; default 16, on a GPU 64")
    args = parse(parser, argv)
    try:
        config = load_config(args.config, args.options, args.data, preset=CUDA_PRESET if args.cuda else PRESET)
        train_vae(config, args.out, args.width or (64 if args.cuda else 16))
    except ERRORS as error:
        print(f"clipmill train-vae: {error}", file=sys.stderr)
        return 2
    return 0


def train_vae(config: Config, out: Path, width: int) -> float:
    """Trains for `config.steps` on one device, writes OUT/latents, and returns the last reconstructions' PSNR (dB).

    The token budget counts pixels in blocks of 4 x 8 x 8, as the latents do. Raises one of train.ERRORS.
    """
    place = join(config.device)
    config = dataclasses.replace(config, patch=1, micro_batches=1)
    index = read_index(config.data)
    if index.encoded:
        raise DataError("an autoencoder is trained on clips; these datasets hold latents")
    order = make_order(index, config, VideoVAE.stride)
    torch.manual_seed(config.seed)
    vae = VideoVAE(width).to(place.device)
    print(f"{sum(p.numel() for p in vae.parameters()) / 1e6:.1f} million parameters on {place.device.type}", flush=True)
    optimizer = torch.optim.AdamW(vae.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    clips = Clips(index, order, config)
    loader = make_loader(clips, micro_batches(order, 0, config.steps, 0, 1), config.workers)
    total, square, count = torch.zeros(CHANNELS), torch.zeros(CHANNELS), 0
    psnr, began = 0.0, time.monotonic()
    for step, batch in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        video = to_signed(batch.video.to(place.device))
        shape = (CHANNELS, *latent_size(batch.draws[0].shape, VideoVAE.stride))
        noise = torch.stack([draw_noise(config.seed, d, shape, place.device) for d in batch.draws])
        with autocast(config, place):
            loss, rebuilt = vae_loss(vae, video, noise)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(vae.parameters(), config.clip_norm)
        if math.isfinite(float(norm)):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= config.steps * 0.9:  # the statistics that normalise the latents
            with torch.no_grad():
                mean = vae.distribution(video)[0].float().cpu()
            total += mean.sum(dim=(0, 2, 3, 4))
            square += mean.square().sum(dim=(0, 2, 3, 4))
            count += mean.numel() // CHANNELS
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            psnr = peak_signal(rebuilt.detach().float(), video)
            print(
                f"step {step + 1:6d}  loss {loss.item():.4f}  PSNR {psnr:.1f} dB  {time.monotonic() - began:.0f} s",
                flush=True,
            )
    mean = total / count
    deviation = (square / count - mean.square()).clamp_min(1e-6).sqrt()
    (out / "latents").mkdir(parents=True, exist_ok=True)
    VAELatents(vae.cpu(), mean, deviation).save(out / "latents")
    print(f"the autoencoder is in {out}; train with latents=vae:{out}")
    return psnr


def peak_signal(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of videos in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(a, b)))
