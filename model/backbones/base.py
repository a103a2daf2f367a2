"""The interface of backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

Words = dict[str, Tensor]  # an encoded caption, or a batch of them: tensors by the name of the backbone's argument
Layout = Mapping[str, Sequence[int]]  # the shape of each tensor of one caption, padded


class Backbone(Protocol):
    """A module called as `backbone(x, t, **words)`.

    x (b, c, T, h, w) noisy latents; t (b, T) in [0, 1], 0 is clean; words padded, (b, ...) each. Returns the prediction
    of the objective's target, (b, c, T, h, w) fp32.
    """

    blocks: Sequence[nn.Module]  # to compile, recompute and shard one by one

    def __call__(self, x: Tensor, t: Tensor, **words: Tensor) -> Tensor: ...

    def tokens(self, shape: Sequence[int]) -> int:
        """Return the tokens of one sample of latents `shape` (b, c, t, h, w)."""
        ...

    def step_flops(self, shape: Sequence[int], words: int) -> int:
        """Return the floating-point operations (2 a multiply-add) of training on one sample of latents `shape` with
        `words` caption tokens; nothing recomputed, no latents and no text encoder counted."""
        ...


def pad_words(captions: Sequence[Words], layout: Layout) -> Words:
    """Return a batch of captions in fp32, (n, *layout[name]) each, zero past each caption's end."""
    batch = {name: torch.zeros(len(captions), *shape) for name, shape in layout.items()}
    for i, caption in enumerate(captions):
        for name, tensor in caption.items():
            batch[name][i][tuple(slice(size) for size in tensor.shape)] = tensor
    return batch


def drop_words(words: Words, empty: Words, keep: Tensor) -> Words:
    """Return `words` with the captions where `keep` (b,) bool is false replaced by `empty`, a batch of one."""
    return {
        name: torch.where(keep.view(-1, *[1] * (tensor.ndim - 1)), tensor, empty[name])
        for name, tensor in words.items()
    }


def replace_tensors(model: nn.Module) -> None:
    """Replace the tensors of a model that was made on the meta device by uninitialised ones on the CPU; in a
    FakeTensorMode they take no memory, and a forward pass computes shapes alone."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
            module.register_parameter(name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
