"""The samplers: from noise to data along a path, with classifier-free guidance."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from model.backbones.base import Words
from model.objective import LINEAR, Path, shift_time, split

Model = Callable[[Tensor, Tensor, Words], Tensor]  # (x, t, words) -> prediction; see backbones.base.Backbone


def guided(
    model: Model,
    words: Words,
    empty: Words,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
) -> Model:
    """Return the model with classifier-free guidance (Ho and Salimans, 2022); `empty` is a batch of one empty caption.

    Guidance applies while the noisiest frame's t is inside `interval` (Kynkaanniemi et al., 2024); `rescale` in [0, 1]
    pulls the deviation of each sample back to that of the conditional prediction (Lin et al., 2023).
    """

    def predict(x: Tensor, t: Tensor, _: Words) -> Tensor:
        if scale == 1 or not interval[0] <= float(t.max()) <= interval[1]:
            return model(x, t, words)
        pair = {name: torch.cat([w, empty[name].expand_as(w)]) for name, w in words.items()}
        both = model(torch.cat([x, x]), torch.cat([t, t]), pair)
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
    words: Words,
    steps: int = 30,
    sampler: str = "euler",
    factor: float = 1.0,
    path: Path = LINEAR,
    clean: Tensor | None = None,
) -> Tensor:
    """Return latents of the shape of the noise (B, C, T, H, W).

    sampler: euler (on the cosine path this is DDIM), heun (two evaluations a step), or dpm (DPM-Solver++ 2M, Lu et al.,
    2022). clean: latents (B, C, k, H, W) of the first k frames, which stay as they are.
    """
    if sampler not in ("euler", "heun", "dpm"):
        raise ValueError(f"no sampler called {sampler!r}: euler, heun or dpm")
    clean_count = 0 if clean is None else clean.shape[2]
    free = torch.ones(noise.shape[2], device=noise.device)
    free[:clean_count] = 0
    times = shift_time(torch.linspace(1, 0, steps + 1, device=noise.device), factor)
    if sampler == "dpm":
        times[0] = min(float(times[0]), 1 - 1e-3)  # its steps are in log a/s, infinite at t = 1

    def evaluate(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        at = (t * free).expand(x.shape[0], -1)
        return model(x, at, words), at

    x = noise.float().clone()
    if clean is not None:
        x[:, :, :clean_count] = clean
    previous: tuple[Tensor, Tensor] | None = None  # (data, step in log a/s), of dpm
    for now, then in itertools.pairwise(times):
        prediction, at = evaluate(x, now)
        data, eps = split(x, prediction, at, path)
        (a0, s0), (a1, s1) = path.coefficients(now), path.coefficients(then)
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
                again, _ = evaluate(_keep(stepped, x, clean_count), then)
                stepped = x + (then - now) * path.speed * (prediction + again) / 2
        x = _keep(stepped, x, clean_count)
    return x


def _keep(new: Tensor, old: Tensor, clean_count: int) -> Tensor:
    """Return `new` with the first `clean_count` frames of `old`."""
    return new if clean_count == 0 else torch.cat([old[:, :, :clean_count], new[:, :, clean_count:]], dim=2)
