"""Estimate of the memory that a run needs on its device, checked before the first step.

    needed = weights + training + activations + workspace

- weights: all weights in their own precision; quantised layers take 1 byte (int8) or 0.52 bytes (nf4) per weight.
- training: gradients, two moments and the moving average of the trained weights in fp32, 16 bytes per weight. FSDP
  divides weights and training by the number of processes, and adds the gathered weights of two blocks, or of all where
  there is room for them: then each is gathered once a step and not twice.
- activations: the tensors that a forward pass of the largest micro-batch saves for the backward pass, counted with fake
  tensors. Recomputed blocks save only their inputs, except one block at a time, of which the largest counts. A
  compiled block saves about half.
- workspace: twice the largest saved tensor, for intermediate gradients, plus WORKSPACE for the libraries.

Not included: fragmentation; and the text encoder and VAE of a run that encodes while it trains, which are on the device
before the check. tests/benchmarks/training/preset_memory.py measures the presets on a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from model.backbones.adapter import DiffusersBackbone
from model.backbones.base import Layout, pad_words, replace_tensors
from model.backbones.build import make_backbone
from model.backbones.quantise import bytes_saved
from model.errors import DeviceError
from model.network.dit import DiT
from model.training.parallel import RankContext, autocast, freeze_and_recompute, gathered_dtype

if TYPE_CHECKING:
    from model.config import Config

WORKSPACE = 5 * 10**8  # bytes for cuBLAS, cuDNN and the rounding of the caching allocator
ROOM = 0.8  # share of the free memory that may be needed with the weights of all blocks gathered
COMPILED = 0.5  # share of a block's activations that are saved when it is compiled


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Estimated bytes of one process; the module docstring describes the fields."""

    weights: int
    training: int
    activations: int
    workspace: int
    gathered: int = 0  # additional bytes of FSDP that keeps the gathered weights of all blocks for the backward pass
    keeps_gathered: bool = False  # whether it does; then `weights` has them

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
    compiled = COMPILED if config.compile else 1.0
    everything, by_block, largest = _saved_bytes(model, config, layout, shape)
    activations = everything * compiled
    if config.recompute:
        freeze_and_recompute(model, config)
        inputs, by_recomputed_block, _ = _saved_bytes(model, config, layout, shape)
        differences = [a - b for a, b in zip(by_block, by_recomputed_block, strict=True)]
        activations = inputs + max(differences) * compiled
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    averaged = trained if config.base else sum(p.numel() for p in parameters)
    weights = sum(p.numel() * p.element_size() for p in parameters)
    if config.quantise and isinstance(model, DiffusersBackbone):
        weights -= bytes_saved(model.transformer, config.quantise)
    shards, two_blocks, other_blocks = 1, 0, 0
    if world > 1 and config.parallel == "fsdp":
        half = gathered_dtype(config) is not None
        sizes = [
            sum(p.numel() * (2 if half else p.element_size()) for p in block.parameters()) for block in model.blocks
        ]
        shards, two_blocks = world, 2 * max(sizes)
        other_blocks = max(0, sum(sizes) - two_blocks)
    training, workspace = 4 * (3 * trained + averaged) // shards, 2 * largest + WORKSPACE
    return MemoryEstimate(weights // shards + two_blocks, training, int(activations), workspace, other_blocks)


def _saved_bytes(
    model: DiT | DiffusersBackbone, config: Config, layout: Layout, shape: Sequence[int]
) -> tuple[int, list[int], int]:
    """Return the bytes that a forward pass saves for the backward pass, in all and inside each block, and the bytes of
    the largest saved tensor."""
    inside = -1  # number of the block whose forward pass runs; -1: none
    saved: dict[int, tuple[Tensor, int]] = {}  # with the block, by address; references prevent the reuse of an address

    def enter(block: int) -> Callable[..., None]:
        def set_block(*_: object) -> None:
            nonlocal inside
            inside = block

        return set_block

    def save(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, (tensor, inside))
        return tensor

    with FakeTensorMode(allow_fallback_kernels=False):
        replace_tensors(model)
        input_shape = model.input_shape(shape) if isinstance(model, DiffusersBackbone) else shape
        x, t = torch.zeros(*input_shape), torch.zeros(shape[0], shape[2])
        words = pad_words([{} for _ in range(shape[0])], layout)
        cpu = RankContext(torch.device("cpu"), 0, 1)
        hooks = [block.register_forward_pre_hook(enter(i)) for i, block in enumerate(model.blocks)]
        hooks += [block.register_forward_hook(enter(-1)) for block in model.blocks]
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), autocast(config, cpu):
            model(x, t, **words)
        for hook in hooks:
            hook.remove()
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        sizes = [(tensor.untyped_storage().nbytes(), i) for key, (tensor, i) in saved.items() if key not in weights]
    by_block = [sum(size for size, i in sizes if i == block) for block in range(len(model.blocks))]
    return sum(size for size, _ in sizes), by_block, max((size for size, _ in sizes), default=0)


def check_memory(
    config: Config, layout: Layout, shape: Sequence[int], stride: tuple[int, int, int], context: RankContext
) -> MemoryEstimate:
    """Return the estimate of a run, the same in all processes. Raises DeviceError if a device has less free memory."""
    if context.device.type == "cuda":
        free = torch.cuda.mem_get_info(context.device)[0]
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if context.world > 1:
        least = torch.tensor(free)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        free = int(least)
    estimate = estimate_memory(config, layout, shape, stride, context.world)
    if estimate.total > free:
        raise DeviceError(
            f"too little memory: the run needs about {estimate} on each {context.device.type}, {free / 1e9:.1f} GB are "
            f"free: {ways_to_save(config)}"
        )
    larger = dataclasses.replace(estimate, weights=estimate.weights + estimate.gathered, keeps_gathered=True)
    return larger if estimate.gathered and larger.total <= ROOM * free else estimate


def ways_to_save(config: Config) -> str:
    """Return what to change in a run that needs too much memory."""
    smaller = "set lora_rank" if config.base else "take a smaller size"
    if config.lora_rank:
        smaller = "take quantise=int8 or nf4"
    return f"lower tokens, set recompute=1, {smaller}, or use more processes"


@contextlib.contextmanager
def device_faults(config: Config) -> Iterator[None]:
    """Raise DeviceError where a step runs out of GPU memory or a block cannot be compiled."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        raise DeviceError(f"{reason}: {ways_to_save(config)}; the last checkpoint is kept") from error
    except RuntimeError as error:
        if not config.compile or not isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise
        reason = " ".join(str(error).partition("\n\n")[0].split())
        raise DeviceError(f"a block cannot be compiled, compile=false trains without: {reason}") from error
