"""Estimate of the memory that a run needs on its device, checked before the first step.

    needed = weights + training + activations + workspace

- weights: all weights in their own precision; quantised layers take 1 byte (int8) or 0.52 bytes (nf4) per weight.
- training: gradients, two moments and the moving average of the trained weights in fp32, 16 bytes per weight. FSDP
  divides weights and training by the number of processes, and adds the gathered weights of two blocks.
- activations: the tensors that a forward pass of the largest micro-batch saves for the backward pass, counted with fake
  tensors. Recomputed blocks save only their inputs, except one block at a time. A compiled block saves about half.
- workspace: twice the largest saved tensor, for intermediate gradients, plus WORKSPACE for the libraries.

Not included: fragmentation; and the text encoder and VAE of a run that encodes while it trains, which are on the device
before the check. tests/benchmarks/training/preset_memory.py measures the presets on a GPU.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.backbones.adapter import DiffusersBackbone
from model.backbones.base import Layout, pad_words, replace_tensors
from model.backbones.build import make_backbone
from model.backbones.quantise import bytes_saved
from model.errors import DeviceError
from model.network.dit import DiT
from model.training.parallel import RankContext, autocast, freeze_and_recompute

if TYPE_CHECKING:
    from model.config import Config

WORKSPACE = 5 * 10**8  # bytes for cuBLAS, cuDNN and the rounding of the caching allocator
COMPILED = 0.5  # share of a block's activations that are saved when it is compiled


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Estimated bytes of one process; the module docstring describes the fields."""

    weights: int
    training: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        return self.weights + self.training + self.activations + self.workspace

    def __str__(self) -> str:
        parts = ("weights", "training", "activations", "workspace")
        listed = ", ".join(f"{name} {getattr(self, name) / 1e9:.1f}" for name in parts)
        return f"{self.total / 1e9:.1f} GB ({listed})"


def estimate_memory(
    config: Config, layout: Layout, shape: Sequence[int], stride: tuple[int, int, int], world: int
) -> MemoryEstimate:
    """Estimate the memory of a run on latents of `shape` (b, c, t, h, w), by forward passes with fake tensors.

    `stride` is the VAE's compression in time, height and width; `world` is the number of processes.
    """
    with torch.device("meta"):
        model = make_backbone(config, shape[1], layout, stride, weights=False)
    blocks = len(model.blocks)
    everything, largest = _saved_bytes(model, config, layout, shape)
    activations = everything * (COMPILED if config.compile else 1.0)
    if config.recompute:
        freeze_and_recompute(model, config)
        inputs, _ = _saved_bytes(model, config, layout, shape)
        recomputed = len(range(0, blocks, config.recompute))
        one_block = max(0, everything - inputs) / recomputed * (COMPILED if config.compile else 1.0)
        activations = inputs + one_block
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    averaged = trained if config.base else sum(p.numel() for p in parameters)
    weights = sum(p.numel() * p.element_size() for p in parameters)
    if config.quantise and isinstance(model, DiffusersBackbone):
        weights -= bytes_saved(model.transformer, config.quantise)
    shards, gathered = 1, 0
    if world > 1 and config.parallel == "fsdp":
        shards, gathered = world, 2 * max(_bytes(block) for block in model.blocks)
    training = 4 * (3 * trained + averaged) // shards
    return MemoryEstimate(weights // shards + gathered, training, int(activations), 2 * largest + WORKSPACE)


def _saved_bytes(
    model: DiT | DiffusersBackbone, config: Config, layout: Layout, shape: Sequence[int]
) -> tuple[int, int]:
    """Return the bytes that a forward pass saves for the backward pass, and the bytes of the largest saved tensor."""
    saved: dict[int, Tensor] = {}  # by address of the storage; references prevent the reuse of an address

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FakeTensorMode(allow_fallback_kernels=False):
        replace_tensors(model)
        x, t = torch.zeros(*shape), torch.zeros(shape[0], shape[2])
        words = pad_words([{} for _ in range(shape[0])], layout)
        cpu = RankContext(torch.device("cpu"), 0, 1)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), autocast(config, cpu):
            model(x, t, **words)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        sizes = [tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in weights]
    return sum(sizes), max(sizes, default=0)


def _bytes(block: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in block.parameters())


def check_memory(
    config: Config, layout: Layout, shape: Sequence[int], stride: tuple[int, int, int], context: RankContext
) -> MemoryEstimate:
    """Return the estimate of a run. Raises DeviceError if the device has less free memory."""
    if context.device.type == "cuda":
        free = torch.cuda.mem_get_info(context.device)[0]
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    estimate = estimate_memory(config, layout, shape, stride, context.world)
    if estimate.total > free:
        smaller = "take a smaller size" if not config.base else "set lora_rank"
        if config.lora_rank:
            smaller = "take quantise=int8 or nf4"
        raise DeviceError(
            f"too little memory: the run needs about {estimate} on each {context.device.type}, {free / 1e9:.1f} GB are "
            f"free: lower tokens, set recompute=1, {smaller}, or use more processes"
        )
    return estimate
