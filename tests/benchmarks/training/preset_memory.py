"""The memory that each preset of a diffusers model needs: estimated before the first step, and measured in three steps.

    python tests/benchmarks/training/preset_memory.py [--presets wan2.1-14b-lora,ltx-lora] [--compile wan2.1-1.3b-lora]
    python tests/benchmarks/training/preset_memory.py --estimate          # no GPU: the first column alone

Weights are random and made on the GPU, by the geometries below; nothing is downloaded. Latents and encoded captions are
random too and on the GPU, as `clipmill encode` lets a run have them. The micro-batch is one sample of the preset's
largest shape at 16:9. Measured is the peak that torch allocated during the steps, and what the whole device held.
Blocks are compiled for the presets of --compile only, because compiling each takes longer than measuring it. Needs
torch, diffusers, peft, and torchao for the presets with `quantise`; neither Ray nor PyAV. Without a GPU and without
--estimate it runs tiny geometries, to show that it works.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import tempfile
import time
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from model.backbones.adapter import word_layout
from model.backbones.base import pad_words
from model.backbones.build import make_backbone
from model.backbones.pretrained import load_diffusers, read_base
from model.objective import LINEAR, loss_per_sample, noisy
from model.presets import PRESETS
from model.training.memory import estimate_memory
from model.training.optimise import ClipRule, clipped_step, global_norm, make_optimizer, update_ema
from model.training.parallel import RankContext, autocast, choose_kernels, distribute

ROOT = Path(__file__).resolve().parents[3]
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DEFAULTS: dict[str, Any] = {  # of model/config.py, without its imports
    "lora_rank": 0, "lora_alpha": 0.0, "lora_dropout": 0.0, "lora_targets": (), "base_precision": "bf16",
    "quantise": "",
    "expert": "", "train_only": "all", "clean_frames": 0.0, "parallel": "fsdp", "attention_kernel": "auto",
    "deterministic": False, "clip_norm": 1.0, "adaptive_clip": False, "compile": False, "recompute": 0,
}  # fmt: skip
WAN: dict[str, Any] = {"attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256}
WAN_1B = {**WAN, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
WAN_5B = {**WAN, "num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48}
WAN_14B = {**WAN, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
WAN_PICTURE = {**WAN_14B, "in_channels": 36, "out_channels": 16}
WAN_CLIP = {**WAN_PICTURE, "image_dim": 1280, "added_kv_proj_dim": 5120}
COGVIDEOX = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
SDXL = {
    "block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True,
}  # fmt: skip
# by the base's name: pipeline, geometry, stride of the latents, further keys of model_index.json
BASES: dict[str, tuple[str, dict[str, Any], tuple[int, int, int], dict[str, Any]]] = {
    "Wan2.1-T2V-1.3B-Diffusers": ("WanPipeline", WAN_1B, (4, 8, 8), {}),
    "Wan2.1-T2V-14B-Diffusers": ("WanPipeline", WAN_14B, (4, 8, 8), {}),
    "Wan2.2-TI2V-5B-Diffusers": ("WanPipeline", WAN_5B, (4, 16, 16), {"expand_timesteps": True}),
    "Wan2.2-T2V-A14B-Diffusers": ("WanPipeline", WAN_14B, (4, 8, 8), {"boundary_ratio": 0.875}),
    "Wan2.1-I2V-14B-480P-Diffusers": ("WanImageToVideoPipeline", WAN_CLIP, (4, 8, 8), {}),
    "Wan2.2-I2V-A14B-Diffusers": ("WanImageToVideoPipeline", WAN_PICTURE, (4, 8, 8), {"boundary_ratio": 0.9}),
    "LTX-Video": ("LTXPipeline", {}, (8, 32, 32), {}),
    "HunyuanVideo": ("HunyuanVideoPipeline", {}, (4, 8, 8), {}),
    "CogVideoX-5b": ("CogVideoXPipeline", COGVIDEOX, (4, 8, 8), {}),
    "stable-diffusion-v1-5": ("StableDiffusionPipeline", {"cross_attention_dim": 768}, (1, 8, 8), {}),
    "stable-diffusion-xl-base-1.0": ("StableDiffusionXLPipeline", SDXL, (1, 8, 8), {}),
}


def prepare_filters() -> None:
    """Make `filters.torchvision_ops` importable without its package, which needs pyarrow and OpenCV."""
    package = types.ModuleType("filters")
    package.__path__ = [str(ROOT / "filters")]
    sys.modules.setdefault("filters", package)


def write_base(name: str, folder: Path) -> str:
    """Write a pipeline's configurations, without weights; return the value of `base`."""
    diffusers = load_diffusers()
    from model.backbones.pretrained import FAMILIES

    pipeline, geometry, _, index = BASES[name]
    family = next(family for family in FAMILIES if pipeline in family.pipelines)
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **index}))
    with torch.device("meta"):
        model = getattr(diffusers, family.transformer)(**geometry)
    model.save_config(folder / family.component)
    diffusers.FlowMatchEulerDiscreteScheduler().save_config(folder / "scheduler")
    return f"diffusers:{folder}"


def largest_shape(config: Any, channels: int, stride: tuple[int, int, int], patch: int) -> tuple[int, ...]:
    """Return the shape (b, c, t, h, w) of the latents of one sample at 16:9 with the preset's longest frame count."""
    rows, columns = (
        round(max(config.resolutions) * (16 / 9) ** power / (step * patch)) * patch
        for power, step in ((-0.5, stride[1]), (0.5, stride[2]))
    )
    return (1, channels, 1 + (max(config.frame_counts) - 1) // stride[0], rows, columns)


def measure(config: Any, layout: Any, shape: tuple[int, ...], stride: tuple[int, int, int]) -> tuple[float, float]:
    """Return the peak bytes that torch allocated in three steps, and the bytes in use on the device after them."""
    choose_kernels(config)
    if config.lora_rank or config.train_only == "temporal":
        torch.set_default_dtype(torch.bfloat16)  # so that the frozen weights are never held in fp32
    try:
        with DEVICE:
            backbone = make_backbone(config, shape[1], layout, stride, weights=False)
    finally:
        torch.set_default_dtype(torch.float32)
    context = RankContext(DEVICE, 0, 1)
    trained = distribute(backbone, config, context)
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    optimizer, clip = make_optimizer(parameters, config), ClipRule(config, DEVICE)
    ema = {name: p.detach().clone() for name, p in backbone.named_parameters() if p.requires_grad}
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        x0, noise = torch.randn(2, *shape, device=DEVICE)
        t = torch.full((shape[0], shape[2]), 0.6, device=DEVICE)
        words = {name: tensor.to(DEVICE).normal_() for name, tensor in pad_words([{}] * shape[0], layout).items()}
        words |= {name: torch.ones_like(tensor) for name, tensor in words.items() if name.endswith("mask")}
        x, target = noisy(x0, noise, t, LINEAR)
        picture = torch.randn(backbone.input_shape(shape), device=DEVICE)[:, shape[1] :]
        x = torch.cat([x, picture], dim=1)
        with autocast(config, context):
            loss = loss_per_sample(trained(x, t, **words), target, torch.ones_like(t)).mean()
        loss.backward()
        norm = global_norm(parameters)
        clipped_step(optimizer, norm, clip.limit(norm))
        update_ema(ema, backbone, config.ema)
        optimizer.zero_grad(set_to_none=True)
    if not CUDA:
        return math.nan, math.nan
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return torch.cuda.max_memory_allocated(), total - free


def shrink() -> None:
    """Make the geometries small enough for a CPU."""
    tiny = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64, "num_layers": 2}
    for name, (pipeline, geometry, stride, index) in list(BASES.items()):
        if not pipeline.startswith("Wan"):
            del BASES[name]
            continue
        picture = {"added_kv_proj_dim": 32} if "image_dim" in geometry else {}
        BASES[name] = (pipeline, {**geometry, **tiny, **picture}, stride, index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="", help="names, by default all of diffusers' models")
    parser.add_argument("--compile", default="wan2.1-1.3b-lora", help="presets to compile")
    parser.add_argument("--estimate", action="store_true", help="measure nothing")
    args = parser.parse_args()
    prepare_filters()
    names = args.presets.split(",") if args.presets else [name for name, p in PRESETS.items() if "base" in p]
    if not CUDA and not args.estimate:
        shrink()
    print(torch.cuda.get_device_name() if CUDA else "no GPU", torch.__version__, flush=True)
    print("| preset | tokens | compiled | weights | training | activations | workspace | estimated GB | measured GB |")
    print("|---" * 9 + "|")
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            values = {**DEFAULTS, **PRESETS[name]}
            base = values["base"].rpartition("/")[2]
            if base not in BASES:
                continue
            began = time.monotonic()
            values["base"] = write_base(base, Path(root, name))
            values["compile"] = values["compile"] and name in args.compile.split(",") and (CUDA or args.estimate)
            pretrained, stride = read_base(values["base"], values["expert"]), BASES[base][2]
            config = SimpleNamespace(**{**values, **pretrained.family.options})
            patch, layout = pretrained.family.patch(pretrained.transformer), word_layout(
                pretrained.family, pretrained.transformer, pretrained.family.text_tokens
            )  # fmt: skip
            shape = largest_shape(config, pretrained.family.channels(pretrained.transformer), stride, patch)
            estimate = estimate_memory(config, layout, shape, stride, 1)  # type: ignore[arg-type]
            cells = [estimate.weights, estimate.training, estimate.activations, estimate.workspace, estimate.total]
            measured = "-"
            if not args.estimate:
                gc.collect()
                if CUDA:
                    torch.cuda.empty_cache()
                torch._dynamo.reset()
                try:
                    peak, used = measure(config, layout, shape, stride)
                    measured = f"{peak / 1e9:.1f} (device {used / 1e9:.1f})"
                except torch.cuda.OutOfMemoryError:
                    measured = "out of memory"
            tokens = shape[2] * (shape[3] // patch) * (shape[4] // patch)
            listed = " | ".join(f"{cell / 1e9:.1f}" for cell in cells)
            print(f"| {name} | {tokens} | {config.compile} | {listed} | {measured} |", flush=True)
            print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
