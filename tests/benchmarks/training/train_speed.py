"""How fast one training step is: model FLOPs utilisation of this repository's transformer and of diffusers' Wan.

    python tests/benchmarks/training/train_speed.py [--cases XXL:8,XL:16,Wan:8,Users:8] [--kernels cudnn,flash]
        [--profile]

A case is MODEL:K, sequences of K x 1024 tokens, as many a step as make about 32 thousand tokens. A step is forward,
loss, backward, gradient clipping and fused AdamW; blocks compiled, bf16 autocast, fp32 weights, nothing recomputed.
Wan is diffusers' WanTransformer3DModel of 1.3B (the geometry of XXL) in this repository's loop; Users is the same as
its users run it: `compile_repeated_blocks`, the attention kernel that torch takes by itself, clip_grad_norm_.
FLOPs are 3 x DiT.forward_flops over 989 TFLOP/s (dense bf16 of an H100 or H200); medians after warm-up. "Bound" is the
MFU if there were nothing but matrix products at the rate of a large one and attention at the rate that its kernel
reaches alone, both measured in the same run. Without a GPU it runs one tiny case, to show that it works.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from model import objective
from model.config import Config
from model.network.dit import SIZES, DiT, Size
from model.training.optimise import ClipRule, clipped_step, global_norm, make_optimizer
from model.training.parallel import RankContext, autocast, choose_kernels, distribute

PEAK = 989e12
WORDS, TEXT_WIDTH, CHANNELS = 64, 384, 16


def matmul_rate(n: int = 8192, rounds: int = 30) -> float:
    """Return the median FLOP/s of an n x n by n x n bf16 product of random data."""
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * n**3 / statistics.median(times[5:])


def attention_rate(batch: int, tokens: int, heads: int) -> float:
    """Return the median FLOP/s of attention forward and backward, counted as 3 x forward."""
    q, k, v, grad = (
        torch.randn(batch, tokens, heads, 128, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for _ in range(4)
    )
    times = []
    for _ in range(8):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), grad)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 3 * 4 * batch * tokens**2 * heads * 128 / statistics.median(times[2:])


def time_steps(step: Callable[[], Tensor], steps: int, cuda: bool) -> float:
    """Return the median seconds per step after three warm-up steps, without a synchronization per step."""
    for _ in range(3):
        began = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        print(f"      warm-up {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    marks: list[Any] = []
    for _ in range(steps + 1):
        if cuda:
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()
        else:
            marks.append(time.perf_counter())
        step()
    if not cuda:
        return statistics.median(b - a for a, b in itertools.pairwise(marks))
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks))


def training_step(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    parameters: list[Tensor],
    x0: Tensor,
    config: Config,
    place: RankContext,
    users: bool,
) -> Callable[[], Tensor]:
    """One optimiser step on fixed latents with fresh noise and time."""
    optimizer, clip = make_optimizer(parameters, config), ClipRule(config, place.device)
    text = torch.randn(len(x0), WORDS, TEXT_WIDTH, device=place.device)

    def step() -> Tensor:
        t = torch.rand(len(x0), 1, device=place.device).expand(-1, x0.shape[2])
        x, target = objective.noisy(x0, torch.randn_like(x0), t, objective.LINEAR)
        with autocast(config, place):
            prediction = predict(x, t, text)
        loss = objective.loss_per_sample(prediction, target, torch.ones_like(t)).mean()
        loss.backward()
        if users:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimizer.step()
        else:
            norm = global_norm(parameters)
            clipped_step(optimizer, norm, clip.limit(norm))
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def wan(size: Size, users: bool) -> tuple[torch.nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Return diffusers' Wan transformer with compiled blocks, and a function that calls it."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        num_attention_heads=size.heads, attention_head_dim=128, in_channels=CHANNELS, out_channels=CHANNELS,
        text_dim=TEXT_WIDTH, ffn_dim=size.hidden, num_layers=size.depth, cross_attn_norm=True,
    ).cuda()  # fmt: skip
    if users:
        model.compile_repeated_blocks(fullgraph=True)
    else:
        for block in model.blocks:
            block.compile(fullgraph=True, dynamic=False)
    return model, lambda x, t, text: model(x, 1000 * t[:, 0], text, return_dict=False)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="XXL:6,XXL:8,XXL:16,XL:6,XL:8,XL:16,Wan:8,Users:8")
    parser.add_argument("--kernels", default="cudnn")
    parser.add_argument("--step-tokens", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--depth", type=int, help="blocks, instead of the model's own number")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    place = RankContext(torch.device("cuda" if cuda else "cpu"), 0, 1)
    cases = [(c.split(":")[0], int(c.split(":")[1])) for c in args.cases.split(",")] if cuda else [("tiny", 1)]
    if cuda:
        matmul = matmul_rate()
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: matmul {matmul / 1e12:.0f} TFLOP/s")
    header = f"{'model':6} {'tokens':>7} {'batch':>5} {'kernel':>7} {'ms':>8} {'TFLOP/s':>8} {'MFU':>6} {'bound':>6}"
    rows = [f"{header} {'attention':>9} {'GB':>6}"]
    for (name, thousands), kernel in itertools.product(cases, args.kernels.split(",")):
        public = name in ("Wan", "Users")
        kernel = "auto" if name == "Users" else kernel
        config = Config(precision="bf16", compile=cuda, attention_kernel=kernel, device=place.device.type)
        choose_kernels(config)
        torch.manual_seed(0)
        size = SIZES["XXL" if public else name]
        size = dataclasses.replace(size, depth=args.depth or size.depth)
        with torch.device("meta") if public else place.device:
            model = DiT(size, CHANNELS, TEXT_WIDTH)
        trained, predict = wan(size, name == "Users") if public else (distribute(model, config, place),) * 2
        batch = max(1, args.step_tokens // thousands) if cuda else 1
        x0 = torch.randn(batch, CHANNELS, thousands, 64, 64, device=place.device)
        parameters = [p for p in trained.parameters() if p.requires_grad]
        step = training_step(predict, parameters, x0, config, place, name == "Users")
        try:
            seconds = time_steps(step, args.steps if cuda else 2, cuda)
        except torch.OutOfMemoryError:
            print(f"{name}:{thousands} x {batch} does not fit", flush=True)
            continue
        flops = 3 * batch * model.forward_flops(x0.shape, WORDS)
        row = f"{name:6} {model.tokens(x0.shape):7d} {batch:5d} {kernel:>7} {seconds * 1e3:8.1f} "
        row += f"{flops / seconds / 1e12:8.1f} {flops / seconds / PEAK:6.3f} "
        if cuda:
            rate = attention_rate(batch, model.tokens(x0.shape), size.heads)
            attention = 3 * 4 * batch * size.depth * model.tokens(x0.shape) ** 2 * size.width
            bound = flops / (attention / rate + (flops - attention) / matmul) / PEAK
            row += f"{bound:6.3f} {rate / 1e12:9.0f} {torch.cuda.max_memory_allocated() / 1e9:6.1f}"
        rows.append(row)
        print(row, flush=True)
        if args.profile and cuda:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                step()
                torch.cuda.synchronize()
            print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=40, max_name_column_width=90))
        del model, trained, predict, step, parameters, x0
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        torch._dynamo.reset()
    print("\n".join(rows))


if __name__ == "__main__":
    main()
