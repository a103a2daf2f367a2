"""Pipelines of the real classes of diffusers, tiny and with random weights, saved in diffusers' own folder format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from filters.torchvision_ops import ensure_torchvision

ensure_torchvision()

WORDS = ["a", "red", "green", "dog", "cat", "runs", "part", "of", "0", "1", "2", "bigbuckbunny", "bikes"]

# Options of short runs on them
SMALL = ("resolutions=48", "frame_counts=9", "fps=8", "tokens=64", "device=cpu", "precision=fp32", "decay=constant")
LORA = ("lora_rank=4", "lora_alpha=8", "lr=0.02", "warmup=0", "ema=0")


def tokenizer(length: int) -> Any:
    """A word-level tokenizer that ends a text as T5's does and pads on the right."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def t5(model_class: str) -> Any:
    import transformers

    config = {"T5EncoderModel": transformers.T5Config, "UMT5EncoderModel": transformers.UMT5Config}[model_class]
    return getattr(transformers, model_class)(
        config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    )


def wan(experts: bool = False, per_frame: bool = False, heads: int = 2, width: int = 12, picture: bool = False) -> Any:
    """Wan 2.1 T2V, or with `picture` I2V; experts: as A14B; per_frame: as TI2V-5B, with a time a frame."""
    import diffusers

    clip = picture and not experts  # Wan 2.2 does without
    picture_inputs = {"image_dim": 16, "added_kv_proj_dim": heads * width} if clip else {}

    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    transformers = [
        diffusers.WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=width, in_channels=36 if picture else 16, out_channels=16,
            text_dim=32, freq_dim=32, ffn_dim=2 * heads * width, num_layers=2, rope_max_seq_len=32, **picture_inputs,
        )
        for _ in range(1 + experts)
    ]  # fmt: skip
    pipeline_class = diffusers.WanImageToVideoPipeline if picture else diffusers.WanPipeline
    encoders = {"image_encoder": clip_vision(), "image_processor": clip_processor()} if clip else {}
    return pipeline_class(
        **encoders,
        tokenizer=tokenizer(512),
        text_encoder=t5("UMT5EncoderModel"),
        vae=vae,
        transformer=transformers[0],
        transformer_2=transformers[1] if experts else None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        boundary_ratio=0.9 if experts else None,
        expand_timesteps=per_frame,
    )


def clip_vision() -> Any:
    """CLIP's picture encoder with as many tokens as that of Wan 2.1."""
    import transformers

    return transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32,
            patch_size=2,
        )
    )  # fmt: skip


def clip_processor() -> Any:
    import transformers

    return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def ltx() -> Any:
    import diffusers

    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1), patch_size=1, scaling_factor=0.7,
        spatio_temporal_scaling=(True, True, True, False), decoder_spatio_temporal_scaling=(True, True, True, False),
    )  # fmt: skip
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=2, caption_channels=32,
    )  # fmt: skip
    return diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        vae=vae,
        text_encoder=t5("T5EncoderModel"),
        tokenizer=tokenizer(128),
        transformer=transformer,
    )


def cogvideox(rotary: bool, frame_patch: int | None = None, picture: bool = False) -> Any:
    """CogVideoX; rotary: positions as in the 5B, else as in the 2B; frame_patch: as in 1.5; picture: I2V."""
    import diffusers

    late = picture and frame_patch is not None

    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, scaling_factor=0.7,
        invert_scale_latents=late,
    )  # fmt: skip
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8 if picture else 4, out_channels=4, time_embed_dim=8,
        text_embed_dim=32, num_layers=2, sample_width=8, sample_height=4 if picture else 6, sample_frames=9,
        patch_size=2, max_text_seq_length=226, use_rotary_positional_embeddings=rotary, patch_size_t=frame_patch,
        patch_bias=frame_patch is None, use_learned_positional_embeddings=picture and not late,
        ofs_embed_dim=8 if late else None,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, snr_shift_scale=3.0, timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    pipeline_class = diffusers.CogVideoXImageToVideoPipeline if picture else diffusers.CogVideoXPipeline
    return pipeline_class(tokenizer(226), t5("T5EncoderModel"), vae, transformer, scheduler)


def hunyuan() -> Any:
    import diffusers
    import transformers

    vae = diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        mid_block_add_attention=True,
    )  # fmt: skip
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(4, 4, 4),
    )  # fmt: skip
    llama = transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2
        )
    )  # fmt: skip
    clip = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
            bos_token_id=2, eos_token_id=1,
        )
    )  # fmt: skip
    return diffusers.HunyuanVideoPipeline(
        llama,
        tokenizer(512),
        transformer,
        vae,
        diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        clip,
        tokenizer(77),
    )


def hunyuan15(picture: bool = False) -> Any:
    """HunyuanVideo 1.5, text to video or from a picture."""
    import diffusers
    import transformers

    vae = diffusers.AutoencoderKLHunyuanVideo15(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, spatial_compression_ratio=8,
    )  # fmt: skip
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=32, image_embed_dim=8, rope_axes_dim=(4, 4, 4),
        task_type="i2v" if picture else "t2v", target_size=45,
    )  # fmt: skip
    qwen = transformers.Qwen2_5_VLTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1]},
    )  # fmt: skip
    words = tokenizer(1108)
    words.chat_template = (
        "{{ 'a ' * 109 }}{{ messages[1]['content'] }}"  # the pipeline cuts its instruction, 108 tokens
    )
    pipeline_class, encoders = diffusers.HunyuanVideo15Pipeline, ()
    if picture:
        pipeline_class, encoders = diffusers.HunyuanVideo15ImageToVideoPipeline, (siglip(), siglip_processor())
    return pipeline_class(
        transformers.Qwen2_5_VLTextModel(qwen),
        words,
        transformer,
        vae,
        diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        t5("T5EncoderModel"),
        tokenizer(256),
        diffusers.guiders.ClassifierFreeGuidance(guidance_scale=3.0),
        *encoders,
    )


def siglip() -> Any:
    """SigLIP's picture encoder with as many tokens as that of HunyuanVideo 1.5."""
    import transformers

    return transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=54, patch_size=2
        )
    )


def siglip_processor() -> Any:
    import transformers

    return transformers.SiglipImageProcessor(size={"height": 54, "width": 54})


PIPELINES: dict[str, Callable[[], Any]] = {
    "wan": wan,
    "wan-experts": lambda: wan(experts=True),
    "wan-wide": lambda: wan(heads=8, width=16),
    "wan-per-frame": lambda: wan(per_frame=True),
    "ltx": ltx,
    "cogvideox-2b": lambda: cogvideox(rotary=False),
    "cogvideox-5b": lambda: cogvideox(rotary=True),
    "cogvideox-1.5": lambda: cogvideox(rotary=True, frame_patch=2),
    "hunyuan": hunyuan,
    "hunyuan15": hunyuan15,
}
CONTINUE_PICTURES: dict[str, Callable[[], Any]] = {
    "wan-i2v": lambda: wan(picture=True),
    "wan-i2v-experts": lambda: wan(picture=True, experts=True),
    "cogvideox-i2v": lambda: cogvideox(rotary=True, picture=True),
    "hunyuan15-i2v": lambda: hunyuan15(picture=True),
    "cogvideox-1.5-i2v": lambda: cogvideox(rotary=True, frame_patch=2, picture=True),
}


def save_pipeline(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a pipeline with random weights; every parameter is random, also those that are zero in a new model."""
    from tiny_models.tiny_image_pipelines import IMAGE_PIPELINES

    torch.manual_seed(seed)
    pipeline = (PIPELINES | CONTINUE_PICTURES | IMAGE_PIPELINES)[name]()
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            with torch.no_grad():
                for parameter in component.parameters():
                    if parameter.ndim < 2 or parameter.abs().max() == 0:
                        parameter.add_(0.1 * torch.randn_like(parameter))
    pipeline.save_pretrained(folder)
    return folder
