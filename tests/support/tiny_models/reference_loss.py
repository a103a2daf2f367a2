"""Training losses of diffusers' pipelines, by their own schedulers and conventions."""

from __future__ import annotations

from typing import Any

import torch


def reference_loss(name: str, pipeline: Any, caption: str, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the loss at t = 0.6 by diffusers: its scheduler's noise, its transformer's call, its target."""
    family = name.partition("-")[0]
    scheduler, transformer = pipeline.scheduler, pipeline.transformer
    if family == "cogvideox":
        vectors, _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=226)
        step = torch.tensor([599])
        clean, noise = x0.transpose(1, 2), noise.transpose(1, 2)
        noised = scheduler.add_noise(clean, noise, step)
        frames, height, width = clean.shape[1], *clean.shape[3:]
        rotary = None
        if transformer.config.use_rotary_positional_embeddings:
            rotary = pipeline._prepare_rotary_positional_embeddings(8 * height, 8 * width, frames, torch.device("cpu"))
        out = transformer(noised, vectors, step, image_rotary_emb=rotary).sample
        estimate = scheduler.get_velocity(out, noised, step)  # x_0 of a prediction of v, as diffusers' example has it
        return ((estimate - clean) ** 2).mean() / (1 - scheduler.alphas_cumprod[599])
    sigma = torch.tensor([0.6])
    noised, target = (1 - sigma) * x0 + sigma * noise, noise - x0
    if family == "ltx":
        vectors, mask, *_ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False)
        pack, unpack = pipeline._pack_latents, pipeline._unpack_latents
        frames, height, width = x0.shape[2:]
        out = transformer(
            pack(noised), vectors, 1000 * sigma, mask, frames, height, width, rope_interpolation_scale=(8 / 24, 8, 8)
        ).sample
        return ((unpack(out, frames, height, width) - target) ** 2).mean()
    if family == "hunyuan":
        vectors, pooled, mask = pipeline.encode_prompt(caption)
        guidance = torch.tensor([1000.0])
        out = transformer(noised, 1000 * sigma, vectors, mask, pooled, guidance).sample
        return ((out - target) ** 2).mean()
    if family == "hunyuan15":
        vectors, mask, glyphs, glyph_mask = pipeline.encode_prompt(caption)
        whole = torch.cat([noised, torch.zeros_like(noised), torch.zeros_like(noised[:, :1])], dim=1)
        out = transformer(
            whole, 1000 * sigma, vectors, mask, encoder_hidden_states_2=glyphs, encoder_attention_mask_2=glyph_mask,
            image_embeds=torch.zeros(1, 729, transformer.config.image_embed_dim),
        ).sample  # fmt: skip
        return ((out - target) ** 2).mean()
    vectors, _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=512)
    return ((transformer(noised, 1000 * sigma, vectors).sample - target) ** 2).mean()
