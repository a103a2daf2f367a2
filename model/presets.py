"""Presets: named sets of options, which options of a YAML file and of the command line override.

The presets of diffusers models are for one GPU; README.md lists the memory that each needs, and `train` estimates it
before the first step. Such a preset combines a method (LORA, FULL or MOTION), a base model, and the shapes with which
that model was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CUDA: Mapping[str, Any] = {  # the default on a machine with a GPU
    "size": "B",
    "latent_channels": 32,
    "resolutions": (256,),
    "frame_counts": (1, 33),
    "fps": 16.0,
    "workers": 8,
    "steps": 100_000,
    "shift_tokens": 1024,
    "tokens": 32_768,
    "lr": 2e-4,
    "warmup": 1000,
    "decay": "constant",
    "ema": 0.9999,
    "precision": "bf16",
    "compile": True,
    "save_every": 1000,
}
LORA: Mapping[str, Any] = {
    "lora_rank": 32,
    "steps": 2000,
    "lr": 1e-4,
    "warmup": 50,
    "decay": "constant",
    "weight_decay": 0.0,
    "beta2": 0.99,
    "ema": 0.0,
    "precision": "bf16",
    "compile": True,
    "recompute": 1,
    "workers": 4,
    "save_every": 250,
    "log_every": 10,
}
FULL: Mapping[str, Any] = {**LORA, "lora_rank": 0, "lr": 1e-5, "ema": 0.999, "weight_decay": 0.01}
MOTION: Mapping[str, Any] = {
    **FULL,
    "steps": 20_000,
    "ema": 0.9999,
    "fps": 8.0,
    "frame_counts": (16,),
    "compile": False,
}


def preset(
    method: Mapping[str, Any], base: str, resolution: int, frames: tuple[int, ...], fps: float, tokens: int, **more: Any
) -> Mapping[str, Any]:
    """Return the options of a preset. `tokens`, the size of a micro-batch, is that of the longest sample at
    `resolution`, so that a micro-batch is one such sample or several shorter ones."""
    shapes = {"resolutions": (resolution,), "frame_counts": frames, "fps": fps, "tokens": tokens}
    return {**method, "base": f"diffusers:{base}", **shapes, **more}


WAN = (416, (1, 33), 16.0, 6_400)
WAN_VIDEOS = (416, (33,), 16.0, 6_400)  # without single frames
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "cpu": {},
    "cuda": CUDA,
    "wan2.1-1.3b-lora": preset(LORA, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", *WAN),
    "wan2.1-1.3b-full": preset(FULL, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", *WAN),
    "wan2.1-14b-lora": preset(LORA, "Wan-AI/Wan2.1-T2V-14B-Diffusers", *WAN),
    "wan2.1-14b-qlora": preset(LORA, "Wan-AI/Wan2.1-T2V-14B-Diffusers", *WAN, quantise="nf4"),
    "wan2.2-5b-lora": preset(LORA, "Wan-AI/Wan2.2-TI2V-5B-Diffusers", 704, (1, 49), 24.0, 6_500),
    "wan2.2-a14b-lora": preset(LORA, "Wan-AI/Wan2.2-T2V-A14B-Diffusers", *WAN, expert="high"),
    "wan2.1-i2v-14b-lora": preset(LORA, "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", *WAN_VIDEOS),
    "wan2.2-i2v-a14b-lora": preset(LORA, "Wan-AI/Wan2.2-I2V-A14B-Diffusers", *WAN_VIDEOS, expert="high"),
    "ltx-lora": preset(LORA, "Lightricks/LTX-Video", 704, (1, 49), 24.0, 3_500),
    "hunyuan-lora": preset(LORA, "hunyuanvideo-community/HunyuanVideo", 416, (1, 33), 24.0, 6_400),
    "cogvideox-5b-lora": preset(LORA, "zai-org/CogVideoX-5b", 588, (49,), 8.0, 18_000),
    "sd-motion": preset(MOTION, "stable-diffusion-v1-5/stable-diffusion-v1-5", 512, (16,), 8.0, 1_100),
    "sdxl-motion": preset(MOTION, "stabilityai/stable-diffusion-xl-base-1.0", 768, (16,), 8.0, 9_500),
}
