"""Image models of diffusers as models of videos: the same pictures at first; temporal layers are trained and saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny_models.tiny_image_pipelines import IMAGE_PIPELINES

from model import evaluate, objective, sample, train
from model.backbones.adapter import DiffusersBackbone
from model.backbones.build import make_backbone, make_path
from model.backbones.families import pixart, stable_diffusion
from model.config import Config, load_config
from model.errors import BaseError
from model.latents.hub import HubLatents
from model.text import load_text
from model.training import checkpoint

torch.set_num_threads(1)
CAPTION = "a red dog runs"
SMALL = ("resolutions=32", "frame_counts=5", "fps=8", "tokens=600", "device=cpu", "decay=constant", "warmup=0", "ema=0")


@pytest.fixture(autouse=True)
def without_onednn() -> Any:
    """oneDNN ends the process in the backward pass of some convolutions this small (torch 2.13 on a CPU)."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def load(name: str, folder: Path) -> tuple[Config, DiffusersBackbone, dict[str, torch.Tensor], Any]:
    """The config, the video model, the encoded caption and the image pipeline of diffusers."""
    config = load_config(None, [f"base=diffusers:{folder}", *SMALL])
    text, latents = load_text(config.text, config.text_tokens), HubLatents(str(folder))
    backbone = make_backbone(config, latents.channels, text.layout, latents.stride)
    assert isinstance(backbone, DiffusersBackbone)
    return config, backbone.eval(), text([CAPTION]), diffusers.DiffusionPipeline.from_pretrained(folder)


def image_prediction(name: str, pipeline: Any, x: torch.Tensor, step: int) -> torch.Tensor:
    """What the image model predicts for one frame (b, c, h, w), by its pipeline's conventions."""
    steps = torch.full((len(x),), step)
    if name == "pixart":
        vectors, mask, _, _ = pipeline.encode_prompt(CAPTION, do_classifier_free_guidance=False)
        added = {"resolution": None, "aspect_ratio": None}
        both = pipeline.transformer(x, vectors, steps, added, encoder_attention_mask=mask).sample
        return both.chunk(2, 1)[0]
    if name == "sdxl":
        vectors, _, pooled, _ = pipeline.encode_prompt(CAPTION, do_classifier_free_guidance=False)
        size = tuple(8 * side for side in x.shape[2:])
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=x.dtype)
        return pipeline.unet(x, steps, vectors, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample
    vectors, _ = pipeline.encode_prompt(CAPTION, pipeline.device, 1, False)
    return pipeline.unet(x, steps, vectors).sample


@pytest.mark.parametrize("name", IMAGE_PIPELINES)
def test_at_first_every_frame_is_the_image_models_own_prediction(name, folder):
    _, backbone, words, pipeline = load(name, folder(name))
    torch.manual_seed(1)
    x, t = torch.randn(1, 4, 3, 6, 8), torch.full((1, 3), 0.6)
    with torch.no_grad():
        frames = backbone(x, t, **words)
        for i in range(3):
            assert torch.allclose(frames[:, :, i], image_prediction(name, pipeline, x[:, :, i], 599), atol=1e-5)
        temporal = [p for n, p in backbone.named_parameters() if p.requires_grad and n.endswith("proj_out.weight")]
        temporal += [p for n, p in backbone.named_parameters() if n.endswith("temporal.out.weight")]
        assert temporal
        for parameter in temporal:  # once these are trained, frames depend on one another
            parameter.normal_(0, 0.1)
        assert not torch.allclose(backbone(x, t, **words), frames, atol=1e-3)


@pytest.mark.parametrize("name", IMAGE_PIPELINES)
def test_the_objective_is_the_schedulers_own(name, folder):
    config, _, _, pipeline = load(name, folder(name))
    scheduler = pipeline.scheduler
    path = make_path(config)
    torch.manual_seed(1)
    x0, noise = torch.randn(2, 1, 4, 3, 6, 8)
    for step in (20, 600, 999):
        x, target = objective.noisy(x0, noise, torch.full((1, 3), (step + 1) / 1000), path)
        at = torch.tensor([step])
        mean, deviation = scheduler.alphas_cumprod[at].sqrt(), (1 - scheduler.alphas_cumprod[at]).sqrt()
        assert torch.allclose(x, mean * x0 + deviation * noise, atol=1e-6)
        expected = noise
        if name == "sd-v":
            assert torch.allclose(x, scheduler.add_noise(x0, noise, at), atol=1e-6)
            expected = scheduler.get_velocity(x0, noise, at)
        assert torch.allclose(target, expected, atol=1e-6)
    last = float(path.coefficients(torch.ones(1))[0])
    assert (last == 0) == (name == "sd-v")  # only a schedule that the base itself rescaled ends without signal


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_motion_modules_trained_here_load_as_a_motion_adapter_and_sample_the_same(name, folder, dataset, tmp_path):
    run = tmp_path / "run"
    config = load_config(None, [f"base=diffusers:{folder(name)}", *SMALL, "steps=2", "lr=0.02"], [str(dataset)])
    train.train(config, run)
    names = checkpoint.read_weights(run, "model").keys()
    assert names
    assert all(".motion_modules." in n for n in names)
    ours = sample.Trained(run, "cpu").generate([CAPTION], 5, 32, 48, sample.Guidance(3), seed=5)
    adapter = diffusers.MotionAdapter.from_pretrained(run / "motion_adapter")
    if name == "sdxl":
        image = diffusers.UNet2DConditionModel.from_pretrained(folder(name), subfolder="unet")
        unet = stable_diffusion.video_unet(image, adapter)
        pipeline = diffusers.AnimateDiffSDXLPipeline.from_pretrained(folder(name), motion_adapter=None, unet=unet)
    else:
        pipeline = diffusers.AnimateDiffPipeline.from_pretrained(folder(name), motion_adapter=adapter)
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(
        [CAPTION], num_frames=5, height=32, width=48, num_inference_steps=3, output_type="pt",
        generator=torch.Generator().manual_seed(5),
    ).frames  # fmt: skip
    theirs = (video.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2)
    assert (ours.int() - theirs.int()).abs().max() <= 1
    assert (ours[:, 0].int() - ours[:, 1].int()).abs().max() > 0


def test_an_inflated_pixart_is_trained_saved_sampled_and_evaluated(folder, dataset, tmp_path):
    run = tmp_path / "run"
    config = load_config(None, [f"base=diffusers:{folder('pixart')}", *SMALL, "steps=2", "lr=0.02"], [str(dataset)])
    train.train(config, run)
    trained = sample.Trained(run, "cpu")
    assert trained.generate([CAPTION], 7, 32, 48, sample.Guidance(3), seed=5).shape == (1, 7, 32, 48, 3)
    plain = diffusers.PixArtTransformer2DModel.from_pretrained(folder("pixart"), subfolder="transformer")
    loaded = pixart.load(plain, run / pixart.FILE)
    assert isinstance(trained.network, DiffusersBackbone)
    own = dict(trained.network.transformer.named_parameters())
    assert all(torch.equal(p, own[name]) for name, p in loaded.named_parameters())
    assert any(p.abs().max() > 0 for name, p in own.items() if name.endswith("temporal.out.weight"))
    command = [str(run), "--split", "train", "--clips", "1", "--steps", "2", "--device", "cpu"]
    assert evaluate.main(command) == 0
    assert json.loads((run / "evaluation" / "scores.json").read_text())["loss"] > 0


def test_all_weights_of_an_inflated_unet_can_be_trained(folder, dataset, tmp_path):
    options = [f"base=diffusers:{folder('sd')}", *SMALL, "steps=1", "lr=0.01", "train_only=all", "recompute=1"]
    train.train(load_config(None, options, [str(dataset)]), tmp_path / "run")
    unet = diffusers.UNetMotionModel.from_pretrained(tmp_path / "run" / "unet")
    trained = sample.Trained(tmp_path / "run", "cpu")
    assert isinstance(trained.network, DiffusersBackbone)
    own = trained.network.transformer.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in unet.state_dict().items())


def test_options_that_do_not_fit_an_image_model_are_refused(folder):
    base = f"base=diffusers:{folder('sd')}"
    with pytest.raises(BaseError, match="temporal layers are trained in full"):
        load_config(None, [base, "lora_rank=4"])
    with pytest.raises(BaseError, match="set clean_frames=0"):
        load_config(None, [base, "clean_frames=0.1"])
    with pytest.raises(BaseError, match="needs all 77"):
        load_config(None, [base, "text_tokens=20"])
