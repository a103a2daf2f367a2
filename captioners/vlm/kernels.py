"""Faster kernels for a model: attention by blocks and rows, aligned matrices, fused element-wise operations.

Without the flash-attention package, transformers launches window attention once a window, tens of thousands of times
for a batch of clips; here all windows of a length are one batch. Qwen2.5-VL's width of 3,420 is not a multiple of 8, so
its matrix products are slow until it is padded. The model's function does not change; tests compare it with the
unmodified model.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from captioners.vlm import row_attention

# transformers passes block boundaries only to implementations with "flash" in their name.
NAME = "clipmill_block_flash"
MOST_GEOMETRIES = 64  # cached results per function


def block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within blocks: (1, heads, n, dim) states, block boundaries `cu_seq_lens_q` (blocks + 1,) -> (1, n, heads,
    dim)."""
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    lengths = cu_seq_lens_q.diff()
    distinct = getattr(cu_seq_lens_q, "on_cpu", cu_seq_lens_q).diff().unique().tolist()
    states = [x[0].transpose(0, 1) for x in (query, key, value)]  # (n, heads, dim)
    if len(distinct) == 1:
        return _attend(states, distinct[0], scaling).reshape(1, *states[0].shape), None
    out = torch.empty_like(states[0])
    for length in distinct:
        starts = cu_seq_lens_q[:-1][lengths == length]
        at = (starts[:, None] + torch.arange(length, device=starts.device)).flatten()
        out[at] = _attend([x[at] for x in states], length, scaling).reshape(-1, *out.shape[1:])
    return out[None], None


def use_block_attention(model: PreTrainedModel) -> None:
    """Switch the vision tower of `model` to `block_attention` if it packs pictures."""
    for key in model.config.sub_configs:
        tower = next((m for m in model.modules() if getattr(m, "config", None) is getattr(model.config, key)), None)
        if tower is not None and any(_takes_blocks(m) for m in tower.modules()):
            AttentionInterface.register(NAME, block_attention)
            model.set_attn_implementation({key: NAME})
            return


def use_row_attention(model: PreTrainedModel) -> None:
    """Switch the decoder of `model` to `row_attention`, which gets no mask if attention is causal."""
    AttentionInterface.register(row_attention.NAME, row_attention.row_attention)
    AttentionMaskInterface.register(row_attention.NAME, sdpa_mask)
    text = model.config.get_text_config(decoder=True)
    key = next((key for key in model.config.sub_configs if getattr(model.config, key) is text), "")
    model.set_attn_implementation({key: row_attention.NAME})


def remember_geometry(model: PreTrainedModel) -> None:
    """Compute the values that a tower derives from picture sizes on the CPU, and cache them for batches of the same
    sizes. On the GPU they need a Python loop over pictures that waits for all queued work. `read` passes the sizes."""
    for home in _homes(model):
        functions = vars(sys.modules[home])
        for name in [n for n in functions if n.startswith("get_vision_") or n == "get_max_seqlen"]:
            if not hasattr(functions[name], "__wrapped__"):
                functions[name] = _remembered(functions[name])


def _remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    cache: dict[Any, Any] = {}

    @functools.wraps(function)
    def recall(of: Tensor, *args: Any, kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
        on_cpu = getattr(of, "on_cpu", None)
        if on_cpu is None:
            return function(of, *args, kwargs=kwargs, **options)
        plain = tuple(x if isinstance(x, (int, str)) else id(x) for x in (*args, *options.values()))
        key = (on_cpu.numpy().tobytes(), of.device, plain)
        if key not in cache:
            if len(cache) >= MOST_GEOMETRIES:
                cache.clear()
            value = function(on_cpu, *args, **options)
            cache[key] = tuple(_moved(x, of) for x in value) if isinstance(value, tuple) else _moved(value, of)
        return cache[key]

    return recall


def _moved(value: Any, beside: Tensor) -> Any:
    """Move a tensor to the device of `beside`, with its CPU copy as attribute; return anything else unchanged."""
    if not isinstance(value, Tensor):
        return value
    moved = value.to(beside.device, non_blocking=True).view_as(value)
    moved.on_cpu = value  # type: ignore[attr-defined]
    return moved


def _homes(model: PreTrainedModel) -> set[str]:
    """Return the names of the transformers modules that define the parts of `model`."""
    return {type(module).__module__ for module in model.modules() if "transformers" in type(module).__module__}


def linear_patches(model: PreTrainedModel) -> None:
    """Replace 3D convolutions of non-overlapping patches by matrix products."""
    for conv in model.modules():
        if isinstance(conv, nn.Conv3d) and conv.kernel_size == conv.stride and conv.groups == 1:
            conv.forward = functools.partial(_patch_product, conv)  # type: ignore[method-assign]


def _patch_product(conv: nn.Conv3d, patches: Tensor) -> Tensor:
    """(n, channels, *kernel) -> (n, out, 1, 1, 1)."""
    if patches.shape[2:] != conv.kernel_size:
        return nn.Conv3d.forward(conv, patches)
    return F.linear(patches.flatten(1), conv.weight.flatten(1), conv.bias)[..., None, None, None]


def align_projections(model: PreTrainedModel, multiple: int = 64) -> int:
    """Pad gated MLPs with zeros to a width that suits tensor cores; results do not change, as silu(0) * 0 = 0. Return
    the number of padded MLPs."""
    padded = 0
    for module in model.modules():
        parts = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
        gate, up, down = (part if isinstance(part, nn.Linear) else None for part in parts)
        if gate is None or up is None or down is None or gate.out_features % multiple == 0:
            continue
        extra = -gate.out_features % multiple
        for part in (gate, up):
            part.weight = nn.Parameter(F.pad(part.weight.data, (0, 0, 0, extra)), requires_grad=False)
            if part.bias is not None:
                part.bias = nn.Parameter(F.pad(part.bias.data, (0, extra)), requires_grad=False)
            part.out_features += extra
        down.weight = nn.Parameter(F.pad(down.weight.data, (0, extra)), requires_grad=False)
        down.in_features += extra
        padded += 1
    return padded


def fuse_elementwise(model: PreTrainedModel) -> None:
    """Compile sequences of small kernels: gated MLPs, RMS norms and rotary positions. Attention and whole layers are
    not compiled, so that nothing is compiled once per layer and a CUDA graph can hold the result."""
    for module in model.modules():
        if hasattr(module, "gate_proj") or type(module).__name__.endswith("RMSNorm"):
            module.compile(dynamic=True)
    for home in _homes(model):
        functions = vars(sys.modules[home])
        for name in [name for name in functions if name.startswith("apply_rotary_pos_emb")]:
            if not hasattr(functions[name], "_torchdynamo_orig_callable"):
                functions[name] = torch.compile(functions[name], dynamic=True)


def _takes_blocks(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__ and "cu_seqlens" in inspect.signature(module.forward).parameters


def _attend(states: list[Tensor], length: int, scaling: float | None) -> Tensor:
    """(blocks * length, heads, dim) each -> (blocks, length, heads, dim)."""
    query, key, value = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in states)
    return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2)
