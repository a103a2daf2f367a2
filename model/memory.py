"""What a run needs of its device's memory, so that too little is said before the first step."""

from __future__ import annotations

import dataclasses
import os

import psutil
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from model.config import Config, ConfigError
from model.dit import SIZES, DiT
from model.parallel import Place, autocast, choose_kept


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes of one process. state: weights, gradients, the optimiser's moments and the moving average, all fp32.
    activations: what the backward pass of the largest micro-batch keeps; a compiled model keeps less, and a pass has
    temporary tensors on top."""

    state: int
    activations: int

    def __str__(self) -> str:
        return f"{(self.state + self.activations) / 1e9:.1f} GB (activations {self.activations / 1e9:.1f})"


def need(config: Config, text_width: int, shape: tuple[int, ...], world: int) -> Need:
    """Of latents of `shape` (b, c, t, h, w), found by a forward pass on tensors that have no data."""
    kept: dict[int, Tensor] = {}  # by storage; held, so that no storage takes the address of another

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    here = Place(torch.device("cpu"), 0, 1)
    with FakeTensorMode(allow_fallback_kernels=False):
        model = DiT(SIZES[config.size], shape[1], text_width, config.patch, config.attention)
        choose_kept(model, config)
        x, t = torch.zeros(shape), torch.zeros(shape[0], shape[2])
        words = torch.zeros(shape[0], config.text_tokens, text_width)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(config, here):
            model(x, t, words)
        parameters = {p.untyped_storage()._cdata: p for p in model.parameters()}
        activations = sum(s.untyped_storage().nbytes() for key, s in kept.items() if key not in parameters)
    weights = sum(p.numel() for p in parameters.values())
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    shards = world if config.parallel == "fsdp" else 1
    return Need(4 * (2 * weights + 3 * trained) // shards, activations)


def check_memory(config: Config, text_width: int, shape: tuple[int, ...], place: Place) -> Need:
    """The need of a run; raises ConfigError when the device's free memory is less. Of a compiled model's activations
    half are asked for."""
    if place.device.type == "cuda":
        free = torch.cuda.mem_get_info(place.device)[0]
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    found = need(config, text_width, shape, place.world)
    if found.state + found.activations // (2 if config.compile else 1) > free:
        raise ConfigError(
            f"the run needs about {found} on each {place.device.type}, {free / 1e9:.1f} GB are free: lower tokens, set "
            f"recompute=1, take a smaller size, or more processes"
        )
    return found
