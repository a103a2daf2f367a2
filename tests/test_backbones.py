"""Models of diffusers as backbones: losses, samples and files are those of diffusers' own pipelines and schedulers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import PIPELINES, save_pipeline

from model import objective
from model.backbones.adapter import DiffusersBackbone
from model.backbones.build import make_backbone, make_path
from model.config import Config, load_config
from model.latents.hub import HubLatents
from model.text import load_text

torch.set_num_threads(1)
CAPTION = "a red dog runs"
LATENTS = {"ltx": (1, 8, 2, 2, 3), "wan": (1, 16, 3, 4, 6), "cogvideox": (1, 4, 3, 6, 8), "hunyuan": (1, 4, 3, 4, 6)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of the tiny pipelines, each written once."""
    root = tmp_path_factory.mktemp("pipelines")
    return lambda name: root / name if (root / name).exists() else save_pipeline(name, root / name)


def shape_of(name: str) -> tuple[int, ...]:
    return LATENTS[name.partition("-")[0]]


def config_of(name: str, folder: Path, *options: str) -> Config:
    expert = ("expert=high",) if name == "wan-experts" else ()
    return load_config(None, [f"base=diffusers:{folder}", "fps=24", *expert, *options])


def load(name: str, folder: Path, *options: str) -> tuple[Config, DiffusersBackbone, dict[str, torch.Tensor], Any]:
    """The config, the backbone in fp32 without dropout, the encoded caption and the pipeline of diffusers."""
    config = config_of(name, folder, "clean_frames=0", *options)
    text = load_text(config.text, config.text_tokens)
    latents = HubLatents(str(folder))
    backbone = make_backbone(config, latents.channels, text.layout, latents.stride)
    assert isinstance(backbone, DiffusersBackbone)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return config, backbone.eval(), text([CAPTION]), pipeline


@pytest.mark.parametrize("name", PIPELINES)
def test_a_training_loss_is_that_of_the_scheduler_and_the_pipelines_conventions(name, folder):
    config, backbone, words, pipeline = load(name, folder(name))
    torch.manual_seed(1)
    x0, noise = torch.randn(shape_of(name)), torch.randn(shape_of(name))
    t = torch.full((1, x0.shape[2]), 0.6)
    x, target = objective.noisy(x0, noise, t, make_path(config))
    with torch.no_grad():
        loss = objective.loss_per_sample(backbone(x, t, **words), target, torch.ones_like(t))
        expected = reference_loss(name, pipeline, x0, noise)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def reference_loss(name: str, pipeline: Any, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The loss at t = 0.6 by diffusers: its scheduler's noise, its transformer's call, its target."""
    family = name.partition("-")[0]
    scheduler, transformer = pipeline.scheduler, pipeline.transformer
    if family == "cogvideox":
        vectors, _ = pipeline.encode_prompt(CAPTION, do_classifier_free_guidance=False, max_sequence_length=226)
        step = torch.tensor([600])
        clean, noise = x0.transpose(1, 2), noise.transpose(1, 2)
        noised = scheduler.add_noise(clean, noise, step)
        b, frames, _, height, width = clean.shape
        rotary = None
        if transformer.config.use_rotary_positional_embeddings:
            rotary = pipeline._prepare_rotary_positional_embeddings(8 * height, 8 * width, frames, torch.device("cpu"))
        out = transformer(noised, vectors, step, image_rotary_emb=rotary).sample
        estimate = scheduler.get_velocity(out, noised, step)  # x_0 of a prediction of v, as diffusers' example has it
        return ((estimate - clean) ** 2).mean() / (1 - scheduler.alphas_cumprod[600])
    sigma = torch.tensor([0.6])
    noised, target = (1 - sigma) * x0 + sigma * noise, noise - x0
    if family == "ltx":
        vectors, mask, *_ = pipeline.encode_prompt(CAPTION, do_classifier_free_guidance=False)
        pack, unpack = pipeline._pack_latents, pipeline._unpack_latents
        frames, height, width = x0.shape[2:]
        out = transformer(
            pack(noised), vectors, 1000 * sigma, mask, frames, height, width, rope_interpolation_scale=(8 / 24, 8, 8)
        ).sample
        return ((unpack(out, frames, height, width) - target) ** 2).mean()
    if family == "hunyuan":
        vectors, pooled, mask = pipeline.encode_prompt(CAPTION)
        guidance = torch.tensor([1000.0])
        out = transformer(noised, 1000 * sigma, vectors, mask, pooled, guidance).sample
        return ((out - target) ** 2).mean()
    vectors, _ = pipeline.encode_prompt(CAPTION, do_classifier_free_guidance=False, max_sequence_length=512)
    return ((transformer(noised, 1000 * sigma, vectors).sample - target) ** 2).mean()
