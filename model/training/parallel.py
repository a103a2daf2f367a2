"""Parallel training: apply recomputation, compilation and sharding to a model, in this order."""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from model.backbones.adapter import DiffusersBackbone
from model.backbones.lora import use_autocast
from model.backbones.quantise import quantise_frozen
from model.network.dit import DiT

if TYPE_CHECKING:
    from model.config import Config


@dataclass(frozen=True)
class RankContext:
    """The device of this process, and its rank among `world` processes."""

    device: torch.device
    rank: int
    world: int

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes shared files."""
        return self.rank == 0


def join(device: str) -> RankContext:
    """Join the processes that torchrun or Ray Train started, if any. device: auto, cpu or cuda."""
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if not dist.is_initialized() and (cuda or "WORLD_SIZE" in os.environ):
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:  # asynchronous checkpoints need a process group, even of one process
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(_leave)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if not cuda:
        return RankContext(torch.device("cpu"), rank, world)
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(local)
    return RankContext(local, rank, world)


def barrier() -> None:
    """Wait for the other processes, if any."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def distribute(
    model: DiT | DiffusersBackbone, config: Config, context: RankContext, keep_gathered: bool = False
) -> nn.Module:
    """Return the model for training on the context's device. Parameters keep their names, so that checkpoints do not
    depend on the parallelism. keep_gathered: whether FSDP keeps the gathered weights for the backward pass."""
    if config.quantise and isinstance(model, DiffusersBackbone):
        quantise_frozen(model.transformer, config.quantise, context.device)
    model.to(context.device)
    if isinstance(model, DiffusersBackbone):
        model.family.speed_up(model.transformer)
        if config.precision == "bf16":
            use_autocast(model.transformer)
    freeze_and_recompute(model, config)
    for block in model.blocks:
        if config.compile:
            block.compile(fullgraph=not (config.recompute or config.base), dynamic=False)
    if context.world == 1:
        return model
    if config.parallel == "ddp":
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]  # the same in all processes;
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)  # quantised cannot be sent
        return DistributedDataParallel(
            model, device_ids=[context.device.index] if context.device.index is not None else None
        )
    half = gathered_dtype(config)
    policy = MixedPrecisionPolicy(
        param_dtype=half, reduce_dtype=torch.float32 if half else None, cast_forward_inputs=False
    )
    if isinstance(model, DiT):
        fully_shard(model.time)  # without a policy, so that the embedding of timesteps stays in fp32
    for block in model.blocks:
        fully_shard(block, mp_policy=policy, reshard_after_forward=not keep_gathered)
    fully_shard(model, mp_policy=policy)
    return model


def gathered_dtype(config: Config) -> torch.dtype | None:
    """Return the precision of the weights that FSDP gathers; None: their own, because a LoRA mixes precisions."""
    return torch.bfloat16 if config.precision == "bf16" and not config.lora_rank else None


def freeze_and_recompute(model: DiT | DiffusersBackbone, config: Config) -> None:
    """Set which weights are trained (config.train_only) and which blocks are recomputed (config.recompute)."""
    if config.train_only == "temporal" and not config.base:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".temporal." in name)
    for i, block in enumerate(model.blocks):
        if config.recompute and i % config.recompute == 0:
            block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return `forward` with recomputation in the backward pass. A wrapper module would change the names of parameters,
    and checkpoints would depend on it."""

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        def run(*values: Any) -> Any:
            named = zip(kwargs, values[len(args) :], strict=True)
            return forward(*values[: len(args)], **dict(named))

        # Pass keyword arguments by position: only positional tensors are saved by autograd, and counted by memory.py.
        return checkpoint(run, *args, *kwargs.values(), use_reentrant=False)

    return recomputed


def choose_kernels(config: Config) -> None:
    """Set the attention kernel and the determinism of this process."""
    torch.backends.cuda.enable_flash_sdp(config.attention_kernel != "cudnn")
    torch.backends.cuda.enable_cudnn_sdp(config.attention_kernel != "flash")
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def autocast(config: Config, context: RankContext) -> torch.autocast:
    """Return the context manager of a forward pass: autocast to bf16 if config.precision is bf16."""
    return torch.autocast(context.device.type, torch.bfloat16, enabled=config.precision == "bf16")
