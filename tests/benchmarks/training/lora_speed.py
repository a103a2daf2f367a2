"""Steps of Wan-1.3B's geometry with cached latents: this trainer beside a plain diffusers and peft step, in one run.

    python tests/benchmarks/training/lora_speed.py [--cases lora:6k,full:6k,lora:16k,full:16k] [--steps 12]
        [--no-compile]

Weights are random; latents and encoded captions (512 tokens of 4096) are on the GPU, as `clipmill encode` lets a run
have them. Both sides train the same transformer on the same batch of one sample in bf16:

- plain: what diffusers' training examples do: `add_adapter`, adapters in fp32, bf16 autocast, gradient checkpointing by
  `enable_gradient_checkpointing`, torch's AdamW, clip_grad_norm_.
- clipmill: the parts of model/train.py: the backbone with its faster blocks, each compiled, recomputation of each block
  in the same cases, fused AdamW that clips by itself, no moving average.

6k cases recompute nothing; 16k cases recompute every block, on both sides. tokens/s are latent tokens over the median
step; memory is the peak that torch allocated; MFU counts 2 passes of frozen linear layers, 3 of trained ones and of
attention, nothing recomputed, over 989 TFLOP/s. Needs torch, diffusers and peft; neither Ray nor PyAV. Without a GPU it
runs a tiny geometry, to show that it works.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from model.backbones.adapter import DiffusersBackbone
from model.backbones.families import wan
from model.backbones.families.base import Conditions
from model.backbones.lora import add_lora
from model.objective import LINEAR, loss_per_sample, noisy
from model.training.optimise import ClipRule, clipped_step, global_norm, make_optimizer
from model.training.parallel import RankContext, autocast, choose_kernels, distribute

ROOT = Path(__file__).resolve().parents[3]
PEAK = 989e12  # FLOP/s of an H100 or H200 in dense bf16
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
GEOMETRY: dict[str, Any] = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
SHAPES = {"6k": (1, 16, 9, 52, 52), "16k": (1, 16, 21, 56, 56)}  # 9 x 26 x 26 = 6084 and 21 x 28 x 28 = 16464 tokens
WORDS, TEXT_WIDTH, RANK = 512, 4096, 32
if not CUDA:
    GEOMETRY = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64, "num_layers": 2}
    SHAPES = {"6k": (1, 16, 3, 8, 8), "16k": (1, 16, 5, 8, 8)}
    WORDS, TEXT_WIDTH = 16, 32


def prepare_torchvision() -> None:
    """Make a torchvision importable that was built for another torch. The module is loaded by its path, because the
    package `filters` imports packages that a GPU machine may lack."""
    spec = importlib.util.spec_from_file_location("torchvision_ops", ROOT / "filters" / "torchvision_ops.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ensure_torchvision()


def transformer(lora: bool) -> Any:
    """Return Wan's transformer with random weights, in bf16 for a LoRA, else fp32."""
    torch.manual_seed(0)
    with DEVICE:
        model = diffusers.WanTransformer3DModel(**GEOMETRY, text_dim=TEXT_WIDTH, freq_dim=256)
    if lora:
        for name, parameter in model.named_parameters():
            if not any(part in name for part in model._keep_in_fp32_modules):
                parameter.data = parameter.data.to(torch.bfloat16)
    return model


def plain_step(model: Any, lora: bool, recompute: bool) -> Callable[..., torch.Tensor]:
    """Return a training step as in diffusers' examples."""
    from peft import LoraConfig

    if lora:
        model.requires_grad_(False)
        targets = list(wan.FAMILY.lora_targets)
        model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, init_lora_weights=True))
        diffusers.training_utils.cast_training_params(model, dtype=torch.float32)
    if recompute:
        model.enable_gradient_checkpointing()
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step(x0: torch.Tensor, words: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = t[:, :1, None, None, None]
        x, target = (1 - sigma) * x0 + sigma * noise, noise - x0
        with torch.autocast(DEVICE.type, torch.bfloat16):
            dtype = torch.bfloat16 if lora else torch.float32
            out = model(x.to(dtype), 1000 * t[:, 0], words.to(dtype), return_dict=False)[0]
        loss = ((out.float() - target) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def our_step(model: Any, lora: bool, recompute: bool, compiled: bool) -> Callable[..., torch.Tensor]:
    """Return a training step of model/train.py without data loading and moving average."""
    if lora:
        add_lora(model, RANK, RANK, 0.0, wan.FAMILY.lora_targets)
    backbone = DiffusersBackbone(model.train(), wan.FAMILY, Conditions(False, 16.0, (4, 8, 8)))
    config: Any = SimpleNamespace(
        precision="bf16", compile=compiled, recompute=int(recompute), base="diffusers:wan", lora_rank=RANK * lora,
        train_only="all", parallel="fsdp", attention_kernel="auto", deterministic=False, quantise="",
        lr=1e-4, beta2=0.999, weight_decay=0.01, clip_norm=1.0, adaptive_clip=False,
    )  # fmt: skip
    context = RankContext(DEVICE, 0, 1)
    choose_kernels(config)
    trained = distribute(backbone, config, context)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, clip = make_optimizer(parameters, config), ClipRule(config, DEVICE)

    def step(x0: torch.Tensor, words: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x, target = noisy(x0, noise, t, LINEAR)
        with autocast(config, context):
            out = trained(x, t, encoder_hidden_states=words)
            loss = loss_per_sample(out, target, torch.ones_like(t)).mean()
        loss.backward()
        norm = global_norm(parameters)
        clipped_step(optimizer, norm, clip.limit(norm))
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def flops(shape: tuple[int, ...], lora: bool) -> int:
    with torch.device("meta"):
        model = diffusers.WanTransformer3DModel(**GEOMETRY, text_dim=TEXT_WIDTH, freq_dim=256)
    model.requires_grad_(not lora)
    return DiffusersBackbone(model, wan.FAMILY, Conditions(False, 16.0, (4, 8, 8))).step_flops(shape, WORDS)


def measure(step: Callable[..., torch.Tensor], shape: tuple[int, ...], steps: int) -> tuple[float, float, float]:
    """Return the median seconds per step after warm-up, the peak bytes, and the first loss."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    x0, noise = (torch.randn(shape, generator=generator, device=DEVICE) for _ in range(2))
    words = torch.randn(shape[0], WORDS, TEXT_WIDTH, generator=generator, device=DEVICE)
    t = torch.full((shape[0], shape[2]), 0.6, device=DEVICE)
    first = float(step(x0, words, noise, t))
    step(x0, words, noise, t)
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(steps):
        if CUDA:
            torch.cuda.synchronize()
        started = time.perf_counter()
        step(x0, words, noise, t)
        if CUDA:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[steps // 4 :]), torch.cuda.max_memory_allocated() if CUDA else 0, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="lora:6k,full:6k,lora:16k,full:16k", help="lora or full, and 6k or 16k")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each side")
    parser.add_argument("--no-compile", action="store_true", help="leave our blocks uncompiled too")
    args = parser.parse_args()
    prepare_torchvision()
    name = torch.cuda.get_device_name() if CUDA else "CPU, tiny geometry"
    print(f"{name}, torch {torch.__version__}, diffusers {diffusers.__version__}", flush=True)
    print("| case | recomputed | side | ms a step | tokens/s | peak GB | MFU | first loss | tokens/s over plain |")
    print("|---" * 9 + "|")
    for case in args.cases.split(","):
        what, size = case.split(":")
        lora, recompute, shape = what == "lora", size == "16k", SHAPES[size]
        tokens = shape[0] * shape[2] * shape[3] * shape[4] // 4
        operations, plain = flops(shape, lora), 0.0
        for side in ("plain", "clipmill"):
            gc.collect()
            if CUDA:
                torch.cuda.empty_cache()
            torch._dynamo.reset()
            try:
                model = transformer(lora)
                step = plain_step(model, lora, recompute) if side == "plain" else None
                step = step or our_step(model, lora, recompute, not args.no_compile)
                seconds, peak, loss = measure(step, shape, args.steps)
            except torch.cuda.OutOfMemoryError:
                print(f"| {case} | {recompute} | {side} | out of memory |" + " |" * 5, flush=True)
                continue
            finally:
                model = step = None
            rate = tokens / seconds
            plain = rate if side == "plain" else plain
            print(
                f"| {case} | {recompute} | {side} | {1e3 * seconds:.1f} | {rate:,.0f} | {peak / 1e9:.1f} | "
                f"{operations / seconds / PEAK:.3f} | {loss:.4f} | {rate / plain if plain else float('nan'):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
