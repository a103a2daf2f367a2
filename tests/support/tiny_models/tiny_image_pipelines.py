"""Pipelines of image models of diffusers' real classes, tiny and with random weights; see tiny_pipelines.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiny_models.tiny_pipelines import t5, tokenizer

CHANNELS = (32, 64)  # motion modules norm groups of 32 channels


def autoencoder() -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, scaling_factor=0.7,
    )  # fmt: skip


def clip(width: int, projection: bool = False) -> Any:
    import transformers

    model_class = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return model_class(
        transformers.CLIPTextConfig(
            vocab_size=64, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            bos_token_id=2, eos_token_id=1, projection_dim=16,
        )
    )  # fmt: skip


def stable_diffusion(**schedule: Any) -> Any:
    """Stable Diffusion 1; with `schedule`, options of the scheduler, as 2."""
    import diffusers

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=CHANNELS, layers_per_block=1, in_channels=4, out_channels=4, sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=8,
    )  # fmt: skip
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = diffusers.DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, **schedule)
    return diffusers.StableDiffusionPipeline(
        autoencoder(), clip(16), tokenizer(77), unet, scheduler, None, None, requires_safety_checker=False
    )


def stable_diffusion_xl() -> Any:
    import diffusers

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=CHANNELS, layers_per_block=1, in_channels=4, out_channels=4, sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), cross_attention_dim=32, attention_head_dim=(2, 4),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    return diffusers.StableDiffusionXLPipeline(
        autoencoder(), clip(16), clip(16, True), tokenizer(77), tokenizer(77), unet, scheduler
    )


def pixart() -> Any:
    import diffusers

    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        cross_attention_dim=24, caption_channels=32, attention_bias=True,
    )  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        tokenizer(300), t5("T5EncoderModel"), autoencoder(), transformer, diffusers.DPMSolverMultistepScheduler()
    )


ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
IMAGE_PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": stable_diffusion,
    "sd-v": lambda: stable_diffusion(**ZERO_SNR),
    "sdxl": stable_diffusion_xl,
    "pixart": pixart,
}
