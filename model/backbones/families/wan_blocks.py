"""Wan's blocks with fewer passes over memory: the same numbers as diffusers', on our transformer's kernels.

What a block does between its matrix products is what a block of ours does (network/dit.py): on a GPU in bf16 the gated
sum, the norm and its modulation are one kernel. The attention processor is free of what stops `torch.compile`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.dit import add_norm

EPS = 1e-6  # of the norms in `add_norm`
CLIP_TOKENS = 257  # of a picture by CLIP's ViT-H/14, in front of the caption's tokens


def speed_up(transformer: Any) -> None:
    """Replace the forward pass of the blocks, in place, where `block_forward` computes the same. Names of parameters
    stay."""
    for block in transformer.blocks:
        if isinstance(block.norm2, torch.nn.LayerNorm) and block.norm1.eps == block.norm2.eps == block.norm3.eps == EPS:
            block.attn1.set_processor(Attention())
            block.attn2.set_processor(Attention())
            block.forward = functools.partial(block_forward, block, block.forward)


def block_forward(
    block: Any, original: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Any
) -> Tensor:
    """Return WanTransformerBlock.forward for one time a sample, temb (b, 6, d); with a time a token, call it."""
    if temb.ndim == 4:
        return original(hidden_states, encoder_hidden_states, temb, rotary_emb)
    modulation = (block.scale_shift_table + temb.float()).transpose(0, 1).contiguous()
    shift1, scale1, gate1, shift2, scale2, gate2 = (part.unsqueeze(1) for part in modulation)  # (b, 1, d)
    weight, bias = (p.float().expand(len(temb), 1, -1).contiguous() for p in (block.norm2.weight, block.norm2.bias))
    x = hidden_states.unsqueeze(1)  # (b, 1, n, d), as one frame
    x, y = add_norm(x, shift=shift1, scale=scale1)
    x, y = add_norm(x, block.attn1(y.squeeze(1), None, None, rotary_emb).unsqueeze(1), gate1, bias, weight - 1)
    x, y = add_norm(x, block.attn2(y.squeeze(1), encoder_hidden_states, None, None).unsqueeze(1), None, shift2, scale2)
    x = x + (gate2.unsqueeze(2) * block.ffn(y.squeeze(1)).unsqueeze(1)).to(x.dtype)
    return x.squeeze(1)


class Attention:
    """WanAttnProcessor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        picture = None
        if attn.add_k_proj is not None:
            picture, context = context[:, :CLIP_TOKENS], context[:, CLIP_TOKENS:]
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        k = attn.norm_k(attn.to_k(context)).unflatten(2, (attn.heads, -1))
        v = attn.to_v(context).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            q, k = rotate(q, *rotary_emb), rotate(k, *rotary_emb)
        q, k, v = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        if picture is not None:
            k, v = attn.norm_added_k(attn.add_k_proj(picture)), attn.add_v_proj(picture)
            k, v = (x.to(q.dtype).unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (k, v))
            out = out + F.scaled_dot_product_attention(q, k, v)
        out = out.transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of neighbouring channels of x (b, n, h, c); cos, sin (1, n, 1, c), each value twice."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)
