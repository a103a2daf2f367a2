"""HunyuanVideo (Kong et al., 2024): 13B, text by LLaMA and CLIP, guidance as an input of the network."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from model.backbones.base import Words
from model.backbones.families.base import FLOW, TIMESTEPS, Conditions, Family

GUIDANCE = 1000.0  # input of the distilled model while it is trained: guidance 1, none


def predict(transformer: Any, x: Tensor, t: Tensor, words: Words, conditions: Conditions) -> Tensor:
    """Return noise - x_0."""
    guidance = x.new_full((len(x),), GUIDANCE) if transformer.config.guidance_embeds else None
    timestep = (TIMESTEPS * t.amax(1)).float()
    return transformer(x, timestep=timestep, guidance=guidance, return_dict=False, **words)[0]


def encode(pipeline: Any, caption: str, tokens: int) -> Words:
    """Return LLaMA's vectors after the pipeline's template, which of them are not padding, and CLIP's one vector."""
    vectors, pooled, mask = pipeline.encode_prompt(caption, max_sequence_length=tokens)
    return {
        "encoder_hidden_states": vectors[0],
        "encoder_attention_mask": mask[0],
        "pooled_projections": pooled[0],
    }


def unsupported(config: Any) -> str:
    """Return why a transformer cannot be trained, or ""."""
    if config.get("image_condition_type"):
        return "it is conditioned on images"
    return "" if config["patch_size_t"] == 1 else "its patches span frames"


FAMILY = Family(
    pipelines=("HunyuanVideoPipeline",),
    transformer="HunyuanVideoTransformer3DModel",
    blocks=("transformer_blocks", "single_transformer_blocks"),
    text_tokens=256,
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    predict=predict,
    encode=encode,
    layout=lambda config: {
        "encoder_hidden_states": (None, int(config["text_embed_dim"])),
        "encoder_attention_mask": (None,),
        "pooled_projections": (int(config["pooled_projection_dim"]),),
    },
    masked="encoder_attention_mask",
    unsupported=unsupported,
    options=FLOW,
)
