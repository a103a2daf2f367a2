"""The memory that a run needs on its device, checked before the first step."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import psutil
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from model.backbones.base import Layout, pad_words, replace_tensors
from model.backbones.build import make_backbone
from model.config import Config
from model.training.parallel import RankContext, autocast, choose_kept
from pipeline.config.options import OptionError as ConfigError


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process. state: weights in their own precision; gradients, moments of the optimiser and moving
    average of what is trained in fp32. activations: what the backward pass of the largest micro-batch keeps. A compiled
    model keeps less, and every pass has temporary tensors in addition."""

    state: int
    activations: int

    def __str__(self) -> str:
        return f"{(self.state + self.activations) / 1e9:.1f} GB (activations {self.activations / 1e9:.1f})"


def estimate_memory(
    config: Config, layout: Layout, shape: Sequence[int], stride: tuple[int, int, int], world: int
) -> MemoryEstimate:
    """Estimate the memory of a run on latents of `shape` (b, c, t, h, w), by a forward pass on tensors without data."""
    kept: dict[int, Tensor] = {}  # by storage; kept alive, so that no address is reused

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"):
        model = make_backbone(config, shape[1], layout, stride, weights=False)
    choose_kept(model, config)
    with FakeTensorMode(allow_fallback_kernels=False):
        replace_tensors(model)
        x, t = torch.zeros(*shape), torch.zeros(shape[0], shape[2])
        words = pad_words([{} for _ in range(shape[0])], layout)
        cpu = RankContext(torch.device("cpu"), 0, 1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(config, cpu):
            model(x, t, **words)
        parameters = {p.untyped_storage()._cdata: p for p in model.parameters()}
        activations = sum(s.untyped_storage().nbytes() for key, s in kept.items() if key not in parameters)
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    averaged = trained if config.base else sum(p.numel() for p in parameters.values())
    weights = sum(p.numel() * p.element_size() for p in parameters.values())
    shards = world if config.parallel == "fsdp" else 1
    return MemoryEstimate((weights + 4 * (3 * trained + averaged)) // shards, activations)


def check_memory(
    config: Config, layout: Layout, shape: Sequence[int], stride: tuple[int, int, int], context: RankContext
) -> MemoryEstimate:
    """Return the estimate of a run; raise ConfigError when the device has less free memory. Of a compiled model's
    activations half are counted."""
    if context.device.type == "cuda":
        free = torch.cuda.mem_get_info(context.device)[0]
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    estimate = estimate_memory(config, layout, shape, stride, context.world)
    if estimate.state + estimate.activations // (2 if config.compile else 1) > free:
        smaller = "" if config.lora_rank else "set lora_rank, " if config.base else "take a smaller size, "
        raise ConfigError(
            f"the run needs about {estimate} on each {context.device.type}, {free / 1e9:.1f} GB are free: "
            f"lower tokens, set recompute=1, {smaller}or use more processes"
        )
    return estimate
