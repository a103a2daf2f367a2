"""A CLIP model with random weights, in the format of the model hub, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from filters.torchvision_ops import ensure_torchvision


def save_tiny_clip(folder: Path) -> Path:
    """Save a CLIP of 64 pixels and 32 dimensions in `folder`, as OpenCLIP saves models, and return the folder."""
    ensure_torchvision()
    from open_clip.model import CLIP

    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    model = CLIP(**config)
    normal = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": normal}))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder
