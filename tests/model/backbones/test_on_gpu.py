"""The commands on a GPU, with tiny models of the real classes and with the project's own."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from tiny_models.tiny_image_pipelines import IMAGE_PIPELINES
from tiny_models.tiny_pipelines import CONTINUE_PICTURES, PIPELINES, SMALL

from model import encode, evaluate, sample, train
from model.config import load_config
from model.errors import DeviceError
from model.training import checkpoint

pytestmark = pytest.mark.gpu
BF16 = [word for word in SMALL if not word.startswith(("device", "precision"))]
OWN = ["resolutions=48", "frame_counts=1,9", "fps=8", "tokens=256", "latent_channels=8", "text_tokens=8", "size=tiny"]


def goes_through(run, capsys, *options):
    """Sample from a run and evaluate it by the commands."""
    words = [str(run), "--prompt", "a red dog runs", "--out", str(run / "dog.mp4"), "--steps", "2", *options]
    assert sample.main(words) == 0, capsys.readouterr().err
    assert (run / "dog.mp4").stat().st_size > 0
    assert evaluate.main([str(run), "--split", "train", "--clips", "1", "--steps", "2"]) == 0, capsys.readouterr().err
    assert json.loads((run / "evaluation" / "scores.json").read_text())["loss"] > 0


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", [*PIPELINES, *CONTINUE_PICTURES, *IMAGE_PIPELINES])
def test_a_base_is_trained_in_bf16_sampled_and_evaluated(name, kind, folder, dataset, tmp_path, capsys):
    if kind == "lora" and name in IMAGE_PIPELINES:
        pytest.skip("image models are trained by their temporal layers")
    adapter = ["lora_rank=4", "lora_alpha=8"] if kind == "lora" else []
    words = [f"base=diffusers:{folder(name)}", *BF16, *adapter, "steps=2", "tokens=96"]
    words += ["expert=low"] if "experts" in name else []
    words += ["compile=true"] if name == "wan" else []
    words += ["frame_counts=5"] if "1.5" in name else []
    picture = ["--image", str(tmp_path / "dog.png")] if name in CONTINUE_PICTURES else []
    cv2.imwrite(str(tmp_path / "dog.png"), np.full((36, 64, 3), 128, np.uint8))
    train.train(load_config(None, words, [str(dataset)]), tmp_path / "run")
    goes_through(tmp_path / "run", capsys, *picture)


def test_an_own_model_is_trained_compiled_from_encoded_latents(dataset, tmp_path, capsys):
    assert encode.main([str(dataset), "--out", str(tmp_path / "latents"), *OWN]) == 0, capsys.readouterr().err
    words = [*OWN, "compile=true", "precision=bf16", "steps=4"]
    train.train(load_config(None, words, [str(tmp_path / "latents")]), tmp_path / "run")
    goes_through(tmp_path / "run", capsys)


def test_a_step_without_memory_ends_a_run_with_one_line_and_the_next_one_goes_on(dataset, tmp_path, monkeypatch):
    words = [*OWN, "precision=bf16"]
    encode_batch = train.encode_batch
    train.train(load_config(None, [*words, "steps=2"], [str(dataset)]), tmp_path / "run")

    def without_memory(*args):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-6)
        return encode_batch(*args)

    longer = load_config(None, [*words, "steps=3"], [str(dataset)])
    monkeypatch.setattr(train, "encode_batch", without_memory)
    with pytest.raises(DeviceError, match="out of memory: lower tokens"):
        train.train(longer, tmp_path / "run")
    monkeypatch.undo()
    torch.cuda.set_per_process_memory_fraction(1.0)
    train.train(longer, tmp_path / "run")
    assert checkpoint.latest(tmp_path / "run").name == "step-0000003"
