"""Wan 2.1 and 2.2 (Wan Team, 2025): text-to-video of 1.3B and 14B, the two-expert A14B, and TI2V-5B."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from model.backbones.base import Words
from model.backbones.families.base import FLOW, TIMESTEPS, Conditions, Family, encode_vectors, image_conditioned
from model.backbones.families.wan_blocks import speed_up


def predict(transformer: Any, x: Tensor, t: Tensor, words: Words, conditions: Conditions) -> Tensor:
    """Return noise - x_0. A model with one time a sample takes the noisiest frame's; one with a time a token (TI2V)
    takes each frame's, for all tokens of the frame."""
    timestep = TIMESTEPS * t.amax(1)
    if conditions.time_per_frame:
        _, rows, columns = transformer.config.patch_size
        timestep = TIMESTEPS * t.repeat_interleave(x.shape[3] // rows * (x.shape[4] // columns), 1)
    return transformer(x, timestep, words["encoder_hidden_states"], return_dict=False)[0]


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
    time_per_frame=lambda index: bool(index.get("expand_timesteps")),
    options=FLOW,
)
