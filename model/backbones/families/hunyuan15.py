"""HunyuanVideo 1.5 (Tencent, 2025): 8.3B, text to video and image to video.

Qwen2.5-VL encodes the caption, ByT5 its quoted parts, and SigLIP a first frame. The input channels are noisy latents,
the latents of a first frame, and a mask; the last two are zero for text to video.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.backbones.base import Words
from model.backbones.families.base import FLOW, TIMESTEPS, Conditions, Family, Picture
from model.errors import BaseError

GLYPHS = 256  # number of ByT5 tokens
PICTURE_TOKENS = 729  # number of SigLIP tokens of a first frame


def predict(transformer: Any, x: Tensor, t: Tensor, words: Words, conditions: Conditions) -> Tensor:
    """Return the predicted noise - x_0: the transformer's forward pass with static shapes.

    The transformer's own forward pass moves the used text tokens to the front with boolean indices, which can be
    neither compiled nor traced without data, and without a first frame processes 729 masked tokens.
    """
    batch, _, frames, height, width = x.shape
    absent = x.new_zeros(batch, transformer.config.in_channels - x.shape[1], frames, height, width)
    timestep = (TIMESTEPS * t.amax(1)).to(x.dtype)
    rotary = transformer.rope(x)
    temb = transformer.time_embed(timestep, timestep_r=None)
    tokens = transformer.x_embedder(torch.cat([x, absent], dim=1))
    glyph_mask, text_mask = words["encoder_attention_mask_2"] != 0, words["encoder_attention_mask"] != 0
    kinds = transformer.cond_type_embed.weight  # text, glyphs, image
    text = transformer.context_embedder(words["encoder_hidden_states"], timestep, text_mask) + kinds[0]
    glyphs = transformer.context_embedder_2(words["encoder_hidden_states_2"]) + kinds[1]
    both, mask = torch.cat([glyphs, text], dim=1), torch.cat([glyph_mask, text_mask], dim=1)
    if "image_embeds" in words:
        picture = transformer.image_embedder(words["image_embeds"]) + kinds[2]
        both = torch.cat([picture, both], dim=1)
        mask = torch.cat([mask.new_ones(picture.shape[:2]), mask], dim=1)
    order = torch.argsort((~mask).int(), dim=1, stable=True)
    mask = mask.gather(1, order)
    context = both.gather(1, order.unsqueeze(-1).expand_as(both)) * mask.unsqueeze(-1)
    for block in transformer.transformer_blocks:
        tokens, context = block(tokens, context, temb, mask, rotary)
    out = transformer.proj_out(transformer.norm_out(tokens, temb))
    patch = transformer.config.patch_size
    out = out.unflatten(1, (frames, height // patch, width // patch)).unflatten(-1, (-1, patch, patch))
    return out.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)


def encode(pipeline: Any, caption: str, tokens: int) -> Words:
    """Return the Qwen embeddings of a caption, without the pipeline's instruction, and the ByT5 embeddings of its
    quoted text, with their masks."""
    text, mask, glyphs, glyph_mask = pipeline.encode_prompt(caption)
    return {
        "encoder_hidden_states": text[0],
        "encoder_attention_mask": mask[0],
        "encoder_hidden_states_2": glyphs[0],
        "encoder_attention_mask_2": glyph_mask[0],
    }


def sample_options(scale: float | None, fps: float, tokens: int) -> dict[str, Any]:
    """Return no options: guidance is set in the pipeline's guider. Raises BaseError if a guidance scale is given."""
    if scale is not None:
        raise BaseError("HunyuanVideo 1.5 takes guidance from its pipeline's guider; leave --guidance out")
    return {}


def unsupported(config: Any, task: str = "t2v") -> str:
    """Return the reason why a transformer cannot be trained, empty if it can."""
    if config["task_type"] != task or config["use_meanflow"]:
        return f"it is made for another task than {task}, or for few steps"
    return "" if config["patch_size_t"] == 1 else "its patches span frames"


def picture_channels(latents: Any, pictures: Tensor, frames: int) -> Tensor:
    """Return the latents of pictures (b, 3, 1, h, w) before zeros, and a mask that is 1 in the first latent frame:
    (b, c + 1, t', h', w')."""
    encoded = latents.encode(pictures)
    both = torch.cat([encoded, torch.ones_like(encoded[:, :1])], dim=1)
    return F.pad(both, (0, 0, 0, 0, 0, (frames - 1) // latents.stride[0]))


def embed_pictures(pipeline: Any, pictures: list[Any]) -> Words:
    """Return SigLIP's hidden states of PIL images, (b, PICTURE_TOKENS, image_embed_dim)."""
    parts = (pipeline.image_encoder, pipeline.feature_extractor)
    return {"image_embeds": pipeline._get_image_embeds(*parts, pictures, pipeline.image_encoder.device)}


def fix_size(pipeline: Any, height: int, width: int) -> dict[str, int]:
    """Set the size of the pipeline's videos, which otherwise follows from the picture's aspect ratio; no options."""
    pipeline.video_processor.calculate_default_height_width = lambda **_: (height, width)
    return {}


FAMILY = Family(
    pipelines=("HunyuanVideo15Pipeline",),
    transformer="HunyuanVideo15Transformer3DModel",
    blocks=("transformer_blocks",),
    text_tokens=1000,
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    predict=predict,
    encode=encode,
    layout=lambda config: {
        "encoder_hidden_states": (None, int(config["text_embed_dim"])),
        "encoder_attention_mask": (None,),
        "encoder_hidden_states_2": (GLYPHS, int(config["text_embed_2_dim"])),
        "encoder_attention_mask_2": (GLYPHS,),
    },
    masked="encoder_attention_mask",
    channels=lambda config: int(config["out_channels"]),
    unsupported=unsupported,
    sample_options=sample_options,
    text_needs=("vae",),
    options=FLOW,
)
FROM_PICTURE = replace(
    FAMILY,
    pipelines=("HunyuanVideo15ImageToVideoPipeline",),
    layout=lambda config: {
        **FAMILY.layout(config),
        "image_embeds": (PICTURE_TOKENS, int(config["image_embed_dim"])),
    },
    unsupported=lambda config: unsupported(config, "i2v"),
    picture=Picture(picture_channels, embed_pictures, size_options=fix_size),
)
