"""Quantisation of the frozen weights under a LoRA by torchao: int8 with one scale per row, or NF4 (QLoRA, 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from model.errors import BaseError

BYTES = {"int8": 1.0 + 1 / 512, "nf4": 0.5 + 1 / 64 + 1 / 4096}  # a weight, with its scales
MULTIPLE = {"int8": 1, "nf4": 64 * 256}  # weights that a layer must divide by: NF4 has blocks of blocks


def frozen_layers(transformer: nn.Module, how: str) -> Iterator[nn.Linear]:
    """Yield the linear layers to quantise: frozen layers of the blocks that are not part of an adapter."""
    for name, module in transformer.named_modules():
        frozen = type(module) is nn.Linear and "blocks." in name and not module.weight.requires_grad
        if frozen and module.weight.numel() % MULTIPLE[how] == 0:
            yield module


def quantise_frozen(transformer: Any, how: str, device: torch.device) -> None:
    """Quantise the weights of `frozen_layers` in place, layer by layer on `device`, which therefore never holds all of
    them in 16 bits. Raises BaseError if torchao is not installed."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, NF4Tensor, quantize_
    except ImportError as error:
        raise BaseError(f"quantise={how} needs torchao: pip install 'clipmill[quantise]'") from error
    for layer in frozen_layers(transformer, how):
        layer.to(device)
        if how == "int8":
            quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False))
        else:
            layer.weight = nn.Parameter(NF4Tensor.from_tensor(layer.weight.detach(), 64, 256), requires_grad=False)


def bytes_saved(transformer: nn.Module, how: str) -> int:
    """Return the number of bytes by which quantisation reduces the weights."""
    return sum(int(m.weight.numel() * (m.weight.element_size() - BYTES[how])) for m in frozen_layers(transformer, how))
