"""How a model is spread over processes, from outside, in a fixed order: recomputation, compilation, sharding."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from model.config import Config
from model.dit import DiT


@dataclass(frozen=True)
class Place:
    """Where this process stands: its device and its rank among `world` processes."""

    device: torch.device
    rank: int
    world: int

    @property
    def main(self) -> bool:
        return self.rank == 0


def join(device: str) -> Place:
    """Joins the processes that torchrun or Ray Train started, or none. device: auto, cpu or cuda."""
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if not dist.is_initialized() and (cuda or "WORLD_SIZE" in os.environ):
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:  # asynchronous checkpoints want a group, if only of one
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(_leave)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if not cuda:
        return Place(torch.device("cpu"), rank, world)
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(local)
    return Place(local, rank, world)


def barrier() -> None:
    """Waits for the other processes, where there are any."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def spread(model: DiT, config: Config, place: Place) -> nn.Module:
    """The model as it is trained, on the place's device: what to call, with the same parameters' names underneath."""
    model.to(place.device)
    choose_kept(model, config)
    for block in model.blocks:
        if config.compile:
            block.compile(fullgraph=not config.recompute, dynamic=False)
    if place.world == 1:
        return model
    if config.parallel == "ddp":
        return DistributedDataParallel(
            model, device_ids=[place.device.index] if place.device.index is not None else None
        )
    half = torch.bfloat16 if config.precision == "bf16" else None
    policy = MixedPrecisionPolicy(
        param_dtype=half, reduce_dtype=torch.float32 if half else None, cast_forward_inputs=False
    )
    fully_shard(model.time)  # timesteps stay fp32
    for block in model.blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    return model


def choose_kept(model: DiT, config: Config) -> None:
    """Which weights are trained, and which blocks keep no activations for the backward pass."""
    if config.train_only == "temporal":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".temporal." in name)
    for i, block in enumerate(model.blocks):
        if config.recompute and i % config.recompute == 0:
            model.blocks[i] = checkpoint_wrapper(block)


def choose_kernels(config: Config) -> None:
    """Attention kernel and determinism, process-wide."""
    torch.backends.cuda.enable_flash_sdp(config.attention_kernel != "cudnn")
    torch.backends.cuda.enable_cudnn_sdp(config.attention_kernel != "flash")
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def autocast(config: Config, place: Place) -> torch.autocast:
    """bf16 inside the blocks where the config asks for it."""
    return torch.autocast(place.device.type, torch.bfloat16, enabled=config.precision == "bf16")
