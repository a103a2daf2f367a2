"""The same model with faster kernels: attention by blocks and rows, aligned matrices, fused element-wise work.

Attention in windows, without the flash-attention package, is one launch a window in transformers, tens of thousands for
a batch of clips; here all windows of a length are one batch. A width of 3,420, Qwen2.5-VL's, is no multiple of 8: its
matrix products are slow until it is padded. All of this leaves the function as it is; tests hold it against the plain
model.
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

# transformers hands block boundaries only to implementations that have "flash" in their name.
NAME = "clipmill_block_flash"
MOST_GEOMETRIES = 64


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
    """(1, heads, n, dim) states, block boundaries `cu_seq_lens_q` (blocks + 1,) -> (1, n, heads, dim)."""
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
    """Switches the vision tower of `model` to `block_attention` if it packs pictures."""
    for key in model.config.sub_configs:
        tower = next((m for m in model.modules() if getattr(m, "config", None) is getattr(model.config, key)), None)
        if tower is not None and any(_takes_blocks(m) for m in tower.modules()):
            AttentionInterface.register(NAME, block_attention)
            model.set_attn_implementation({key: NAME})
            return


def use_row_attention(model: PreTrainedModel) -> None:
    """Switches the decoder of `model` to `row_attention`; where attention is causal, it gets no mask."""
    AttentionInterface.register(row_attention.NAME, row_attention.row_attention)
    AttentionMaskInterface.register(row_attention.NAME, sdpa_mask)
    text = model.config.get_text_config(decoder=True)
    key = next((key for key in model.config.sub_configs if getattr(model.config, key) is text), "")
    model.set_attn_implementation({key: row_attention.NAME})


def remember_geometry(model: PreTrainedModel) -> None:
    """What a tower derives from the sizes of its pictures is computed on the CPU, and once for batches of the same
    sizes: on the GPU it is a Python loop over pictures that waits for all work before it. `read` says the sizes."""
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
    """A tensor on the other's device, which remembers what it was on the CPU; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    moved = value.to(beside.device, non_blocking=True).view_as(value)
    moved.on_cpu = value  # type: ignore[attr-defined]
    return moved


def _homes(model: PreTrainedModel) -> set[str]:
    """The modules of transformers that the parts of `model` are written in."""
    return {type(module).__module__ for module in model.modules() if "transformers" in type(module).__module__}


def linear_patches(model: PreTrainedModel) -> None:
    """Makes matrix products of 3D convolutions that see one patch at a time."""
    for conv in model.modules():
        if isinstance(conv, nn.Conv3d) and conv.kernel_size == conv.stride and conv.groups == 1:
            conv.forward = functools.partial(_patch_product, conv)  # type: ignore[method-assign]


def _patch_product(conv: nn.Conv3d, patches: Tensor) -> Tensor:
    """(n, channels, *kernel) -> (n, out, 1, 1, 1)."""
    if patches.shape[2:] != conv.kernel_size:
        return nn.Conv3d.forward(conv, patches)
    return F.linear(patches.flatten(1), conv.weight.flatten(1), conv.bias)[..., None, None, None]


def align_projections(model: PreTrainedModel, multiple: int = 64) -> int:
    """Pads gated MLPs to a width that tensor cores like, with zeros that change nothing: silu(0) * 0 = 0. Returns how
    many were padded."""
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
    """Compiles what is many small kernels in a row: gated MLPs, RMS norms and rotary positions. Attention and the
    layers stay as they are: nothing is compiled once a layer, and a CUDA graph can hold the result."""
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
