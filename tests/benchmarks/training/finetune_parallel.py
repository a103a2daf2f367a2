"""Fine-tuning Wan-1.3B's geometry on several GPUs by FSDP2: tokens a second and GPU, beside one GPU in the same run.

    python tests/benchmarks/training/finetune_parallel.py [--cases lora:16k,full:16k,full:6k] [--steps 12]
        [--no-compile]

Starts one process a GPU by itself. Each case is timed twice: on the first GPU alone, its model unsharded while the
other processes wait; then on all, each with its own sample, sharded by `distribute` as model/train.py does. Steps are
those of lora_speed.py: cached latents and captions, bf16, blocks compiled, every block recomputed at 16k tokens. The
last column is the tokens a second of one GPU of several over those of the GPU alone. NVLink multicast stays off.
Without GPUs two processes train a tiny geometry by gloo, and their losses are compared with one process on both
samples.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
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


def run(case: str, context: RankContext, samples: int, steps: int, compiled: bool) -> tuple[float, float, list[float]]:
    """Return the median seconds per step, peak bytes and the losses, with `samples` samples per process."""
    what, size = case.split(":")
    lora, recompute, shape = what == "lora", size == "16k", SHAPES[size]
    lora_speed.DEVICE = context.device
    model = lora_speed.transformer(lora)
    if lora:
        add_lora(model, RANK, RANK, 0.0, wan.FAMILY.lora_targets)
    backbone = DiffusersBackbone(model.train(), wan.FAMILY, Conditions(False, 16.0, (4, 8, 8)))
    config: Any = SimpleNamespace(
        precision="bf16" if CUDA else "fp32", compile=compiled and CUDA, recompute=int(recompute), base="diffusers:wan",
        lora_rank=RANK * lora, train_only="all", parallel="fsdp", attention_kernel="auto", deterministic=False,
        lr=1e-3, beta2=0.999, weight_decay=0.01, clip_norm=1.0, adaptive_clip=False, quantise="",
    )  # fmt: skip
    choose_kernels(config)
    if not CUDA:
        model.float()
    trained = distribute(backbone, config, context)
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    optimizer, clip = make_optimizer(parameters, config), ClipRule(config, context.device)
    seconds, losses = [], []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x0, noise = torch.randn(2, samples * context.world, *shape[1:], generator=generator)
        words = torch.randn(samples * context.world, WORDS, TEXT_WIDTH, generator=generator)
        mine = slice(context.rank, None, context.world)
        x0, noise, words = (tensor[mine].to(context.device) for tensor in (x0, noise, words))
        t = torch.full((samples, shape[2]), 0.6, device=context.device)
        synchronise()
        began = time.perf_counter()
        x, target = noisy(x0, noise, t, LINEAR)
        with autocast(config, context):
            loss = loss_per_sample(trained(x, t, encoder_hidden_states=words), target, torch.ones_like(t)).mean()
        loss.backward()
        norm = global_norm(parameters)
        clipped_step(optimizer, norm, clip.limit(norm))
        optimizer.zero_grad(set_to_none=True)
        synchronise()
        seconds.append(time.perf_counter() - began)
        total = loss.detach().clone()
        if context.world > 1:
            dist.all_reduce(total)
        losses.append(float(total) / context.world)
        if step == 2 and CUDA:
            torch.cuda.reset_peak_memory_stats()
    peak = torch.cuda.max_memory_allocated() if CUDA else 0
    return statistics.median(seconds[3:]), peak, losses


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
    dist.init_process_group("nccl" if CUDA else "gloo", rank=rank, world_size=world)
    lora_speed.prepare_torchvision()
    if rank == 0:
        print(torch.cuda.get_device_name() if CUDA else "CPU, tiny geometry", torch.__version__, flush=True)
        print("| case | GPUs | ms a step | tokens/s a GPU | peak GB a GPU | last loss | of one GPU |")
        print("|---" * 7 + "|")
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
            seconds, peak, losses = run(case, context, samples, args.steps, not args.no_compile)
            alone = alone or tokens / seconds
            if rank == 0:
                ratio = tokens / seconds / alone
                print(
                    f"| {case} | {processes} | {1e3 * seconds:.1f} | {tokens / seconds:,.0f} | {peak / 1e9:.1f} | "
                    f"{losses[-1]:.6f} | {ratio:.3f} |",
                    flush=True,
                )
        dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="lora:16k,full:16k,full:6k", help="lora or full, and 6k or 16k")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    world = torch.cuda.device_count() if CUDA else 2
    torch.multiprocessing.start_processes(work, args=(world, args), nprocs=world, start_method="spawn")


if __name__ == "__main__":
    main()
