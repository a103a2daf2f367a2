"""Attention of the decoder's rows: prompts with shared first tokens, and steps that read only the used part of a row.

With a mask, transformers repeats keys and values for every query head, seven times in Qwen2.5-VL-7B, and reads rows to
their full length. A step here reads each key once, up to the end of its row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "clipmill_rows"


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """(b, heads, n, dim) queries of the last n tokens over (b, kv heads, m, dim) keys -> (b, n, heads, dim): causal or
    as the mask says or, for a step of rows, over the slots up to `key.lengths` (b,) of each row."""
    lengths = getattr(key, "lengths", None)
    if lengths is None and attention_mask is not None:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None
    if lengths is None:
        before = key.shape[2] - query.shape[2]
        square = F.pad(query, (0, 0, before, 0))  # unused queries, because the fast kernels need square masks
        out = F.scaled_dot_product_attention(square, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out[:, :, before:].transpose(1, 2), None
    scale = scaling or query.shape[-1] ** -0.5
    if not query.is_cuda:
        return attend_rows_plainly(query, key, value, lengths, scale).transpose(1, 2), None
    from captioners.vlm.row_kernel import launch  # imports triton, which comes only with CUDA builds of torch

    return launch(query.contiguous(), key, value, lengths, scale).transpose(1, 2), None


def attend_rows_plainly(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Attend as row_kernel does, by a mask and a product over all slots: (b, heads, 1, dim) queries, each row over its
    slots 0 to `lengths` inclusive -> the same shape."""
    grouped = query.unflatten(1, (key.shape[1], -1)).squeeze(3)  # (b, kv heads, group, dim)
    mask = (torch.arange(key.shape[2], device=key.device) <= lengths[:, None])[:, None, None]
    return F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale).flatten(1, 2)[:, :, None]
