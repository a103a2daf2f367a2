"""Stable Diffusion 1, 2 and XL as video models: diffusers' UNetMotionModel (AnimateDiff, Guo et al., 2023).

The UNet keeps its weights, noise schedule and prediction type. Motion modules (attention along time after each layer)
are added; their output is zero at initialisation. They are saved as a MotionAdapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.backbones.base import Words
from model.backbones.families.base import DIFFUSION, TIMESTEPS, Conditions, Family, Inflation, image_conditioned
from model.objective import discrete

HEADS = 8  # attention heads of the motion modules
FRAMES = 32  # smallest number of positions of a new motion module, as in AnimateDiff
TIME_IDS = 6  # size conditions of SDXL: original size, crop and target size, two numbers each
BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")  # supported by UNetMotionModel


def inflate(unet: Any, frames: int) -> Any:
    """Return the UNet with new motion modules for at least `frames` frames; initially they compute the identity."""
    import diffusers

    adapter: Any = diffusers.MotionAdapter(
        block_out_channels=unet.config.block_out_channels,
        motion_layers_per_block=unet.config.layers_per_block,
        motion_num_attention_heads=HEADS,
        motion_max_seq_length=max(FRAMES, frames),
    )
    for name, module in adapter.named_modules():
        if name.endswith(".proj_out"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return video_unet(unet, adapter)


def video_unet(unet: Any, adapter: Any) -> Any:
    """Combine a UNet2DConditionModel and a MotionAdapter to a UNetMotionModel.

    Required for SDXL: `from_unet2d` of diffusers 0.42, and therefore AnimateDiffSDXLPipeline, does not copy the weights
    that embed text and size, which stay random.
    """
    import diffusers

    model = diffusers.UNetMotionModel.from_unet2d(unet, adapter)
    if unet.config.addition_embed_type == "text_time":
        model.add_embedding.load_state_dict(unet.add_embedding.state_dict())
    return model


def predict(unet: Any, x: Tensor, t: Tensor, words: Words, conditions: Conditions) -> Tensor:
    """Return the predicted noise or v, according to the scheduler's `prediction_type`, (b, c, t, h, w)."""
    frames, height, width = x.shape[2:]
    added = None
    if "text_embeds" in words:
        size = [height * conditions.stride[1], width * conditions.stride[2]]
        time_ids = x.new_tensor([*size, 0, 0, *size]).expand(len(x), -1)
        added = {"text_embeds": words["text_embeds"], "time_ids": time_ids}
    return unet(
        x,
        discrete(t.amax(1), TIMESTEPS),
        words["encoder_hidden_states"].repeat_interleave(frames, 0),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]


def encode(pipeline: Any, caption: str, tokens: int) -> Words:
    """Return the CLIP embeddings of a caption, including those of the padding, to which this model attends."""
    vectors, _ = pipeline.encode_prompt(caption, pipeline.device, 1, False)
    return {"encoder_hidden_states": vectors[0]}


def encode_xl(pipeline: Any, caption: str, tokens: int) -> Words:
    """Return the embeddings of both CLIP encoders and the pooled embedding of the second; zeros for an empty caption if
    the pipeline sets `force_zeros_for_empty_prompt`."""
    vectors, _, pooled, _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False)
    if caption == "" and pipeline.config.force_zeros_for_empty_prompt:
        vectors, pooled = torch.zeros_like(vectors), torch.zeros_like(pooled)
    return {"encoder_hidden_states": vectors[0], "text_embeds": pooled[0]}


def layout(config: Any) -> dict[str, tuple[int | None, ...]]:
    shapes: dict[str, tuple[int | None, ...]] = {"encoder_hidden_states": (None, int(config["cross_attention_dim"]))}
    if config.get("addition_embed_type") == "text_time":
        times = TIME_IDS * int(config["addition_time_embed_dim"])
        shapes["text_embeds"] = (int(config["projection_class_embeddings_input_dim"]) - times,)
    return shapes


def unsupported(config: Any) -> str:
    """Return the reason why a UNet cannot be trained, empty if it can."""
    if reason := image_conditioned(config):
        return reason
    if any(block not in BLOCKS for block in (*config["down_block_types"], *config["up_block_types"])):
        return "it has blocks that UNetMotionModel lacks"
    if not isinstance(config["cross_attention_dim"], int) or config.get("class_embed_type"):
        return "it is of another kind than Stable Diffusion 1, 2 and XL"
    return ""


def save(unet: Any, path: str, folder: Path, pipeline: str) -> str:
    """Write the motion modules as a MotionAdapter."""
    unet.save_motion_modules(str(folder / "motion_adapter"))
    adapter = f"MotionAdapter.from_pretrained({str(folder / 'motion_adapter')!r})"
    part = f"motion_adapter={adapter}"
    if unet.config.addition_embed_type == "text_time":
        image = f"UNet2DConditionModel.from_pretrained({path!r}, subfolder='unet')"
        part = f"motion_adapter=None, unet=video_unet({image}, {adapter})"
    return f"{folder / 'motion_adapter'}: load it with {pipeline}.from_pretrained({path!r}, {part})"


def family(pipeline: str, sampler: str, xl: bool) -> Family:
    return Family(
        pipelines=(pipeline,),
        transformer="UNet2DConditionModel",
        component="unet",
        blocks=("down_blocks", "mid_block", "up_blocks"),
        text_tokens=77,
        lora_targets=(),
        predict=predict,
        encode=encode_xl if xl else encode,
        layout=layout,
        padding_counts=True,
        patch=lambda config: 2 ** (len(config["block_out_channels"]) - 1),  # the picture divides at every level
        unsupported=unsupported,
        sample_options=lambda scale, fps, tokens: {} if scale is None else {"guidance_scale": scale},
        options={**DIFFUSION, "train_only": "temporal"},
        inflation=Inflation(
            inflate=inflate,
            temporal=".motion_modules.",
            empty=lambda unet: type(unet).from_config(unet.config),
            save=lambda unet, path, folder: save(unet, path, folder, sampler),
            pipeline=sampler,
        ),
    )


FAMILIES = (
    family("StableDiffusionPipeline", "AnimateDiffPipeline", xl=False),
    family("StableDiffusionXLPipeline", "AnimateDiffSDXLPipeline", xl=True),
)
