"""Several GPUs against one: the same losses, and how fast.

    torchrun --nproc-per-node 2 tests/benchmarks/train_parallel.py [--parallel fsdp|ddp] [--size XL] [--thousands 8]

Each process first runs ten steps of a small fp32 model alone on the whole batch, then all together on their shares, and
compares the losses; then it times bf16 steps of the asked size. Works on CPUs too (gloo), with a tiny model.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from model import flow
from model.config import Config
from model.dit import SIZES, DiT
from model.optimise import clipped_step, global_norm, make_optimizer
from model.parallel import Place, autocast, choose_kernels, join, spread


def losses_of(config: Config, place: Place, shape: tuple[int, ...], steps: int) -> tuple[list[float], list[float], int]:
    """Losses and seconds of `steps` steps on a batch of `shape` shared by the processes, and FLOPs of its forward."""
    torch.manual_seed(0)
    model = DiT(SIZES[config.size], shape[1], 64)
    trained = spread(model, config, place)
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
        x, target = flow.noisy(x0, noise, t, "linear")
        with autocast(config, place):
            loss = flow.loss_per_sample(trained(x, t, text), target, torch.ones_like(t)).sum()
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
    parser.add_argument("--parallel", default="fsdp", choices=["fsdp", "ddp"])
    parser.add_argument("--size", default="XL")
    parser.add_argument("--thousands", type=int, default=8)
    args = parser.parse_args()
    place = join("auto")
    cuda = place.device.type == "cuda"
    config = Config(size="S" if cuda else "tiny", lr=1e-3, parallel=args.parallel, attention_kernel="auto")
    small = (2 * place.world, 16, 3, 16, 16)
    alone, _, _ = losses_of(config, Place(place.device, 0, 1), small, 10)
    together, _, _ = losses_of(config, place, small, 10)
    worst = max(abs(a - b) / a for a, b in zip(alone, together, strict=True))
    if place.main:
        print(f"{args.parallel} on {place.world} x {place.device.type}: ten fp32 losses differ by at most {worst:.1e}")
        print("  alone   ", *(f"{v:.6f}" for v in alone))
        print("  together", *(f"{v:.6f}" for v in together), flush=True)
    if cuda:
        config = dataclasses.replace(config, size=args.size, precision="bf16", compile=True, attention_kernel="cudnn")
        choose_kernels(config)
        shape = (32 // args.thousands * place.world, 16, args.thousands, 64, 64)
        _, seconds, flops = losses_of(config, place, shape, 8)
        step = statistics.median(seconds[3:])
        if place.main:
            print(
                f"{args.parallel} {args.size} {args.thousands}k tokens, {shape[0]} samples on {place.world} GPUs: "
                f"{step * 1e3:.0f} ms a step, MFU {3 * flops / step / place.world / 989e12:.3f}, "
                f"{torch.cuda.max_memory_allocated() / 1e9:.0f} GB"
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
