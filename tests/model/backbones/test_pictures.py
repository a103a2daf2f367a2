"""Models of diffusers that continue a picture: losses, samples and files are those of diffusers' own pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models.tiny_pipelines import CONTINUE_PICTURES, LORA, SMALL

from model import encode, evaluate, sample, train
from model.backbones.build import make_backbone
from model.config import Config, load_config
from model.errors import DataError
from model.latents.base import to_bytes, to_signed
from model.latents.first_frame import FirstFrame, add_picture
from model.latents.hub import HubLatents
from model.text import load_text

torch.set_num_threads(1)
CAPTION = "a red dog runs"
HEIGHT, WIDTH = 32, 64  # the one size that the tiny CogVideoX 1.0 has positions for


def config_of(name: str, folder: Path, data: tuple[str, ...] = (), *options: str) -> Config:
    expert = ("expert=high",) if "experts" in name else ()
    frames = ("frame_counts=5",) if "1.5" in name else ("frame_counts=9",)
    return load_config(None, [f"base=diffusers:{folder}", *expert, *SMALL, *frames, "tokens=96", *options], data)


@pytest.mark.parametrize("name", CONTINUE_PICTURES)
def test_the_prediction_from_a_picture_is_the_pipelines(name, folder, monkeypatch):
    """The pipeline's own call of its transformer is recorded; ours gets the same noise and picture and must agree."""
    config = config_of(name, folder(name))
    latents, text = HubLatents(str(folder(name))), load_text(config.text, config.text_tokens)
    backbone = make_backbone(config, latents.channels, text.layout, latents.stride).eval()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder(name))
    pipeline.set_progress_bar_config(disable=True)
    modes = "diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video.retrieve_latents"
    monkeypatch.setattr(modes, lambda output, generator: output.latent_dist.mode())
    frames = max(config.frame_counts)
    torch.manual_seed(2)
    noise = torch.randn(1, latents.channels, 1 + (frames - 1) // 4, HEIGHT // 8, WIDTH // 8)
    picture = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []
    forward = pipeline.transformer.forward

    def record(*args: Any, **inputs: Any) -> Any:
        out = forward(*args, **inputs)
        calls.append((inputs, out[0]))
        return out

    pipeline.transformer.forward = record
    channels_last = name.startswith("cogvideox")
    guidance = {} if name == "hunyuan15-i2v" else {"guidance_scale": 1.0}
    pipeline(
        image=Image.fromarray(picture), prompt=[CAPTION], num_frames=frames, num_inference_steps=2,
        output_type="latent", latents=noise.transpose(1, 2) if channels_last else noise,
        **options_of(name, pipeline), **guidance,
    )  # fmt: skip
    inputs, expected = calls[0]
    video = torch.cat([torch.from_numpy(picture)[None], torch.zeros(frames - 1, HEIGHT, WIDTH, 3, dtype=torch.uint8)])
    video = video[None].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    conditions = FirstFrame(config, latents, text).of_videos(video)
    t = torch.full((1, noise.shape[2]), float(inputs["timestep"].max() + (1 if channels_last else 0)) / 1000)
    x, words = add_picture(noise, text([CAPTION]), conditions)
    with torch.no_grad():
        ours = backbone(x, t, **words)
    given = inputs["hidden_states"]
    assert torch.allclose(x, given.transpose(1, 2) if channels_last else given, atol=1e-5)
    assert torch.allclose(ours, expected.transpose(1, 2) if channels_last else expected, atol=1e-4)
    other, _ = add_picture(noise, text([CAPTION]), FirstFrame(config, latents, text).of_videos(-video))
    with torch.no_grad():
        assert not torch.allclose(ours, backbone(other, t, **words), atol=1e-3)  # the picture does something


@pytest.mark.parametrize("name", CONTINUE_PICTURES)
def test_a_lora_trained_on_first_frames_loads_in_the_pipeline_and_samples_the_same(name, folder, dataset, tmp_path):
    run = tmp_path / "run"
    train.train(config_of(name, folder(name), (str(dataset),), *LORA, "steps=1"), run)
    first = to_signed(torch.randint(0, 256, (1, 1, HEIGHT, WIDTH, 3), dtype=torch.uint8))
    trained = sample.Trained(run, "cpu")
    frames = max(trained.config.frame_counts)
    ours = trained.generate([CAPTION], frames, HEIGHT, WIDTH, sample.Guidance(1), 5, first)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder(name))
    plain = sampled(name, pipeline, first, frames)[:, :frames]
    if name == "hunyuan15-i2v":  # whose pipeline has no load_lora_weights (diffusers 0.42)
        pipeline.transformer.load_lora_adapter(str(run), weight_name="pytorch_lora_weights.safetensors")
    else:
        pipeline.load_lora_weights(str(run))
    theirs = sampled(name, pipeline, first, frames)[:, :frames]  # CogVideoX 1.5 decodes more
    assert (ours.int() - theirs.int()).abs().max() <= 1
    assert (plain.int() - theirs.int()).abs().max() > 1


def options_of(name: str, pipeline: Any) -> dict[str, int]:
    """Options of a pipeline's call for videos of HEIGHT x WIDTH. That of HunyuanVideo 1.5 chooses the size itself, near
    a square of `target_size`: here 32x64 of 16-pixel steps."""
    if name != "hunyuan15-i2v":
        return {"height": HEIGHT, "width": WIDTH}
    size = pipeline.video_processor.calculate_default_height_width(HEIGHT, WIDTH, pipeline.target_size)
    assert tuple(size) == (HEIGHT, WIDTH)
    return {}


def sampled(name: str, pipeline: Any, first: torch.Tensor, frames: int) -> torch.Tensor:
    """A pipeline's own video from a picture, (1, t, h, w, 3) uint8."""
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(
        image=Image.fromarray(to_bytes(first)[0, 0].numpy()), prompt=[CAPTION], num_frames=frames,
        num_inference_steps=1, generator=torch.Generator().manual_seed(5), output_type="pt",
        **options_of(name, pipeline),
    ).frames  # fmt: skip
    return (video.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2)


def test_encoded_first_frames_give_the_losses_of_the_clips(folder, dataset, tmp_path):
    """A clip here has room for one window, so that both runs see the same frames; shards hold 16-bit floats."""
    options = (*LORA, "steps=2", "log_every=1", "caption_dropout=0.5")
    plain = train.train(config_of("wan-i2v", folder("wan-i2v"), (str(dataset),), *options), tmp_path / "plain")
    out = str(tmp_path / "latents")
    words = [f"base=diffusers:{folder('wan-i2v')}", *SMALL]
    assert encode.main([str(dataset), "--out", out, *words]) == 0
    cached = load_config(None, [words[0], "tokens=96", "device=cpu", "decay=constant", *options], [out])
    assert train.train(cached, tmp_path / "cached")["loss"] == pytest.approx(plain["loss"], rel=2e-3)
    mixed = load_config(None, [words[0], "device=cpu"], [out])
    encoding = tmp_path / "latents" / "encoding.json"
    encoding.write_text(encoding.read_text().replace('"first_frame": true', '"first_frame": false'))
    with pytest.raises(DataError, match=r"were not encoded for .* which takes the first frame"):
        train.train(mixed, tmp_path / "mixed")


@pytest.mark.parametrize("name", ["wan-i2v", "cogvideox-i2v"])  # the second takes one size alone
def test_a_run_that_continues_pictures_samples_and_is_evaluated(name, folder, dataset, tmp_path, capsys):
    run, picture = tmp_path / "run", tmp_path / "picture.png"
    train.train(config_of(name, folder(name), (str(dataset),), *LORA, "steps=1"), run)
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    words = [
        str(run),
        *["--prompt", CAPTION] * 2,
        "--device",
        "cpu",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "out.mp4"),
    ]
    assert sample.main([*words, "--image", str(picture)]) == 0
    assert sample.main(words) == 2
    assert "continues one picture: give --image" in capsys.readouterr().err
    command = [str(run), "--split", "train", "--clips", "1", "--steps", "2", "--device", "cpu"]
    assert evaluate.main(command) == 0


def test_shapes_that_a_model_of_pictures_cannot_take_are_said_before_the_first_step(folder, dataset, tmp_path, capsys):
    def message(name: str, *options: str) -> str:
        words = [str(dataset), "--out", str(tmp_path / "run"), f"base=diffusers:{folder(name)}", *SMALL, "tokens=900"]
        assert train.main([*words, "steps=1", *options]) == 2
        return capsys.readouterr().err

    assert "single frames teach it nothing" in message("wan-i2v", "image_ratio=0.5")
    assert "takes only frames of 32x64, not 9x64x112" in message("cogvideox-i2v", "resolutions=80")
