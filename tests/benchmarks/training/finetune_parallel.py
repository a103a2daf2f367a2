"""Fine-tuning Wan-1.3B's geometry on several GPUs by FSDP2: tokens a second and GPU, beside one GPU in the same run.

    python tests/benchmarks/training/finetune_parallel.py [--cases lora:16k,full:16k,full:6k] [--steps 12]
        [--no-compile] [--parallel ddp] [--keep-gathered]

Starts one process a GPU by itself. Each case is timed twice: on the first GPU alone, its model unsharded while the
other processes wait; then on all, each with its own sample, sharded by `distribute` as model/train.py does. Steps are
those of lora_speed.py: cached latents and captions, bf16, blocks compiled, every block recomputed at 16k tokens. The
last column is the tokens a second of one GPU of several over those of the GPU alone. The columns before show what
limits a step: the time in which Python issues its parts, or the kernels. NVLink multicast stays off.
Without GPUs two processes train a tiny geometry by gloo, and their losses are compared with one process on both
samples.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).parent))
import lora_speed
from lora_speed import RANK, SHAPES, TEXT_WIDTH, WORDS

from model.backbones.adapter import DiffusersBackbone
from model.backbones.families import wan
from model.backbones.families.base import Conditions
from model.backbones.lora import add_lora
from model.objective import LINEAR, loss_per_sample, noisy
from model.training.optimise import ClipRule, clipped_step, global_norm, make_optimizer
from model.training.parallel import RankContext, autocast, choose_kernels, distribute

CUDA = torch.cuda.is_available()
PORT = "29517"


@dataclass(frozen=True)
class Timing:
    """Of the steps of a case on this process. host: seconds in which Python issued the forward pass, the backward pass
    and the optimiser's part; nccl, kernels: seconds of NCCL's and of all other kernels of one step on the GPU."""

    seconds: float
    host: tuple[float, float, float]
    nccl: float
    kernels: float
    peak: int
    losses: list[float]


def run(case: str, context: RankContext, samples: int, args: argparse.Namespace) -> Timing:
    """Time steps with `samples` samples per process; medians without the first three steps."""
    what, size = case.split(":")
    lora, recompute, shape = what == "lora", size == "16k", SHAPES[size]
    lora_speed.DEVICE = context.device
    model = lora_speed.transformer(lora)
    if lora:
        add_lora(model, RANK, RANK, 0.0, wan.FAMILY.lora_targets)
    backbone = DiffusersBackbone(model.train(), wan.FAMILY, Conditions(False, 16.0, (4, 8, 8)))
    config: Any = SimpleNamespace(
        precision="bf16" if CUDA else "fp32", compile=CUDA and not args.no_compile, recompute=int(recompute),
        lora_rank=RANK * lora, train_only="all", parallel=args.parallel, attention_kernel="auto", deterministic=False,
        lr=1e-3, beta2=0.999, weight_decay=0.01, clip_norm=1.0, adaptive_clip=False, quantise="", base="diffusers:wan",
    )  # fmt: skip
    choose_kernels(config)
    if not CUDA:
        model.float()
    trained = distribute(backbone, config, context, args.keep_gathered)
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    optimizer, clip = make_optimizer(parameters, config), ClipRule(config, context.device)

    def step(number: int) -> tuple[list[float], torch.Tensor]:
        """Return the times at its start, after each part was issued and when the GPU was done; and the loss."""
        generator = torch.Generator().manual_seed(number)
        x0, noise = torch.randn(2, samples * context.world, *shape[1:], generator=generator)
        words = torch.randn(samples * context.world, WORDS, TEXT_WIDTH, generator=generator)
        mine = slice(context.rank, None, context.world)
        x0, noise, words = (tensor[mine].to(context.device) for tensor in (x0, noise, words))
        t = torch.full((samples, shape[2]), 0.6, device=context.device)
        synchronise()
        times = [time.perf_counter()]
        x, target = noisy(x0, noise, t, LINEAR)
        with autocast(config, context):
            loss = loss_per_sample(trained(x, t, encoder_hidden_states=words), target, torch.ones_like(t)).mean()
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        norm = global_norm(parameters)
        clipped_step(optimizer, norm, clip.limit(norm))
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter())
        synchronise()
        times.append(time.perf_counter())
        total = loss.detach().clone()
        if context.world > 1:
            dist.all_reduce(total)
        return times, total / context.world

    times, losses = [], []
    for number in range(args.steps):
        at, loss = step(number)
        times.append(at)
        losses.append(float(loss))
        if number == 2 and CUDA:
            torch.cuda.reset_peak_memory_stats()
    peak = torch.cuda.max_memory_allocated() if CUDA else 0
    nccl, kernels = profile(lambda: step(args.steps)) if CUDA else (0.0, 0.0)
    median = statistics.median(at[4] - at[0] for at in times[3:])
    forward, backward, update = (statistics.median(at[i + 1] - at[i] for at in times[3:]) for i in range(3))
    return Timing(median, (forward, backward, update), nccl, kernels, peak, losses)


def profile(step: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of NCCL's kernels, which include waiting for the other process, and of all others."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    kernels = [event for event in events if event.get("cat") == "kernel"]
    nccl = sum(event["dur"] for event in kernels if "nccl" in event["name"].lower())
    return nccl / 1e6, sum(event["dur"] for event in kernels) / 1e6 - nccl / 1e6


def link_speed(world: int, device: torch.device) -> str:
    """Return a line on the collectives of one block's weights: bytes that each process receives over the time."""
    weights, parts = torch.empty(47_000_000, device=device), []
    shard = weights[: len(weights) // world].clone()
    collectives = {
        "all-gather bf16": lambda: dist.all_gather_into_tensor(weights.bfloat16(), shard.bfloat16()),
        "all-gather fp32": lambda: dist.all_gather_into_tensor(weights, shard),
        "reduce-scatter fp32": lambda: dist.reduce_scatter_tensor(shard, weights),
    }
    for name, collective in collectives.items():
        for _ in range(3):
            collective()
        synchronise()
        began = time.perf_counter()
        for _ in range(10):
            collective()
        synchronise()
        parts.append(f"{name} {1e2 * (time.perf_counter() - began):.2f} ms")
    return f"47 million weights: {', '.join(parts)}"


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


def clear() -> None:
    gc.collect()
    torch._dynamo.reset()
    if CUDA:
        torch.cuda.empty_cache()


def work(rank: int, world: int, args: argparse.Namespace) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT, "RANK": str(rank), "WORLD_SIZE": str(world)}
    device = torch.device("cuda", rank) if CUDA else torch.device("cpu")
    if CUDA:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if CUDA else "gloo", rank=rank, world_size=world, device_id=device if CUDA else None)
    lora_speed.prepare_torchvision()
    link = link_speed(world, device) if CUDA else ""
    if rank == 0:
        print(torch.cuda.get_device_name() if CUDA else "CPU, tiny geometry", torch.__version__, link, flush=True)
        print(
            "| case | GPUs | ms a step | host ms: forward, backward, update | NCCL ms | kernels ms | tokens/s a GPU "
            "| peak GB a GPU | last loss | of one GPU |"
        )
        print("|---" * 10 + "|")
    for case in args.cases.split(","):
        shape, alone = SHAPES[case.split(":")[1]], 0.0
        tokens = shape[2] * shape[3] * shape[4] // 4
        for processes in (1, world):
            clear()
            dist.barrier()
            if processes == 1 and rank > 0:
                continue
            context = RankContext(device, rank if processes > 1 else 0, processes)
            samples = 1 if CUDA or processes > 1 else world  # on CPUs the same samples, to compare losses
            timing = run(case, context, samples, args)
            speed = tokens / timing.seconds
            alone = alone or speed
            host = ", ".join(f"{1e3 * seconds:.0f}" for seconds in timing.host)
            if rank == 0:
                print(
                    f"| {case} | {processes} | {1e3 * timing.seconds:.1f} | {host} | {1e3 * timing.nccl:.1f} | "
                    f"{1e3 * timing.kernels:.1f} | {speed:,.0f} | {timing.peak / 1e9:.1f} | {timing.losses[-1]:.6f} | "
                    f"{speed / alone:.3f} |",
                    flush=True,
                )
        dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="lora:16k,full:16k,full:6k", help="lora or full, and 6k or 16k")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--parallel", choices=["fsdp", "ddp"], default="fsdp")
    parser.add_argument("--keep-gathered", action="store_true", help="as train does where there is room")
    args = parser.parse_args()
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    world = torch.cuda.device_count() if CUDA else 2
    torch.multiprocessing.start_processes(work, args=(world, args), nprocs=world, start_method="spawn")


if __name__ == "__main__":
    main()
