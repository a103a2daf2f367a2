"""CogVideoX 2B, 5B and 1.5 5B (Yang et al., 2024): a diffusion model of 1000 discrete steps in v-prediction.

Text to video and image to video, without the noise that was added to pictures when the models were trained.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from model.backbones.base import Words
from model.backbones.families.base import (
    DIFFUSION,
    TIMESTEPS,
    Conditions,
    Family,
    Picture,
    Settings,
    encode_vectors,
    image_conditioned,
)
from model.errors import BaseError
from model.objective import discrete

TIME_STRIDE = 4  # frames a latent frame
STRENGTH = 2.0  # of the picture, an input of 1.5 that its pipeline fixes


def predict(transformer: Any, x: Tensor, t: Tensor, words: Words, conditions: Conditions) -> Tensor:
    """Return v. Frames come before channels in this model; the 5B has rotary positions, which its pipeline makes.
    Raises BaseError for frames that are larger than the positions of 1.5."""
    rotary, settings = None, transformer.config
    if settings.use_rotary_positional_embeddings:
        from diffusers import CogVideoXPipeline

        stride = conditions.stride[1]
        rows, columns = settings.sample_height, settings.sample_width
        if settings.patch_size_t and (x.shape[3] > rows or x.shape[4] > columns):  # of 1.5 alone
            raise BaseError(
                f"{x.shape[3] * stride}x{x.shape[4] * stride}: CogVideoX 1.5 has positions for frames of at most "
                f"{rows * stride}x{columns * stride} (height x width)"
            )
        rotary = CogVideoXPipeline._prepare_rotary_positional_embeddings(
            SimpleNamespace(transformer=transformer, vae_scale_factor_spatial=stride),
            x.shape[3] * stride,
            x.shape[4] * stride,
            x.shape[2],
            x.device,
        )
    out = transformer(
        x.transpose(1, 2),
        timestep=discrete(t.amax(1), TIMESTEPS),
        image_rotary_emb=rotary,
        ofs=x.new_full((1,), STRENGTH) if settings.ofs_embed_dim else None,
        return_dict=False,
        **words,
    )[0]
    return out.transpose(1, 2)


def picture_channels(latents: Any, pictures: Tensor, frames: int) -> Tensor:
    """Return the latents of pictures (b, 3, 1, h, w) before zeros, (b, c, t', h', w'). 1.5 takes them
    multiplied by the inverse of the scaling factor."""
    encoded, vae = latents.encode(pictures), latents.vae.config
    if vae.invert_scale_latents:
        encoded = encoded / vae.scaling_factor**2
    return F.pad(encoded, (0, 0, 0, 0, 0, (frames - 1) // TIME_STRIDE))


def fixed_size(config: Settings) -> tuple[int, int] | None:
    """Return height and width of the latents that the 5B's learned positions are for; None for any."""
    if not config.get("use_learned_positional_embeddings"):
        return None
    return int(config["sample_height"]), int(config["sample_width"])


def no_picture(config: Settings) -> str:
    """Return why a transformer cannot be trained on first frames, or ""."""
    return "" if config["in_channels"] == 2 * config["out_channels"] else "it takes no channels of a picture"


FAMILY = Family(
    pipelines=("CogVideoXPipeline",),
    transformer="CogVideoXTransformer3DModel",
    blocks=("transformer_blocks",),
    text_tokens=226,
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    predict=predict,
    encode=encode_vectors,
    layout=lambda config: {"encoder_hidden_states": (None, int(config["text_embed_dim"]))},
    padding_counts=True,
    frame_patch=lambda config: int(config.get("patch_size_t") or 1),
    channels=lambda config: int(config["out_channels"]),
    unsupported=image_conditioned,
    options=DIFFUSION,
)
FROM_PICTURE = replace(
    FAMILY,
    pipelines=("CogVideoXImageToVideoPipeline",),
    unsupported=no_picture,
    picture=Picture(picture_channels, size=fixed_size),
)
