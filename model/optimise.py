"""The optimiser's side of a step: learning rate, clipping, skipping and the moving average, without host syncs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.config import Config


def make_optimizer(parameters: Sequence[nn.Parameter], config: Config) -> torch.optim.AdamW:
    """Fused AdamW, which `clipped_step` needs."""
    betas = (0.9, config.beta2)
    return torch.optim.AdamW(parameters, config.lr, betas=betas, weight_decay=config.weight_decay, fused=True)


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then constant or a cosine to a tenth."""
    rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
    if config.decay == "cosine" and step >= config.warmup:
        done = (step - config.warmup) / max(1, config.steps - config.warmup)
        rate *= 0.55 + 0.45 * math.cos(math.pi * min(1.0, done))
    return rate


def global_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Of the gradients, over all processes: a scalar on the device."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clipped_step(optimizer: torch.optim.Optimizer, norm: Tensor, limit: Tensor) -> Tensor:
    """One step of a fused optimiser with gradients cut to `limit`, or none where `norm` is not finite; 1 if so.

    The fused kernel itself divides the gradients and leaves the weights alone, as it does under a GradScaler, so there
    is neither a pass over the gradients nor a wait for the device.
    """
    skip = (~torch.isfinite(norm)).float()
    optimizer.grad_scale = (norm / limit).clamp_min(1.0)  # type: ignore[attr-defined]
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()
    return skip


class ClipRule:
    """The norm that gradients are cut to: `clip_norm`, or lower, the running mean plus three deviations."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.moments = torch.zeros(2, device=device)  # running means of the norm and of its square

    def limit(self, norm: Tensor) -> Tensor:
        """For this step's norm, which then joins the running moments if it is finite."""
        limit = torch.full_like(norm, self.config.clip_norm)
        if self.config.adaptive_clip:
            mean, square = self.moments
            bound = mean + 3 * (square - mean**2).clamp_min(0).sqrt()
            limit = torch.where(mean > 0, torch.minimum(limit, bound), limit)
            seen = torch.minimum(norm, limit)
            new = torch.where(
                mean > 0, self.moments.lerp(torch.stack([seen, seen**2]), 0.02), torch.stack([seen, seen**2])
            )
            self.moments = torch.where(torch.isfinite(norm), new, self.moments)
        return limit


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * weights."""
    torch._foreach_lerp_(list(ema.values()), [p.detach() for p in model.parameters()], 1 - decay)
