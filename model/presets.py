"""Presets: options by name, under those of a YAML file and of the command line.

Those of a diffusers model are for one GPU; `train` prints the memory that a process needs before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CUDA: Mapping[str, Any] = {  # the default where there is a GPU
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
    "workers": 4,
    "save_every": 250,
    "log_every": 10,
}
FULL: Mapping[str, Any] = {**LORA, "lora_rank": 0, "lr": 1e-5, "recompute": 1, "ema": 0.999, "weight_decay": 0.01}
WAN: Mapping[str, Any] = {"resolutions": (624,), "frame_counts": (1, 33, 81), "fps": 16.0, "tokens": 32_760}
SMALL: Mapping[str, Any] = {"resolutions": (416,), "frame_counts": (1, 33), "tokens": 6_240, "recompute": 1}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "cpu": {},
    "cuda": CUDA,
    "wan2.1-1.3b-lora": {**LORA, **WAN, "base": "diffusers:Wan-AI/Wan2.1-T2V-1.3B-Diffusers", **SMALL},
}
