"""Wan 2.1 and 2.2 (Wan Team, 2025): text to video and image to video of 1.3B and 14B, the two-expert A14B, TI2V-5B."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from model.backbones.base import Words
from model.backbones.families.base import (
    FLOW,
    TIMESTEPS,
    Conditions,
    Family,
    Picture,
    Settings,
    encode_vectors,
    image_conditioned,
)
from model.backbones.families.wan_blocks import CLIP_TOKENS, speed_up


def predict(transformer: Any, x: Tensor, t: Tensor, words: Words, conditions: Conditions) -> Tensor:
    """Return noise - x_0. A model with one time a sample takes the noisiest frame's; one with a time a token (TI2V)
    takes each frame's, for all tokens of the frame."""
    timestep = TIMESTEPS * t.amax(1)
    if conditions.time_per_frame:
        _, rows, columns = transformer.config.patch_size
        timestep = TIMESTEPS * t.repeat_interleave(x.shape[3] // rows * (x.shape[4] // columns), 1)
    return transformer(x, timestep, return_dict=False, **words)[0]


def picture_channels(latents: Any, pictures: Tensor, frames: int) -> Tensor:
    """Return for pictures (b, 3, 1, h, w) a mask, four channels that are 1 in the first latent frame, and the latents
    of the picture before grey frames: (b, 4 + c, t', h', w')."""
    grey = pictures.new_zeros(*pictures.shape[:2], frames - 1, *pictures.shape[3:])
    encoded = latents.encode(torch.cat([pictures, grey], dim=2))
    mask = torch.zeros_like(encoded[:, : latents.stride[0]])
    mask[:, :, 0] = 1
    return torch.cat([mask, encoded], dim=1)


def embed_pictures(pipeline: Any, pictures: list[Any]) -> Words:
    """Return CLIP's hidden states of PIL images, (b, CLIP_TOKENS, image_dim), for Wan 2.1; 2.2 has no such encoder."""
    if pipeline.image_encoder is None:
        return {}
    return {"encoder_hidden_states_image": pipeline.encode_image(pictures)}


def picture_layout(config: Settings) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes of an encoded caption and, for Wan 2.1, of CLIP's hidden states of the first frame."""
    shapes: dict[str, tuple[int | None, ...]] = {"encoder_hidden_states": (None, int(config["text_dim"]))}
    if config.get("image_dim"):
        shapes["encoder_hidden_states_image"] = (CLIP_TOKENS, int(config["image_dim"]))
    return shapes


def not_first_frame(config: Settings) -> str:
    """Return why a transformer cannot be trained on first frames, or ""."""
    if config.get("pos_embed_seq_len"):
        return "it takes a last frame too"
    return "" if config["in_channels"] > config["out_channels"] else "it takes no channels of a picture"


FAMILY = Family(
    pipelines=("WanPipeline",),
    transformer="WanTransformer3DModel",
    blocks=("blocks",),
    text_tokens=512,
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"),
    predict=predict,
    encode=encode_vectors,
    layout=lambda config: {"encoder_hidden_states": (None, int(config["text_dim"]))},
    patch=lambda config: int(config["patch_size"][1]),
    unsupported=image_conditioned,
    speed_up=speed_up,
    channels=lambda config: int(config["out_channels"]),
    time_per_frame=lambda index: bool(index.get("expand_timesteps")),
    options=FLOW,
)
FROM_PICTURE = replace(
    FAMILY,
    pipelines=("WanImageToVideoPipeline",),
    layout=picture_layout,
    unsupported=not_first_frame,
    fixed_tokens=True,  # what stands before the last 512 tokens of the context is the picture
    picture=Picture(picture_channels, embed_pictures),
)
