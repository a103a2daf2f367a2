"""The same model with faster kernels: attention by blocks, aligned matrices, fused element-wise work.

Measured on Qwen2.5-VL-7B's geometry on an H200: of 61 ms of kernels a clip to read a prompt of 1,261 tokens, 14 were
matrix products whose width of 3,420 is no multiple of 8, and more than 13 element-wise kernels; 39 ms are left.
Attention in windows, without the flash-attention
package, is one launch a window in transformers, tens of thousands for a batch of clips; here all windows of a length
are one batch. All three leave the function as it is; tests hold them against the plain model.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# transformers hands block boundaries only to implementations that have "flash" in their name.
NAME = "clipmill_block_flash"


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
    distinct = getattr(cu_seq_lens_q, "distinct_lengths", None)
    if distinct is None:  # once for all layers: it waits for the GPU
        distinct = cu_seq_lens_q.distinct_lengths = lengths.unique().tolist()  # type: ignore[attr-defined]
    states = [x[0].transpose(0, 1) for x in (query, key, value)]  # (n, heads, dim)
    if len(distinct) == 1:
        return _attend(states, distinct[0], scaling).reshape(1, *states[0].shape), None
    out = torch.empty_like(states[0])
    for length in distinct:
        starts = cu_seq_lens_q[:-1][lengths == length]
        at = (starts[:, None] + torch.arange(length, device=starts.device)).flatten()
        out[at] = _attend([x[at] for x in states], length, scaling).reshape(-1, *out.shape[1:])
    return out[None], None


def use_block_attention(model: PreTrainedModel) -> bool:
    """Switches the vision tower of `model` to `block_attention` if it packs pictures; says whether it did."""
    for key in model.config.sub_configs:
        tower = next((m for m in model.modules() if getattr(m, "config", None) is getattr(model.config, key)), None)
        if tower is not None and any(_takes_blocks(m) for m in tower.modules()):
            AttentionInterface.register(NAME, block_attention)
            model.set_attn_implementation({key: NAME})
            return True
    return False


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
    for home in {type(module).__module__ for module in model.modules() if "transformers" in type(module).__module__}:
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
