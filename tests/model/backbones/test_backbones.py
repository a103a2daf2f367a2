"""Models of diffusers as backbones: losses, samples and files are those of diffusers' own pipelines and schedulers."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import pytest
import torch
from tiny_models.reference_loss import reference_loss
from tiny_models.tiny_pipelines import LORA, PIPELINES, SMALL, save_pipeline

from model import encode, evaluate, objective, sample, sampler, train
from model.backbones.adapter import DiffusersBackbone
from model.backbones.build import make_backbone, make_path
from model.config import Config, ConfigError, load_config
from model.errors import BaseError, CheckpointError, LatentError
from model.latents.base import to_bytes
from model.latents.hub import HubLatents
from model.text import load_text
from model.training import checkpoint
from pipeline.media.clip_reader import frame_times

torch.set_num_threads(1)
CAPTION = "a red dog runs"
LATENTS = {"ltx": (1, 8, 2, 2, 3), "wan": (1, 16, 3, 4, 6), "cogvideox": (1, 4, 3, 6, 8), "hunyuan": (1, 4, 3, 4, 6)}
LATENTS |= {"cogvideox-1.5": (1, 4, 2, 6, 8), "hunyuan15": (1, 4, 3, 4, 6)}


def shape_of(name: str) -> tuple[int, ...]:
    return LATENTS.get(name) or LATENTS[name.partition("-")[0]]


def config_of(name: str, folder: Path, *options: str) -> Config:
    expert = ("expert=high",) if name == "wan-experts" else ()
    frames = ("frame_counts=5",) if name == "cogvideox-1.5" else ()
    return load_config(None, [f"base=diffusers:{folder}", "fps=24", *expert, *frames, *options])


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
        expected = reference_loss(name, pipeline, CAPTION, x0, noise)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


SCALES = {"wan": 3.0, "wan-per-frame": 3.0, "ltx": 3.0, "hunyuan": 1.0, "hunyuan15": 3.0}
SCALES |= {"cogvideox-2b": 3.0, "cogvideox-5b": 3.0, "cogvideox-1.5": 3.0}


@pytest.mark.parametrize(("name", "scale"), SCALES.items())
def test_our_sampler_on_the_backbone_makes_the_pipelines_video(name, scale, folder):
    """The sampler shares nothing with the pipeline but the weights: words, times, guidance and latents must agree."""
    config, backbone, words, pipeline = load(name, folder(name), *(["clean_frames=0.1"] if "frame" in name else []))
    if name == "ltx":  # a fixed shift, which both sides take
        pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    if name.startswith("wan"):  # whose call spaces the times by the scheduler's default, others evenly before the shift
        evenly = np.linspace(1, 0, 5)[:-1].tolist()
        pipeline.scheduler.set_timesteps = functools.partial(pipeline.scheduler.set_timesteps, sigmas=evenly)
    latents = HubLatents(str(folder(name)))
    torch.manual_seed(2)
    noise = torch.randn(shape_of(name))
    frames, height, width = (1 + (noise.shape[2] - 1) * latents.stride[0], *(s * 8 for s in noise.shape[3:]))
    if name == "ltx":
        height, width = 32, 64
        noise = torch.randn(1, 8, 2, height // 8, width // 8)
    empty = load_text(config.text, config.text_tokens)([""])
    model = sampler.guided(lambda x, t, w: backbone(x, t, **w), words, empty, scale)
    factor = 1.0 if name == "ltx" else config.time_shift
    with torch.no_grad():
        path = make_path(config)
        ours = latents.decode(sampler.sample(model, noise, words, 4, "euler", factor, path))
    given = pipeline._pack_latents(noise, 1, 1) if name == "ltx" else noise
    given = noise.transpose(1, 2) if name.startswith("cogvideox") else given
    options = {"frame_rate": 24} if name == "ltx" else {}
    options |= {} if name == "hunyuan15" else {"guidance_scale": scale}
    theirs = pipeline(
        prompt=CAPTION, latents=given, num_frames=frames, height=height, width=width, num_inference_steps=4,
        output_type="pt", **options,
    ).frames  # fmt: skip
    assert torch.allclose((ours.clamp(-1, 1) + 1) / 2, theirs.transpose(1, 2), atol=2e-4)
    assert theirs.std() > 0.01


def run_config(name: str, folder: Path, dataset: Path, *options: str) -> Config:
    expert = ("expert=low",) if name == "wan-experts" else ()
    room = ("tokens=96",) if name == "hunyuan15" else ()  # its patches are single latent pixels
    words = [f"base=diffusers:{folder}", *SMALL, *room, *expert, *options]
    return load_config(None, words, [str(dataset)])


def sampled(pipeline: Any, frames: int, height: int, width: int, seed: int, **options: Any) -> torch.Tensor:
    """A pipeline's own video, (1, t, h, w, 3) uint8."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    video = pipeline(
        prompt=[CAPTION], num_frames=frames, height=height, width=width, num_inference_steps=3, generator=generator,
        output_type="pt", **options,
    ).frames  # fmt: skip
    return (video.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2)


@pytest.mark.parametrize("name", ["wan", "wan-experts", "ltx", "cogvideox-5b", "hunyuan", "hunyuan15"])
def test_a_lora_trained_here_loads_in_the_pipeline_and_samples_the_same(name, folder, dataset, tmp_path):
    run = tmp_path / "run"
    train.train(run_config(name, folder(name), dataset, *LORA, "steps=2"), run)
    names = checkpoint.read_weights(run, "model").keys()
    assert names
    assert all("lora_" in name for name in names)  # the base is not in the checkpoint
    trained = sample.Trained(run, "cpu")
    ours = trained.generate([CAPTION], 9, 32, 64, sample.Guidance(3), seed=5)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder(name))
    options: dict[str, Any] = {"frame_rate": 8.0} if name == "ltx" else {}
    plain = sampled(pipeline, 9, 32, 64, 5, **options)
    second = {"load_into_transformer_2": True} if name == "wan-experts" else {}
    if name == "hunyuan15":  # whose pipeline has no load_lora_weights (diffusers 0.42)
        pipeline.transformer.load_lora_adapter(str(run), weight_name="pytorch_lora_weights.safetensors")
    else:
        pipeline.load_lora_weights(str(run), **second)
    theirs = sampled(pipeline, 9, 32, 64, 5, **options)
    assert (ours.int() - theirs.int()).abs().max() <= 1
    assert (plain.int() - theirs.int()).abs().max() > 1  # the LoRA does something


@pytest.mark.parametrize("name", ["wan", "cogvideox-5b"])
def test_a_fine_tuned_transformer_loads_in_the_pipeline_and_samples_the_same(name, folder, dataset, tmp_path):
    run = tmp_path / "run"
    train.train(run_config(name, folder(name), dataset, "steps=2", "lr=1e-3", "ema=0.5", "recompute=1"), run)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder(name))
    plain = sampled(pipeline, 9, 32, 64, 5)
    transformer_class = type(pipeline.transformer)
    pipeline.transformer = transformer_class.from_pretrained(run / "transformer")
    ours = sample.Trained(run, "cpu").generate([CAPTION], 9, 32, 64, sample.Guidance(3), seed=5)
    assert torch.equal(ours, sampled(pipeline, 9, 32, 64, 5))
    assert not torch.equal(ours, plain)
    merged = tmp_path / "merged"
    train.train(run_config(name, folder(name), dataset, *LORA, "steps=2", "lora_merge=true"), merged)
    pipeline.transformer = transformer_class.from_pretrained(merged / "transformer")
    ours = sample.Trained(merged, "cpu").generate([CAPTION], 9, 32, 64, sample.Guidance(3), seed=5)
    assert (ours.int() - sampled(pipeline, 9, 32, 64, 5).int()).abs().max() <= 1


@pytest.mark.parametrize("options", [LORA, ("lr=1e-3", "recompute=1")], ids=["lora", "full"])
def test_a_run_on_a_base_stopped_and_resumed_is_bit_identical(options, folder, dataset, tmp_path):
    settings = ("steps=3", "caption_dropout=0.5", *options)
    train.train(run_config("wan", folder("wan"), dataset, *settings), tmp_path / "straight")
    train.train(run_config("wan", folder("wan"), dataset, *settings, "steps=1"), tmp_path / "stopped")
    train.train(run_config("wan", folder("wan"), dataset, *settings, "recompute=2"), tmp_path / "stopped")
    a, b = (checkpoint.read_weights(tmp_path / name, "model") for name in ("straight", "stopped"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_encoded_latents_and_captions_give_the_losses_of_the_clips(folder, dataset, tmp_path):
    """A clip here has room for one window, so that both runs see the same frames."""
    base = f"base=diffusers:{folder('wan')}"
    assert encode.main([str(dataset), "--out", str(tmp_path / "latents"), base, *SMALL]) == 0
    assert (tmp_path / "latents" / "latents" / "empty_caption.safetensors").exists()
    settings = load_config(
        None, [base, *LORA, "steps=2", "log_every=1", "tokens=64", "device=cpu", "caption_dropout=0.5"],
        [str(tmp_path / "latents")],
    )  # fmt: skip
    last = train.train(settings, tmp_path / "run")
    assert last["loss"] > 0
    with pytest.raises(BaseError, match="encodes 226 tokens at most"):
        load_config(None, [f"base=diffusers:{folder('cogvideox-2b')}"], [str(tmp_path / "latents")])
    other = save_pipeline("wan", tmp_path / "other", seed=1)
    settings = load_config(None, [f"base=diffusers:{other}", "steps=1", "device=cpu"], [str(tmp_path / "latents")])
    with pytest.raises(LatentError, match="works on its own latents"):
        train.train(settings, tmp_path / "mixed")


def test_what_cannot_be_trained_on_is_said_before_the_first_step(folder, dataset, tmp_path, capsys):
    def message(*options: str) -> str:
        words = [str(dataset), "--out", str(tmp_path / "run"), *SMALL, "steps=1", *options]
        assert train.main(words) == 2
        return capsys.readouterr().err

    base = f"base=diffusers:{folder('wan')}"
    image = tmp_path / "image"
    image.mkdir()
    (image / "model_index.json").write_text('{"_class_name": "FluxPipeline", "_diffusers_version": "0.35.0"}')
    assert "is a FluxPipeline; training works on WanPipeline" in message(f"base=diffusers:{image}")
    assert "not a pipeline that diffusers can read" in message(f"base=diffusers:{tmp_path}")
    assert "write diffusers:FOLDER" in message(f"base={image}")
    assert "set expert=high or expert=low" in message(f"base=diffusers:{folder('wan-experts')}")
    assert "is called 'to_k_proj'" in message(base, "lora_rank=4", "lora_targets=[to_q, to_k_proj]")
    assert "encodes 512 tokens at most" in message(base, "text_tokens=600")
    assert "set clean_frames=0" in message(base, "clean_frames=0.5")
    assert "GB are free: lower tokens" in message(base, "tokens=300000000")
    assert "works on its own latents" in message(base, "latents=pixel")
    taller = (f"base=diffusers:{folder('cogvideox-1.5')}", "frame_counts=5", "resolutions=112", "tokens=300")
    assert "positions for frames of at most 48x64" in message(*taller)
    assert "lora_rank and expert need a base" in message("lora_rank=4")
    with pytest.raises(ConfigError, match="no preset called 'wan3'"):
        load_config(preset="wan3")


@pytest.mark.parametrize("name", ["wan-per-frame", "ltx"])
def test_a_base_with_a_time_a_frame_starts_from_a_picture_and_goes_on_past_its_trained_length(
    name, folder, dataset, tmp_path
):
    run, picture = tmp_path / "run", tmp_path / "picture.png"
    train.train(run_config(name, folder(name), dataset, *LORA, "steps=1", "clean_frames=1"), run)
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))
    words = [str(run), "--prompt", CAPTION, "--device", "cpu", "--steps", "2", "--out", str(tmp_path / "out.mp4")]
    assert sample.main([*words, "--image", str(picture), "--seconds", "2"]) == 0
    assert len(frame_times((tmp_path / "out.mp4").read_bytes())) == 16  # trained on 9 frames at 8 a second
    trained = sample.Trained(run, "cpu")
    first = torch.rand(1, 3, 1, 32, 64) * 2 - 1
    video = trained.generate([CAPTION], 14, 32, 64, sample.Guidance(2), first=first)
    assert video.shape == (1, 14, 32, 64, 3)
    assert torch.equal(video[:, :1], to_bytes(first))


def test_a_base_with_one_time_for_all_frames_says_that_it_cannot_start_from_a_picture(
    folder, dataset, tmp_path, capsys
):
    run, picture = tmp_path / "run", tmp_path / "picture.png"
    train.train(run_config("wan", folder("wan"), dataset, *LORA, "steps=1"), run)
    cv2.imwrite(str(picture), np.zeros((32, 64, 3), np.uint8))
    words = [str(run), "--prompt", CAPTION, "--device", "cpu", "--steps", "2", "--out", str(tmp_path / "out.mp4")]
    assert sample.main([*words, "--image", str(picture)]) == 2
    assert "cannot start from a picture: it has one time for all frames" in capsys.readouterr().err
    assert sample.Trained(run, "cpu").generate([CAPTION], 13, 32, 64, sample.Guidance(2)).shape[1] == 13


def test_a_lora_of_another_model_is_refused(folder, dataset, tmp_path):
    train.train(run_config("wan", folder("wan"), dataset, *LORA, "steps=1"), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"lora_rank": 4', '"lora_rank": 8'))
    with pytest.raises(CheckpointError, match="of another model"):
        sample.Trained(tmp_path / "run", "cpu")


def test_a_run_whose_base_was_replaced_by_another_model_does_not_go_on(folder, dataset, tmp_path):
    base = shutil.copytree(folder("wan"), tmp_path / "base")
    train.train(run_config("wan", base, dataset, *LORA, "steps=1"), tmp_path / "run")
    shutil.rmtree(base)
    shutil.copytree(folder("wan-wide"), base)
    with pytest.raises(CheckpointError, match=r"is of another model: .* do not fit"):
        train.train(run_config("wan", base, dataset, *LORA, "steps=2"), tmp_path / "run")


def test_captions_that_are_cut_are_counted(folder, dataset, tmp_path, capsys):
    train.train(run_config("wan", folder("wan"), dataset, *LORA, "steps=1", "text_tokens=3"), tmp_path / "run")
    assert "2 of the first 2 captions are longer than 3 tokens and are cut" in capsys.readouterr().out


def test_a_run_on_a_base_is_evaluated(folder, dataset, tmp_path):
    train.train(run_config("wan", folder("wan"), dataset, *LORA, "steps=1"), tmp_path / "run")
    command = [str(tmp_path / "run"), "--split", "train", "--clips", "1", "--steps", "2", "--device", "cpu"]
    assert evaluate.main(command) == 0
    scores = json.loads((tmp_path / "run" / "evaluation" / "scores.json").read_text())
    assert scores["loss"] > 0


@pytest.mark.parametrize(("name", "precision"), [("wan", "fp32"), ("wan", "bf16"), ("wan-i2v", "fp32")])
def test_wans_faster_blocks_compute_what_diffusers_blocks_do(name, precision, folder):
    _, plain, words, _ = load(name, folder(name))
    _, fast, _, _ = load(name, folder(name))
    fast.family.speed_up(fast.transformer)
    assert dict(fast.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    torch.manual_seed(3)
    x, t = torch.randn(2, *plain.input_shape(shape_of(name))[1:]), torch.rand(2, 1).expand(2, 3)
    if name == "wan-i2v":
        words["encoder_hidden_states_image"] = torch.randn_like(words["encoder_hidden_states_image"])
    words = {name: torch.cat([tensor, tensor.flip(1)]) for name, tensor in words.items()}
    tolerance = 2e-5 if precision == "fp32" else 3e-2
    outputs = []
    for model in (plain, fast):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = model(x, t, **words)
        out.square().mean().backward()
        outputs.append(out.detach())
    assert torch.allclose(*outputs, rtol=tolerance, atol=tolerance)
    largest = max(float(p.grad.norm()) for p in plain.parameters() if p.grad is not None)
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        assert float((a.grad - b.grad).norm()) <= tolerance * largest, name
