"""The objective and the samplers: from data to noise along a path, and back.

A noisy latent is x_t = a(t) x_0 + s(t) noise with t in [0, 1]; t = 0 is data. The linear path is rectified flow (Liu et
al., 2022; Esser et al., SD3, 2024): a = 1 - t, s = t, target noise - x_0. The cosine path is a DDPM in v-prediction
(Salimans and Ho, 2022): a = cos(pi t / 2), s = sin(pi t / 2), target a noise - s x_0. Everything here is fp32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, t, text) -> prediction; see DiT.forward


def coefficients(t: Tensor, path: str) -> tuple[Tensor, Tensor]:
    """a(t) and s(t) of the path."""
    if path == "linear":
        return 1 - t, t
    return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)


def shift_factor(tokens: int, base: int) -> float:
    """How far time moves towards noise: sqrt(tokens / base), between 1/3 and 6 (SD3, section 5.3.2, over tokens)."""
    return min(max(math.sqrt(tokens / base), 1 / 3), 6.0)


def shift_time(t: Tensor, factor: float) -> Tensor:
    """t moved towards 1 by `factor`."""
    return factor * t / (1 + (factor - 1) * t)


def sample_time(quantile: Tensor, mean: float, std: float, factor: float) -> Tensor:
    """Quantiles in (0, 1) to logit-normal times, shifted. Stratified quantiles, (i + u) / n over a batch of n, give
    the same distribution with less variance than independent ones."""
    normal = torch.special.ndtri(quantile.double().clamp(1e-6, 1 - 1e-6))
    return shift_time(torch.sigmoid(mean + std * normal).float(), factor)


def noisy(x0: Tensor, noise: Tensor, t: Tensor, path: str) -> tuple[Tensor, Tensor]:
    """x_t and the target, for x0 and noise (B, C, T, H, W) and t (B, T)."""
    a, s = (c[:, None, :, None, None] for c in coefficients(t, path))
    target = noise - x0 if path == "linear" else a * noise - s * x0
    return a * x0 + s * noise, target


def loss_per_sample(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error over the frames whose weight (B, T) is not zero: (B,)."""
    error = (prediction.float() - target).square().mean(dim=(1, 3, 4))  # (B, T)
    return (error * weight).sum(1) / weight.sum(1).clamp_min(1e-8)


def split(x: Tensor, prediction: Tensor, t: Tensor, path: str) -> tuple[Tensor, Tensor]:
    """Data and noise as the model sees them in x_t; t (B, T)."""
    a, s = (c[:, None, :, None, None] for c in coefficients(t, path))
    if path == "linear":
        return x - s * prediction, x + a * prediction
    return a * x - s * prediction, s * x + a * prediction


def guided(
    model: Model,
    text: Tensor,
    null: Tensor,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
) -> Model:
    """The model with classifier-free guidance (Ho and Salimans, 2022), text and no text in one batch.

    Guidance applies while the noisiest frame's t is inside `interval` (Kynkaanniemi et al., 2024); `rescale` in [0, 1]
    pulls the deviation of each sample back to that of the conditional prediction (Lin et al., 2023).
    """

    def predict(x: Tensor, t: Tensor, _: Tensor) -> Tensor:
        if scale == 1 or not interval[0] <= float(t.max()) <= interval[1]:
            return model(x, t, text)
        both = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([text, null.expand_as(text)]))
        with_text, without = both.chunk(2)
        out = without + scale * (with_text - without)
        if rescale:
            axes = tuple(range(1, out.ndim))
            ratio = with_text.std(dim=axes, keepdim=True) / out.std(dim=axes, keepdim=True).clamp_min(1e-8)
            out = out * (rescale * ratio + 1 - rescale)
        return out

    return predict


@torch.no_grad()
def sample(
    model: Model,
    noise: Tensor,
    text: Tensor,
    steps: int = 30,
    sampler: str = "euler",
    factor: float = 1.0,
    path: str = "linear",
    clean: Tensor | None = None,
) -> Tensor:
    """From noise (B, C, T, H, W) to latents of the same shape.

    sampler: euler (on the cosine path this is DDIM), heun (two evaluations a step), or dpm (DPM-Solver++ 2M, Lu et al.,
    2022). clean: latents (B, C, k, H, W) of the first k frames, which stay as they are.
    """
    if sampler not in ("euler", "heun", "dpm"):
        raise ValueError(f"no sampler called {sampler!r}: euler, heun or dpm")
    given = 0 if clean is None else clean.shape[2]
    free = torch.ones(noise.shape[2], device=noise.device)
    free[:given] = 0
    times = shift_time(torch.linspace(1, 0, steps + 1, device=noise.device), factor)
    if sampler == "dpm":
        times[0] = min(float(times[0]), 1 - 1e-3)  # its steps are in log a/s, infinite at t = 1

    def evaluate(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        at = (t * free).expand(x.shape[0], -1)
        return model(x, at, text), at

    x = noise.float().clone()
    if clean is not None:
        x[:, :, :given] = clean
    previous: tuple[Tensor, Tensor] | None = None  # (data, step in log a/s), of dpm
    for now, then in itertools.pairwise(times):
        prediction, at = evaluate(x, now)
        data, eps = split(x, prediction, at, path)
        (a0, s0), (a1, s1) = coefficients(now, path), coefficients(then, path)
        if sampler == "dpm" and float(then) > 0:
            h = torch.log(a1 / s1) - torch.log(a0 / s0)
            estimate = data
            if previous is not None:
                estimate = data + (data - previous[0]) * (0.5 * h / previous[1])
            stepped = (s1 / s0) * x - a1 * torch.expm1(-h) * estimate
            previous = (data, h)
        else:
            stepped = a1 * data + s1 * eps
            if sampler == "heun" and float(then) > 0:
                again, _ = evaluate(_keep(stepped, x, given), then)
                speed = 1.0 if path == "linear" else math.pi / 2  # dx/dt over the prediction
                stepped = x + (then - now) * speed * (prediction + again) / 2
        x = _keep(stepped, x, given)
    return x


def _keep(new: Tensor, old: Tensor, given: int) -> Tensor:
    """`new` with the first `given` frames of `old`."""
    return new if given == 0 else torch.cat([old[:, :, :given], new[:, :, given:]], dim=2)
