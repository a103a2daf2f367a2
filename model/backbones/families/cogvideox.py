"""CogVideoX 2B, 5B and 1.5 5B (Yang et al., 2024): a diffusion model of 1000 discrete steps in v-prediction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor

from model.backbones.base import Words
from model.backbones.families.base import Conditions, Family
from model.objective import discrete

TIMESTEPS = 1000
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


def encode(pipeline: Any, caption: str, tokens: int) -> Words:
    """Return T5's vectors, those of the padding included, to which this model attends."""
    vectors, _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=tokens)
    return {"encoder_hidden_states": vectors[0]}


def unsupported(config: Any) -> str:
    """Return why a transformer cannot be trained, or ""."""
    return "it is conditioned on images" if config["in_channels"] != config["out_channels"] else ""


FAMILY = Family(
    pipelines=("CogVideoXPipeline",),
    transformer="CogVideoXTransformer3DModel",
    blocks=("transformer_blocks",),
    text_tokens=226,
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    predict=predict,
    encode=encode,
    layout=lambda config: {"encoder_hidden_states": (None, int(config["text_embed_dim"]))},
    padding_counts=True,
    frame_patch=lambda config: int(config.get("patch_size_t") or 1),
    unsupported=unsupported,
    options={"path": "scheduler", "time": "uniform", "time_shift": 1.0},
)
