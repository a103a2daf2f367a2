"""A transformer of diffusers as a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from model.backbones.base import Layout, pad_words, replace_tensors
from model.backbones.families.base import Conditions, Family

ATTENTION = ("scaled_dot_product", "_flash_attention", "_efficient_attention", "bmm")  # parts of the names of operators


class DiffusersBackbone(nn.Module):
    """See `base.Backbone`. The parameters keep diffusers' names after the prefix `transformer.`."""

    def __init__(self, transformer: Any, family: Family, conditions: Conditions) -> None:
        super().__init__()
        self.transformer, self.family, self.conditions = transformer, family, conditions
        self._flops: dict[tuple[int, ...], tuple[int, int]] = {}

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [block for name in self.family.blocks for block in _blocks(getattr(self.transformer, name))]

    def forward(self, x: Tensor, t: Tensor, **words: Tensor) -> Tensor:
        dtype = self.transformer.dtype
        words = {name: tensor.to(dtype) for name, tensor in words.items()}
        return self.family.predict(self.transformer, x.to(dtype), t, words, self.conditions).float()

    def input_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of x for latents `shape` (b, c, t, h, w): with the channels of a picture, if any."""
        settings = self.transformer.config
        picture = settings.in_channels - settings.out_channels if self.family.picture else 0
        return (shape[0], shape[1] + picture, *shape[2:])

    def tokens(self, shape: Sequence[int]) -> int:
        patch, frame_patch = (of(self.transformer.config) for of in (self.family.patch, self.family.frame_patch))
        return shape[2] // frame_patch * (shape[3] // patch) * (shape[4] // patch)

    def step_flops(self, shape: Sequence[int], words: int) -> int:
        """Count by a forward pass without data. Frozen weights need no gradient: their products cost two passes, others
        three; attention always costs three."""
        key = (*shape[1:], words)
        if key not in self._flops:
            self._flops[key] = count_flops(self, shape, words)
        linear, attention = self._flops[key]
        frozen = any(not p.requires_grad for p in self.transformer.parameters())
        return (2 if frozen else 3) * linear + 3 * attention


def _blocks(part: nn.Module) -> Sequence[nn.Module]:
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def count_flops(backbone: DiffusersBackbone, shape: Sequence[int], words: int) -> tuple[int, int]:
    """Return the operations of one sample's forward pass in linear layers, and in attention."""
    layout = word_layout(backbone.family, backbone.transformer.config, words)
    with torch.device("meta"):
        inflation, own = backbone.family.inflation, backbone.transformer
        transformer = inflation.empty(own) if inflation else type(own).from_config(own.config)
        fake = DiffusersBackbone(transformer, backbone.family, backbone.conditions)
    with FakeTensorMode(), torch.no_grad():
        replace_tensors(fake)
        with FlopCounterMode(display=False) as counter:
            fake(torch.zeros(1, *backbone.input_shape(shape)[1:]), torch.zeros(1, shape[2]), **pad_words([{}], layout))
    counts = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for operator, count in counts.items() if any(name in operator for name in ATTENTION))
    return sum(counts.values()) - attention, attention


def word_layout(family: Family, config: Any, tokens: int) -> Layout:
    """Return the shapes of an encoded caption, by the transformer's configuration."""
    shapes = family.layout(config)
    return {name: tuple(tokens if size is None else size for size in shape) for name, shape in shapes.items()}
