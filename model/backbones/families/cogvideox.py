"""CogVideoX 2B, 5B and 1.5 5B (Yang et al., 2024): a diffusion model of 1000 discrete steps in v-prediction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor

from model.backbones.base import Words
from model.backbones.families.base import DIFFUSION, TIMESTEPS, Conditions, Family, encode_vectors, image_conditioned
from model.objective import discrete

TIME_STRIDE = 4  # frames a latent frame


def predict(transformer: Any, x: Tensor, t: Tensor, words: Words, conditions: Conditions) -> Tensor:
    """Return v. Frames come before channels in this model; the 5B has rotary positions, which its pipeline makes."""
    rotary = None
    if transformer.config.use_rotary_positional_embeddings:
        from diffusers import CogVideoXPipeline

        stride = conditions.stride[1]
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
        return_dict=False,
        **words,
    )[0]
    return out.transpose(1, 2)


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
    unsupported=image_conditioned,
    options=DIFFUSION,
)
