"""PixArt-alpha and PixArt-sigma (Chen et al., 2023, 2024) as video models, by additional temporal attention.

The transformer keeps its weights, noise schedule and prediction type. Each block is followed by attention along time,
as in the factorised model of network/dit.py, with rotary positions and an output that is zero at initialisation.
diffusers has no class for the result, so videos are sampled by this repository's sampler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.backbones.base import Words
from model.backbones.families.base import DIFFUSION, TIMESTEPS, Conditions, Family, Inflation, encode_masked
from model.network.dit import SelfAttention, axis_angles, norm, rotation
from model.objective import discrete

HEAD = 128  # channels of a head of the temporal attention, where the width divides by them
FILE = "temporal.safetensors"


def inflate(transformer: Any, frames: int) -> Any:
    """Add attention along time after each block, in place, for any number of frames. Its initial output is zero."""
    width = transformer.inner_dim
    heads = width // HEAD if width % HEAD == 0 else transformer.config.num_attention_heads
    for block in transformer.transformer_blocks:
        block.temporal = SelfAttention(width, heads)
        torch.nn.init.zeros_(block.temporal.out.weight)
        block.forward = functools.partial(block_forward, block, block.forward)
    return transformer


def block_forward(block: Any, original: Callable[..., Tensor], hidden_states: Tensor, **options: Any) -> Tensor:
    """Apply a block and its attention along time to tokens (b * frames, n, d); return the same shape."""
    x = original(hidden_states, **options)
    frames = block.temporal_frames
    y = x.unflatten(0, (-1, frames)).transpose(1, 2)  # (b, n, frames, d)
    pairs = x.shape[-1] // block.temporal.heads // 2
    rope = rotation(axis_angles(torch.arange(frames, device=x.device), pairs))
    update = block.temporal(norm(y.flatten(0, 1)).to(x.dtype), rope)
    return x + update.view_as(y).transpose(1, 2).flatten(0, 1).to(x.dtype)


def predict(transformer: Any, x: Tensor, t: Tensor, words: Words, conditions: Conditions) -> Tensor:
    """Return the predicted noise, (b, c, t, h, w). A variance, in the second half of the channels, is discarded."""
    batch, channels, frames, height, width = x.shape
    for block in transformer.transformer_blocks:
        block.temporal_frames = frames
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if transformer.use_additional_conditions:
        added["resolution"] = x.new_tensor([height, width]).mul(conditions.stride[1]).expand(batch * frames, -1)
        added["aspect_ratio"] = x.new_tensor([height / width]).expand(batch * frames, -1)
    out = transformer(
        x.transpose(1, 2).flatten(0, 1),
        timestep=discrete(t.amax(1), TIMESTEPS).repeat_interleave(frames, 0),
        added_cond_kwargs=added,
        return_dict=False,
        **{name: tensor.repeat_interleave(frames, 0) for name, tensor in words.items()},
    )[0]
    return out[:, :channels].unflatten(0, (batch, frames)).transpose(1, 2)


def empty(transformer: Any) -> Any:
    """Return the video model without weights."""
    import diffusers

    return inflate(diffusers.PixArtTransformer2DModel.from_config(transformer.config), 1)


def save(transformer: Any, path: str, folder: Path) -> str:
    """Write the temporal layers to a safetensors file with their parameter names; return a message for the user."""
    weights = {name: p.detach().contiguous() for name, p in transformer.named_parameters() if ".temporal." in name}
    save_file(weights, folder / FILE, metadata={"format": "pt"})
    return f"{folder / FILE}: temporal layers for {path}; `clipmill sample` uses them"


def load(transformer: Any, file: Path) -> Any:
    """Inflate a transformer with the temporal layers that `save` wrote, in place."""
    inflate(transformer, 1).load_state_dict(load_file(file), strict=False)
    return transformer


def family(pipeline: str, tokens: int) -> Family:
    return Family(
        pipelines=(pipeline,),
        transformer="PixArtTransformer2DModel",
        blocks=("transformer_blocks",),
        text_tokens=tokens,
        lora_targets=(),
        predict=predict,
        encode=encode_masked,
        layout=lambda config: {
            "encoder_hidden_states": (None, int(config["caption_channels"])),
            "encoder_attention_mask": (None,),
        },
        masked="encoder_attention_mask",
        options={**DIFFUSION, "train_only": "temporal"},
        inflation=Inflation(inflate=inflate, temporal=".temporal.", empty=empty, save=save),
    )


FAMILIES = (family("PixArtAlphaPipeline", 120), family("PixArtSigmaPipeline", 300))
