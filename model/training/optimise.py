"""The optimiser's side of a step: learning rate, clipping, skipping and the moving average, without host syncs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from model.config import Config


class ShardedAdamW(torch.optim.AdamW):
    """AdamW that updates the local shards of DTensors. Dispatching hundreds of DTensors takes longer than the update.
    The state stays DTensors, as checkpoints need it."""

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex = super()._init_group(group, *lists)  # type: ignore[misc]
        for tensors in lists:
            tensors[:] = [local_shard(tensor) for tensor in tensors]
        return bool(has_complex)


def make_optimizer(parameters: Sequence[nn.Parameter], config: Config) -> torch.optim.AdamW:
    """Return fused AdamW, which `clipped_step` needs."""
    betas = (0.9, config.beta2)
    return ShardedAdamW(parameters, config.lr, betas=betas, weight_decay=config.weight_decay, fused=True)


def local_shard(tensor: Tensor) -> Tensor:
    """Return this process's part of a DTensor, sharing its memory; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def learning_rate(config: Config, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then constant or a cosine to a tenth."""
    rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
    if config.decay == "cosine" and step >= config.warmup:
        progress = (step - config.warmup) / max(1, config.steps - config.warmup)
        rate *= 0.55 + 0.45 * math.cos(math.pi * min(1.0, progress))
    return rate


@torch.no_grad()
def global_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Return the norm of the gradients over all processes, a scalar on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([local_shard(gradient) for gradient in gradients], foreach=True)
    if isinstance(gradients[0], DTensor):  # the shards of all processes together are the gradients
        norm = norm.square()
        dist.all_reduce(norm, group=gradients[0].device_mesh.get_group())
        norm = norm.sqrt()
    return norm


def clipped_step(optimizer: torch.optim.Optimizer, norm: Tensor, limit: Tensor) -> Tensor:
    """Step a fused optimiser with gradients clipped to `limit`; skip the step where `norm` is not finite. Return 1 if
    it was skipped, else 0.

    The fused kernel divides the gradients and skips the update itself, as under a GradScaler, so that there is neither
    a pass over the gradients nor a host sync.
    """
    skip = (~torch.isfinite(norm)).float()
    optimizer.grad_scale = (norm / limit).clamp_min(1.0)  # type: ignore[attr-defined]
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()
    return skip


class ClipRule:
    """The norm to which gradients are clipped: `clip_norm`, or the running mean plus three deviations if that is
    lower."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.moments = torch.zeros(2, device=device)  # running means of the norm and of its square

    def limit(self, norm: Tensor) -> Tensor:
        """Return the limit for this step's norm, and add the norm to the running moments if it is finite."""
        limit = torch.full_like(norm, self.config.clip_norm)
        if self.config.adaptive_clip:
            mean, square = self.moments
            bound = mean + 3 * (square - mean**2).clamp_min(0).sqrt()
            limit = torch.where(mean > 0, torch.minimum(limit, bound), limit)
            clipped = torch.minimum(norm, limit)
            new = torch.where(
                mean > 0,
                self.moments.lerp(torch.stack([clipped, clipped**2]), 0.02),
                torch.stack([clipped, clipped**2]),
            )
            self.moments = torch.where(torch.isfinite(norm), new, self.moments)
        return limit


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Set ema <- decay * ema + (1 - decay) * weights."""
    own = dict(model.named_parameters())
    averages, weights = [local_shard(average) for average in ema.values()], [local_shard(own[name]) for name in ema]
    torch._foreach_lerp_(averages, weights, 1 - decay)
