"""The GPU kernel of a decoding step's attention, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KEYS_PER_STEP = 64  # keys that a program reads at a time
LEAST_GROUP = 16  # smallest number of rows of a tensor-core product


def launch(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """(rows, heads, 1, dim) queries, contiguous, over the slots 0 to `lengths` inclusive of keys and values, (rows, kv
    heads, length, dim) with the last two dimensions contiguous -> (rows, heads, 1, dim)."""
    rows, heads, _, dim = query.shape
    group = heads // key.shape[1]
    out = torch.empty_like(query)
    _attend[(rows, key.shape[1])](
        query,
        key,
        value,
        lengths,
        out,
        scale,
        key.stride(0),
        key.stride(1),
        GROUP=group,
        DIM=dim,
        GROUP_SLOTS=max(LEAST_GROUP, triton.next_power_of_2(group)),
        DIM_SLOTS=triton.next_power_of_2(dim),
        KEYS_PER_STEP=KEYS_PER_STEP,
        num_warps=4,
        num_stages=3,
    )
    return out


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    queries,
    keys,
    values,
    lengths,
    out,
    scale,
    row_stride,
    head_stride,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    GROUP_SLOTS: tl.constexpr,
    DIM_SLOTS: tl.constexpr,
    KEYS_PER_STEP: tl.constexpr,
):
    """A program per row and key head holds the queries of that head's group and walks over the row's keys with a
    running maximum and sum (Milakov and Gimelshein 2018)."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    last = tl.load(lengths + row)
    member, dim = tl.arange(0, GROUP_SLOTS), tl.arange(0, DIM_SLOTS)
    at = ((row * tl.num_programs(1) + head) * GROUP + member[:, None]) * DIM + dim[None, :]
    query_mask = (member[:, None] < GROUP) & (dim[None, :] < DIM)
    query = tl.load(queries + at, mask=query_mask, other=0.0)
    base = row * row_stride + head * head_stride
    highest = tl.full([GROUP_SLOTS], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_SLOTS], tl.float32)
    mixed = tl.zeros([GROUP_SLOTS, DIM_SLOTS], tl.float32)
    for start in range(0, last + 1, KEYS_PER_STEP):
        slot = start + tl.arange(0, KEYS_PER_STEP)
        slot_mask = (slot[:, None] <= last) & (dim[None, :] < DIM)
        where = base + slot[:, None] * DIM + dim[None, :]
        key = tl.load(keys + where, mask=slot_mask, other=0.0)
        score = tl.dot(query, tl.trans(key)) * scale
        score = tl.where(slot[None, :] <= last, score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp(score - higher[:, None])
        before = tl.exp(highest - higher)
        value = tl.load(values + where, mask=slot_mask, other=0.0)
        mixed = mixed * before[:, None] + tl.dot(weight.to(value.dtype), value)
        total = total * before + tl.sum(weight, 1)
        highest = higher
    tl.store(out + at, (mixed / total[:, None]).to(query.dtype), mask=query_mask)
