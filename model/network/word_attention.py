"""Triton kernels for attention to a short caption, which hold all of its keys and values at once.

The backward pass of usual attention kernels is parallel over blocks of keys. A caption is a single block, so that they
leave most of a GPU idle and read the queries one after the other. These kernels are parallel over queries, sum the
gradients of keys and values over them, and save only their inputs for the backward pass.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels and autograd contexts have no useful types)
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

MOST_WORDS = 128  # keys; more do not fit into a program's registers


@triton.jit
def _attend_words(
    q_at, k_at, v_at, out_at, tokens, words, k_step, v_step,
    heads: tl.constexpr, head: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    scale: tl.constexpr = 1.4426950408889634 / head**0.5  # log2(e): exponentials are powers of 2
    sample = tl.program_id(1).to(tl.int64) // heads
    number = tl.program_id(1) % heads
    n = tl.program_id(0) * queries + tl.arange(0, queries)
    j = tl.arange(0, keys)
    c = tl.arange(0, head)
    in_text = (j < words)[:, None]
    k = tl.load(k_at + (sample * words + j)[:, None] * k_step + number * head + c[None], in_text, 0.0)
    v = tl.load(v_at + (sample * words + j)[:, None] * v_step + number * head + c[None], in_text, 0.0)
    at = (sample * tokens + n)[:, None] * (heads * head) + number * head + c[None]
    mask = (n < tokens)[:, None]
    q = tl.load(q_at + at, mask, 0.0)
    logits = tl.where((j < words)[None], tl.dot(q, k.T) * scale, float("-inf"))
    weights = tl.exp2(logits - tl.max(logits, 1)[:, None])
    out = tl.dot(weights.to(v.dtype), v) / tl.sum(weights, 1)[:, None]
    tl.store(out_at + at, out, mask)


@triton.jit
def _attend_words_backward(
    q_at, k_at, v_at, d_out_at, dq_at, sums_at, tokens, words, k_step, v_step, rounds: tl.constexpr,
    heads: tl.constexpr, head: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    scale: tl.constexpr = 1.4426950408889634 / head**0.5  # for powers of 2
    sample = tl.program_id(1).to(tl.int64) // heads
    number = tl.program_id(1) % heads
    j = tl.arange(0, keys)
    c = tl.arange(0, head)
    in_text = (j < words)[:, None]
    k = tl.load(k_at + (sample * words + j)[:, None] * k_step + number * head + c[None], in_text, 0.0)
    v = tl.load(v_at + (sample * words + j)[:, None] * v_step + number * head + c[None], in_text, 0.0)
    dk = tl.zeros([keys, head], tl.float32)
    dv = tl.zeros([keys, head], tl.float32)
    for i in range(rounds):
        n = (tl.program_id(0) * rounds + i) * queries + tl.arange(0, queries)
        at = (sample * tokens + n)[:, None] * (heads * head) + number * head + c[None]
        mask = (n < tokens)[:, None]
        q = tl.load(q_at + at, mask, 0.0)
        d_out = tl.load(d_out_at + at, mask, 0.0)
        logits = tl.where((j < words)[None], tl.dot(q, k.T) * scale, float("-inf"))
        weights = tl.exp2(logits - tl.max(logits, 1)[:, None])
        weights = weights / tl.sum(weights, 1)[:, None]
        d_weights = tl.dot(d_out, v.T)
        d_logits = weights * (d_weights - tl.sum(weights * d_weights, 1)[:, None])
        d_logits = (d_logits * (1 / head**0.5)).to(k.dtype)
        tl.store(dq_at + at, tl.dot(d_logits, k), mask)
        dk += tl.dot(d_logits.T, q)
        dv += tl.dot(weights.to(d_out.dtype).T, d_out)
    out = ((tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * keys + j)[:, None] * head + c[None]
    half = tl.num_programs(0) * tl.num_programs(1) * keys * head
    tl.store(sums_at + out, dk)
    tl.store(sums_at + half + out, dv)


@triton_op("clipmill::attend_words", mutates_args=())
def attend_words(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with q (B, N, h, c) to at most MOST_WORDS keys and values (B, L, h, c), bf16, as (B, N, h, c)."""
    b, tokens, heads, head = q.shape
    words = k.shape[1]
    out = torch.empty_like(q)
    wrap_triton(_attend_words)[(triton.cdiv(tokens, 64), b * heads)](
        q, k, v, out, tokens, words, k.stride(1), v.stride(1),
        heads, head, 64, max(16, triton.next_power_of_2(words)), num_warps=4,
    )  # fmt: skip
    return out


@triton_op("clipmill::attend_words_backward", mutates_args=())
def attend_words_backward(q: Tensor, k: Tensor, v: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of q, and partial sums (2, parts, B, h, L padded, c) of those of k and v."""
    b, tokens, heads, head = q.shape
    words, rounds, queries = k.shape[1], 16, 32
    keys = max(16, triton.next_power_of_2(words))
    parts = triton.cdiv(tokens, queries * rounds)
    dq = torch.empty_like(q)
    sums = torch.empty(2, parts, b, heads, keys, head, device=q.device)
    wrap_triton(_attend_words_backward)[(parts, b * heads)](
        q, k, v, d_out, dq, sums, tokens, words, k.stride(1), v.stride(1),
        rounds, heads, head, queries, keys, num_warps=4 if keys <= 64 else 8, num_stages=2,
    )  # fmt: skip
    return dq, sums


def _save_attend_words(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _attend_words_gradients(ctx, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = ctx.saved_tensors
    dq, sums = attend_words_backward(q, k, v, d_out.contiguous())
    dk, dv = sums.sum(1)[:, :, :, : k.shape[1]].transpose(2, 3).to(k.dtype)
    return dq, dk, dv


attend_words.register_autograd(_attend_words_gradients, setup_context=_save_attend_words)
