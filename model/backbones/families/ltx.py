"""LTX-Video (HaCohen et al., 2024): tokens are single latent pixels of 8 frames x 32 x 32 pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from model.backbones.base import Words
from model.backbones.families.base import FLOW, TIMESTEPS, Conditions, Family, encode_masked, sample_options


def predict(transformer: Any, x: Tensor, t: Tensor, words: Words, conditions: Conditions) -> Tensor:
    """Return noise - x_0. Rotary positions are in seconds and pixels, so they depend on the frame rate."""
    frames, height, width = x.shape[2:]
    timestep = TIMESTEPS * (t.repeat_interleave(height * width, 1) if conditions.time_per_frame else t.amax(1))
    time_stride, *space_stride = conditions.stride
    out = transformer(
        x.flatten(2).transpose(1, 2),
        timestep=timestep,
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=(time_stride / conditions.fps, *space_stride),
        return_dict=False,
        **words,
    )[0]
    return out.transpose(1, 2).unflatten(2, (frames, height, width))


def unsupported(config: Any) -> str:
    """Return why a transformer cannot be trained, or ""."""
    return "" if config["patch_size"] == config["patch_size_t"] == 1 else "it has patches of several latent pixels"


FAMILY = Family(
    pipelines=("LTXPipeline",),
    transformer="LTXVideoTransformer3DModel",
    blocks=("transformer_blocks",),
    text_tokens=128,
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    predict=predict,
    encode=encode_masked,
    layout=lambda config: {
        "encoder_hidden_states": (None, int(config["caption_channels"])),
        "encoder_attention_mask": (None,),
    },
    masked="encoder_attention_mask",
    unsupported=unsupported,
    time_per_frame=lambda index: True,
    sample_options=lambda scale, fps, tokens: {"frame_rate": fps} | sample_options(scale, fps, tokens),
    options=FLOW,
)
