"""Several GPUs against one: the same losses, and how fast.

    torchrun --nproc-per-node 2 tests/benchmarks/training/train_parallel.py [--parallel fsdp,ddp] [--size XL]
        [--thousands 8]

Each process first runs ten steps of a small fp32 model alone on the whole batch, then all together on their shares, and
compares the losses; then it times bf16 steps of the asked size, each GPU alone on its share and all together. Works on
CPUs too (gloo), with a tiny model.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from model import objective
from model.config import Config
from model.network.dit import SIZES, DiT
from model.training.optimise import clipped_step, global_norm, make_optimizer
from model.training.parallel import RankContext, autocast, choose_kernels, distribute, join


def losses_of(
    config: Config, place: RankContext, shape: tuple[int, ...], steps: int
) -> tuple[list[float], list[float], int]:
    """Return losses and seconds of `steps` steps on a batch of `shape` shared by the processes, and forward FLOPs."""
    torch.manual_seed(0)
    model = DiT(SIZES[config.size], shape[1], 64)
    trained = distribute(model, config, place)
    optimizer = make_optimizer(list(model.parameters()), config)
    mine = slice(place.rank, None, place.world)
    generator = torch.Generator().manual_seed(1)
    losses, seconds = [], []
    for _ in range(steps):
        x0, noise = (torch.randn(shape, generator=generator)[mine].to(place.device) for _ in range(2))
        t = torch.rand(shape[0], 1, generator=generator)[mine].expand(-1, shape[2]).to(place.device)
        text = torch.randn(shape[0], 32, 64, generator=generator)[mine].to(place.device)
        if place.device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        x, target = objective.noisy(x0, noise, t, objective.LINEAR)
        with autocast(config, place):
            loss = objective.loss_per_sample(trained(x, t, text), target, torch.ones_like(t)).sum()
        (loss * place.world / shape[0]).backward()
        norm = global_norm(list(model.parameters()))
        clipped_step(optimizer, norm, torch.full_like(norm, 1.0))
        optimizer.zero_grad(set_to_none=True)
        total = loss.detach().clone()
        if place.world > 1:
            dist.all_reduce(total)
        losses.append(float(total) / shape[0])
        seconds.append(time.perf_counter() - began)
    return losses, seconds, shape[0] * model.forward_flops(shape, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", default="fsdp,ddp")
    parser.add_argument("--size", default="XL")
    parser.add_argument("--thousands", type=int, default=8)
    args = parser.parse_args()
    place = join("auto")
    alone = RankContext(place.device, 0, 1)
    cuda = place.device.type == "cuda"

    def say(line: str) -> None:
        if place.main:
            print(line, flush=True)

    config = Config(size="S" if cuda else "tiny", lr=1e-3)
    small = (2 * place.world, 16, 3, 16, 16)
    wanted, _, _ = losses_of(config, alone, small, 10)
    say(f"ten fp32 losses on one {place.device.type}: " + " ".join(f"{v:.6f}" for v in wanted))
    for parallel in args.parallel.split(","):
        got, _, _ = losses_of(dataclasses.replace(config, parallel=parallel), place, small, 10)
        worst = max(abs(a - b) / a for a, b in zip(wanted, got, strict=True))
        say(f"{parallel} on {place.world}: they differ by at most {worst:.1e}")
    if cuda:
        config = dataclasses.replace(config, size=args.size, precision="bf16", compile=True)
        choose_kernels(config)
        share = (32 // args.thousands, 16, args.thousands, 64, 64)
        single = 0.0
        for parallel in ("alone", *args.parallel.split(",")):
            where = alone if parallel == "alone" else place
            config = dataclasses.replace(config, parallel="fsdp" if parallel == "alone" else parallel)
            torch.cuda.reset_peak_memory_stats()
            shape = (share[0] * where.world, *share[1:])
            _, seconds, flops = losses_of(config, where, shape, 9)
            step = statistics.median(seconds[3:])
            single = single or step
            say(
                f"{parallel} {args.size} {args.thousands}k tokens, {shape[0]} samples on {where.world}: "
                f"{step * 1e3:.0f} ms a step, MFU {3 * flops / step / where.world / 989e12:.3f}, "
                f"{single / step:.1%} of one GPU's speed each, {torch.cuda.max_memory_allocated() / 1e9:.0f} GB"
            )
            gc.collect()
            torch.cuda.empty_cache()
            torch._dynamo.reset()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
