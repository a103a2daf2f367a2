"""Triton kernels for the memory-bound parts of a block: each tensor is read once and written once.

Between its matrix products a block normalises, modulates, rotates and adds. Compiled from plain code these passes write
fp32 intermediates and read their inputs two or three times. Here each is one kernel forward and one backward, which
also sums the gradients of what many tokens share (gates, shifts, norm weights). dit.py has the same in plain torch: it
runs where there is no GPU with bf16, and tests compare with it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels and autograd contexts have no useful types)
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

ROWS = 64  # rows that one program of a backward kernel sums over
STAGES = tl.constexpr(2)  # pipeline stages: rows that are loaded ahead


@triton.jit
def _sums(a, b):
    """Return the sums of both over their one axis, with a single reduction among the warps."""
    return tl.split(tl.sum(tl.join(a, b), 0))


@triton.jit
def _add_norm(
    x_at, update_at, gate_at, shift_at, scale_at, stream_at, normed_at, moments_at, tokens, gate_step, mod_step,
    width: tl.constexpr, block: tl.constexpr, has_update: tl.constexpr, has_gate: tl.constexpr, has_mod: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    frame = row // tokens
    at = tl.arange(0, block)
    mask = at < width
    x = tl.load(x_at + row * width + at, mask, 0.0).to(tl.float32)
    if has_update:
        update = tl.load(update_at + row * width + at, mask, 0.0).to(tl.float32)
        if has_gate:
            update *= tl.load(gate_at + frame * gate_step + at, mask, 0.0)
        x = (x + update).to(stream_at.dtype.element_ty).to(tl.float32)
    tl.store(stream_at + row * width + at, x, mask)
    mean = tl.sum(x, 0) / width
    centred = tl.where(mask, x - mean, 0.0)
    scatter = tl.rsqrt(tl.sum(centred * centred, 0) / width + 1e-6)
    tl.store(moments_at + 2 * row, mean)
    tl.store(moments_at + 2 * row + 1, scatter)
    y = centred * scatter
    if has_mod:
        y = y * (1 + tl.load(scale_at + frame * mod_step + at, mask, 0.0))
        y += tl.load(shift_at + frame * mod_step + at, mask, 0.0)
    tl.store(normed_at + row * width + at, y, mask)


@triton.jit
def _add_norm_backward(
    stream_at, update_at, gate_at, scale_at, moments_at, d_stream_at, d_normed_at, dx_at, d_update_at, sums_at,
    tokens, gate_step, mod_step, rows: tl.constexpr,
    width: tl.constexpr, block: tl.constexpr, has_gate: tl.constexpr, has_mod: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    at = tl.arange(0, block)
    mask = at < width
    if has_gate:
        gate = tl.load(gate_at + frame * gate_step + at, mask, 0.0)
    if has_mod:
        scale = 1 + tl.load(scale_at + frame * mod_step + at, mask, 0.0)
    d_gate = tl.zeros([block], tl.float32)
    d_shift = tl.zeros([block], tl.float32)
    d_scale = tl.zeros([block], tl.float32)
    for i in tl.range(part * rows, min((part + 1) * rows, tokens), num_stages=STAGES):
        row = frame * tokens + i
        mean = tl.load(moments_at + 2 * row)
        scatter = tl.load(moments_at + 2 * row + 1)
        x = tl.load(stream_at + row * width + at, mask, 0.0).to(tl.float32)
        d_normed = tl.load(d_normed_at + row * width + at, mask, 0.0).to(tl.float32)
        dx = tl.load(d_stream_at + row * width + at, mask, 0.0).to(tl.float32)
        y = tl.where(mask, (x - mean) * scatter, 0.0)
        if has_mod:
            d_shift += d_normed
            d_scale += d_normed * y
            d_normed *= scale
        total, along = _sums(d_normed, d_normed * y)
        dx += scatter * (d_normed - total / width - y * (along / width))
        tl.store(dx_at + row * width + at, dx, mask)
        if has_gate:
            d_gate += dx * tl.load(update_at + row * width + at, mask, 0.0).to(tl.float32)
            tl.store(d_update_at + row * width + at, dx * gate, mask)
    all_parts = tl.num_programs(0) * tl.num_programs(1) * width
    out = (frame * tl.num_programs(1) + part) * width + at
    if has_gate:
        tl.store(sums_at + out, d_gate, mask)
    if has_mod:
        tl.store(sums_at + all_parts + out, d_shift, mask)
        tl.store(sums_at + 2 * all_parts + out, d_scale, mask)


@triton.jit
def _split_qkv(
    qkv_at, q_weight_at, k_weight_at, own_at, partner_at, q_at, k_at, v_at, scatter_at, tokens,
    width: tl.constexpr, heads: tl.constexpr, head: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, head // 2)[None]
    at = tl.arange(0, heads)[:, None] * head + pair  # of the first of each pair; the second is half a head further
    mask = at < width
    half: tl.constexpr = head // 2
    cos = tl.load(own_at + (row % tokens) * head + pair)
    sin = tl.load(partner_at + (row % tokens) * head + half + pair)
    for i in tl.static_range(2):
        x_at = qkv_at + row * 3 * width + i * width
        w_at = q_weight_at if i == 0 else k_weight_at
        out_at = (q_at if i == 0 else k_at) + row * width
        a = tl.load(x_at + at, mask, 0.0).to(tl.float32)
        b = tl.load(x_at + half + at, mask, 0.0).to(tl.float32)
        scatter = tl.rsqrt(tl.sum(a * a + b * b) / width + 1e-6)
        tl.store(scatter_at + 2 * row + i, scatter)
        a = a * scatter * tl.load(w_at + at, mask, 0.0)
        b = b * scatter * tl.load(w_at + half + at, mask, 0.0)
        tl.store(out_at + at, a * cos - b * sin, mask)
        tl.store(out_at + half + at, a * sin + b * cos, mask)
    for i in tl.static_range(2):
        v = tl.load(qkv_at + row * 3 * width + 2 * width + i * half + at, mask)
        tl.store(v_at + row * width + i * half + at, v, mask)


@triton.jit
def _split_qkv_backward(
    qkv_at, q_weight_at, k_weight_at, own_at, partner_at, scatter_at, dq_at, dk_at, dv_at, d_qkv_at, sums_at,
    tokens, all_rows, rows: tl.constexpr, width: tl.constexpr, heads: tl.constexpr, head: tl.constexpr,
):  # fmt: skip
    """Program (part, i): part of the rows of queries (i = 0), keys (1), or values (2), which are only copied."""
    part = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1)
    half: tl.constexpr = head // 2
    pair = tl.arange(0, half)[None]
    at = tl.arange(0, heads)[:, None] * head + pair
    mask = at < width
    first, last = part * rows, min((part + 1) * rows, all_rows)
    if i == 2:
        for row in tl.range(first, last, num_stages=STAGES):
            to = d_qkv_at + row * 3 * width + 2 * width
            tl.store(to + at, tl.load(dv_at + row * width + at, mask), mask)
            tl.store(to + half + at, tl.load(dv_at + row * width + half + at, mask), mask)
    else:
        w_at = q_weight_at if i == 0 else k_weight_at
        d_at = dq_at if i == 0 else dk_at
        w_a = tl.load(w_at + at, mask, 0.0)
        w_b = tl.load(w_at + half + at, mask, 0.0)
        sum_a = tl.zeros([heads, half], tl.float32)
        sum_b = tl.zeros([heads, half], tl.float32)
        for row in tl.range(first, last, num_stages=STAGES):
            cos = tl.load(own_at + (row % tokens) * head + pair)
            sin = tl.load(partner_at + (row % tokens) * head + half + pair)
            scatter = tl.load(scatter_at + 2 * row + i)
            x_at = row * 3 * width + i * width + at
            a = tl.load(qkv_at + x_at, mask, 0.0).to(tl.float32) * scatter
            b = tl.load(qkv_at + x_at + half, mask, 0.0).to(tl.float32) * scatter
            turned_a = tl.load(d_at + row * width + at, mask, 0.0).to(tl.float32)
            turned_b = tl.load(d_at + row * width + half + at, mask, 0.0).to(tl.float32)
            d_a = turned_a * cos + turned_b * sin
            d_b = turned_b * cos - turned_a * sin
            sum_a += d_a * a
            sum_b += d_b * b
            d_a *= w_a
            d_b *= w_b
            along = tl.sum(d_a * a + d_b * b) / width
            tl.store(d_qkv_at + x_at, scatter * (d_a - a * along), mask)
            tl.store(d_qkv_at + x_at + half, scatter * (d_b - b * along), mask)
        out = (i * tl.num_programs(0) + part) * width + at
        tl.store(sums_at + out, sum_a, mask)
        tl.store(sums_at + out + half, sum_b, mask)


def _frame_step(per_frame: Tensor | None) -> int:
    return 0 if per_frame is None else per_frame.stride(1)


@triton_op("clipmill::add_norm", mutates_args=())
def add_norm(
    x: Tensor, update: Tensor | None, gate: Tensor | None, shift: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute dit.add_norm, and each row's mean and inverse deviation; x, update (B, T, S, d), the rest (B, T, d)
    fp32."""
    x, update = x.contiguous(), None if update is None else update.contiguous()
    stream, normed = torch.empty_like(x), torch.empty_like(x)
    width, tokens = x.shape[-1], x.shape[2]
    moments = torch.empty(*x.shape[:3], 2, device=x.device)
    wrap_triton(_add_norm)[(x.numel() // width,)](
        x, update, gate, shift, scale, stream, normed, moments, tokens, _frame_step(gate), _frame_step(scale),
        width, triton.next_power_of_2(width), update is not None, gate is not None, scale is not None, num_warps=2,
    )  # fmt: skip
    return stream, normed, moments


@triton_op("clipmill::add_norm_backward", mutates_args=())
def add_norm_backward(
    stream: Tensor, update: Tensor | None, gate: Tensor | None, scale: Tensor | None,
    moments: Tensor, d_stream: Tensor, d_normed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x and of a gated update, and partial sums (3, B, T, parts, d) of those of gate, shift and
    scale."""
    update = None if update is None else update.contiguous()
    b, frames, tokens, width = stream.shape
    parts = triton.cdiv(tokens, ROWS)
    dx = torch.empty_like(stream)
    d_update = torch.empty_like(stream) if gate is not None else stream.new_empty(0)
    sums = torch.empty(3, b, frames, parts, width, device=stream.device)
    wrap_triton(_add_norm_backward)[(b * frames, parts)](
        stream, update, gate, scale, moments, d_stream, d_normed, dx, d_update, sums,
        tokens, _frame_step(gate), _frame_step(scale), ROWS,
        width, triton.next_power_of_2(width), gate is not None, scale is not None, num_warps=4,
    )  # fmt: skip
    return dx, d_update, sums


def _save_add_norm(ctx, inputs, output) -> None:
    x, update, gate, _, scale = inputs
    ctx.updated = update is not None
    ctx.gate_trained = gate is not None and ctx.needs_input_grad[2]
    stream = x if update is None else output[0]  # a recomputed block holds its input anyway
    ctx.save_for_backward(stream, update if ctx.gate_trained else None, gate, scale, output[2])


def _add_norm_gradients(ctx, d_stream: Tensor, d_normed: Tensor, _) -> tuple[Tensor | None, ...]:
    stream, update, gate, scale, moments = ctx.saved_tensors
    stream = stream.contiguous()
    if gate is not None and update is None:
        update = stream  # any tensor of this shape: the gradient of a frozen gate is dropped
    gradients = (d_stream.contiguous(), d_normed.contiguous())
    dx, d_update, sums = add_norm_backward(stream, update, gate, scale, moments, *gradients)
    d_gate, d_shift, d_scale = sums.sum(3)
    if gate is None:
        d_update = dx
    if not ctx.gate_trained:
        d_gate = None
    if scale is None:
        d_shift = d_scale = None
    return dx, d_update if ctx.updated else None, d_gate, d_shift, d_scale


add_norm.register_autograd(_add_norm_gradients, setup_context=_save_add_norm)


@triton_op("clipmill::split_qkv", mutates_args=())
def split_qkv(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, own: Tensor, partner: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute dit.split_qkv, and the inverse deviations of queries and keys; qkv (B, N, 3d)."""
    b, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    head = own.shape[1]
    q, k, v = (qkv.new_empty(b, tokens, width // head, head) for _ in range(3))
    scatter = torch.empty(b, tokens, 2, device=qkv.device)
    wrap_triton(_split_qkv)[(b * tokens,)](
        qkv, q_weight, k_weight, own, partner, q, k, v, scatter, tokens,
        width, triton.next_power_of_2(width // head), head, num_warps=2,
    )  # fmt: skip
    return q, k, v, scatter


@triton_op("clipmill::split_qkv_backward", mutates_args=())
def split_qkv_backward(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, own: Tensor, partner: Tensor, scatter: Tensor,
    dq: Tensor, dk: Tensor, dv: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradient of qkv, and partial sums (2, parts, d) of those of the two weights."""
    b, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    head = own.shape[1]
    parts = triton.cdiv(b * tokens, ROWS)
    d_qkv = torch.empty_like(qkv)
    sums = torch.empty(2, parts, width, device=qkv.device)
    wrap_triton(_split_qkv_backward)[(parts, 3)](
        qkv, q_weight, k_weight, own, partner, scatter, dq, dk, dv, d_qkv, sums, tokens, b * tokens, ROWS,
        width, triton.next_power_of_2(width // head), head, num_warps=4,
    )  # fmt: skip
    return d_qkv, sums


def _save_split_qkv(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, output[3])


def _split_qkv_gradients(ctx, dq: Tensor, dk: Tensor, dv: Tensor, _) -> tuple[Tensor | None, ...]:
    d_qkv, sums = split_qkv_backward(*ctx.saved_tensors, *(d.contiguous() for d in (dq, dk, dv)))
    return d_qkv, *sums.sum(1), None, None


split_qkv.register_autograd(_split_qkv_gradients, setup_context=_save_split_qkv)
