"""The objective: from data to noise along a path, and what the model predicts there.

A noisy latent is x_t = a(t) x_0 + s(t) noise with t in [0, 1]; t = 0 is data. Everything here is fp32.

- linear: rectified flow (Liu et al., 2022; Esser et al., SD3, 2024): a = 1 - t, s = t, target noise - x_0.
- cosine: a DDPM in v-prediction (Salimans and Ho, 2022): a = cos(pi t / 2), s = sin(pi t / 2), target a noise - s x_0.
- of a scheduler: a and s from a table of discrete steps, target v or the noise (`scheduled`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from model.config import Config
    from model.data.schedule import SampleRef

Coefficients = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Path:
    """coefficients: t of any shape to a(t) and s(t). target: velocity is noise - x_0, v is a noise - s x_0, epsilon is
    the noise. speed: |dx/dt| over |target| where that is constant, for second-order samplers."""

    coefficients: Coefficients
    target: Literal["velocity", "v", "epsilon"]
    speed: float = 1.0


def _linear(t: Tensor) -> tuple[Tensor, Tensor]:
    return 1 - t, t


def _cosine(t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)


LINEAR = Path(_linear, "velocity")
COSINE = Path(_cosine, "v", math.pi / 2)


def scheduled(alphas_cumprod: Tensor, target: Literal["v", "epsilon"]) -> Path:
    """Return the path of a scheduler with discrete steps: a = sqrt(alphas_cumprod[step]), s = sqrt(1 - a^2), with step
    of `discrete`; t = 0 is before the first step, without noise. alphas_cumprod (n,) falls from about 1."""
    table = torch.cat([torch.ones(1), alphas_cumprod.float()])

    def coefficients(t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = table.to(t.device)[_ordinal(t, len(table) - 1)]
        return alpha.sqrt(), (1 - alpha).sqrt()

    return Path(coefficients, target)


def discrete(t: Tensor, steps: int) -> Tensor:
    """Return the discrete step, int64 in [0, steps), of times in [0, 1]: the last one of t = 1. Evenly spaced times
    give the steps that diffusers' schedulers call trailing."""
    return (_ordinal(t, steps) - 1).clamp_min(0)


def _ordinal(t: Tensor, steps: int) -> Tensor:
    """Return 0 at t = 0, and otherwise one more than the discrete step."""
    return (t.double() * steps - 1e-4).ceil().long().clamp(0, steps)


def noisy(x0: Tensor, noise: Tensor, t: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    """Return x_t and the target, for x0 and noise (B, C, T, H, W) and t (B, T)."""
    a, s = (c[:, None, :, None, None] for c in path.coefficients(t))
    targets = {"velocity": lambda: noise - x0, "v": lambda: a * noise - s * x0, "epsilon": lambda: noise}
    return a * x0 + s * noise, targets[path.target]()


def split(x: Tensor, prediction: Tensor, t: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    """Return the data and the noise that a prediction implies for x_t; t (B, T)."""
    a, s = (c[:, None, :, None, None] for c in path.coefficients(t))
    if path.target == "velocity":
        return x - s * prediction, x + a * prediction
    if path.target == "v":
        return a * x - s * prediction, s * x + a * prediction
    return (x - s * prediction) / a.clamp_min(1e-8), prediction


def loss_per_sample(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean squared error over the frames whose weight (B, T) is not zero: (B,)."""
    error = (prediction.float() - target).square().mean(dim=(1, 3, 4))  # (B, T)
    return (error * weight).sum(1) / weight.sum(1).clamp_min(1e-8)


def shift_factor(tokens: int, base: int) -> float:
    """Return how far time moves towards noise: sqrt(tokens / base), between 1/3 and 6 (SD3, section 5.3.2, over
    tokens)."""
    return min(max(math.sqrt(tokens / base), 1 / 3), 6.0)


def time_shift(config: Config, tokens: int) -> float:
    """Return the factor by which a run's times of samples of `tokens` tokens are shifted."""
    return config.time_shift or shift_factor(tokens, config.shift_tokens)


def shift_time(t: Tensor, factor: float) -> Tensor:
    """Return t moved towards 1 by `factor`."""
    return factor * t / (1 + (factor - 1) * t)


def sample_time(quantile: Tensor, config: Config, factor: float) -> Tensor:
    """Convert quantiles in (0, 1) to times of the config's distribution, shifted, inside its time_range. Stratified
    quantiles, (i + u) / n over a batch of n, give the same distribution with less variance than independent ones."""
    low, high = config.time_range
    if config.time == "uniform":
        return low + (high - low) * shift_time(quantile.float(), factor)
    if (low, high) != (0.0, 1.0):  # the part of the distribution that is inside the range
        inside = torch.tensor([low, high], dtype=torch.float64)
        unshifted = inside / (factor + (1 - factor) * inside)
        ends = torch.special.ndtr((torch.logit(unshifted) - config.time_mean) / config.time_std)
        quantile = ends[0] + (ends[1] - ends[0]) * quantile.double()
    normal = torch.special.ndtri(quantile.double().clamp(1e-6, 1 - 1e-6))
    times = torch.sigmoid(config.time_mean + config.time_std * normal).float()
    return shift_time(times, factor).clamp(low, high)


@dataclass(frozen=True)
class NoisyBatch:
    """x and target (b, c, T, h, w), t and weight of the loss (b, T), and keep (b,): false where the caption is
    dropped."""

    x: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor
    keep: Tensor


def make_noisy(
    x0: Tensor, refs: Sequence[SampleRef], samples: int, tokens: int, config: Config, path: Path
) -> NoisyBatch:
    """Return a micro-batch with noise, which is a function of the seed, the step and the slot of each sample.

    Time is stratified over the `samples` of the step and shifted for `tokens` tokens a sample. Some samples keep their
    first frames clean, at t = 0 and without loss, which teaches image-to-video and extension.
    """
    frames = x0.shape[2]
    noise = torch.stack([draw_noise(config.seed, ref, x0.shape[1:], x0.device) for ref in refs])
    uniform = np.array([np.random.default_rng((config.seed, ref.step, ref.slot, 1)).random(4) for ref in refs])
    slots = np.array([ref.slot for ref in refs])
    quantiles = torch.from_numpy((slots + uniform[:, 0]) / samples)
    times = sample_time(quantiles, config, time_shift(config, tokens))
    has_clean = (uniform[:, 1] < config.clean_frames) & (frames > 1)
    clean = np.where(has_clean, 1 + (uniform[:, 2] * (frames - 1) / 2).astype(int), 0)
    weight = (torch.arange(frames) >= torch.from_numpy(clean)[:, None]).float().to(x0.device)
    t = times[:, None].to(x0.device) * weight
    x, target = noisy(x0, noise, t, path)
    return NoisyBatch(x, t, target, weight, torch.from_numpy(uniform[:, 3] >= config.caption_dropout).to(x0.device))


def draw_noise(seed: int, ref: SampleRef, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return the sample's noise, a function of the seed, its step and its slot."""
    words = np.random.SeedSequence((seed, ref.step, ref.slot, 2)).generate_state(1, np.uint64)
    return torch.randn(
        *shape, generator=torch.Generator(device).manual_seed(int(words[0] >> np.uint64(1))), device=device
    )
