"""What of a backbone is held and how: quantised weights, the identity of text encoders, presets that fit."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models.tiny_pipelines import LORA, SMALL, save_pipeline

from model import sample, train
from model.backbones.adapter import DiffusersBackbone
from model.backbones.build import make_backbone
from model.backbones.quantise import bytes_saved, quantise_frozen
from model.config import ConfigError, load_config
from model.data.index import shape_table
from model.errors import BaseError
from model.presets import PRESETS
from model.text import describe_text


def test_the_id_of_text_encoders_changes_with_their_weights_and_not_with_their_place(folder, tmp_path):
    def text_of(path: Path) -> str:
        return describe_text(f"diffusers:{path}", 512)[0]

    copied = tmp_path / "copied"
    shutil.copytree(folder("wan"), copied)
    assert text_of(copied) == text_of(folder("wan"))
    weights = next((copied / "text_encoder").glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    assert weights.stat().st_size == next((folder("wan") / "text_encoder").glob("*.safetensors")).stat().st_size
    assert text_of(copied) != text_of(folder("wan"))


@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_a_lora_trains_beside_quantised_weights(how, dataset, tmp_path):
    """Wide enough for the blocks of NF4: 16,384 weights a layer."""
    pytest.importorskip("torchao")
    base = save_pipeline("wan-wide", tmp_path / "wide")
    run = tmp_path / "run"
    options = ("steps=2", f"quantise={how}", "recompute=1", "precision=bf16", "base_precision=fp32", *LORA)
    train.train(load_config(None, [f"base=diffusers:{base}", *SMALL, *options], [str(dataset)]), run)
    trained = sample.Trained(run, "cpu")
    assert isinstance(trained.network, DiffusersBackbone)
    exact = trained.network.transformer
    transformer = make_backbone(load_config(None, [f"base=diffusers:{base}", *LORA]), 16, {}, (4, 8, 8)).transformer
    weights = sum(p.numel() * p.element_size() for p in transformer.parameters())
    expected = weights - bytes_saved(transformer, how)
    quantise_frozen(transformer, how, torch.device("cpu"))
    assert expected < 0.75 * weights
    x, t = torch.randn(1, 16, 3, 4, 6), torch.full((1,), 600.0)
    words = torch.randn(1, 8, 32)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_" in name:
                parameter.copy_(dict(exact.named_parameters())[name])
        ours, theirs = transformer(x, t, words).sample, exact(x, t, words).sample
    assert 0 < float((ours - theirs).norm() / theirs.norm()) < (0.03 if how == "int8" else 0.3)


@pytest.mark.gpu
@pytest.mark.parametrize(("how", "share"), [("int8", 0.52), ("nf4", 0.28)])
def test_quantised_weights_take_less_of_a_gpu(how, share):
    pytest.importorskip("torchao")
    layers = {f"{i}": torch.nn.Linear(2048, 2048, bias=False) for i in range(8)}
    transformer = torch.nn.ModuleDict({"blocks": torch.nn.ModuleDict(layers)}).to(torch.bfloat16).requires_grad_(False)
    before = torch.cuda.memory_allocated()
    quantise_frozen(transformer, how, torch.device("cuda"))
    assert torch.cuda.memory_allocated() - before < share * 8 * 2 * 2048**2
    x = torch.randn(16, 2048, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    transformer["blocks"]["0"](x).square().mean().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_quantising_without_a_lora_or_without_its_library_is_refused(folder, monkeypatch):
    base = f"base=diffusers:{folder('wan')}"
    with pytest.raises(ConfigError, match="set lora_rank"):
        load_config(None, [base, "quantise=nf4"])
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(BaseError, match=r"needs torchao: pip install 'clipmill\[quantise\]'"):
        quantise_frozen(torch.nn.Linear(2, 2), "int8", torch.device("cpu"))


STRIDES = {"TI2V-5B": (4, 16, 16), "LTX": (8, 32, 32), "stable-diffusion": (1, 8, 8)}
PATCHES = {"LTX": 1, "v1-5": 8, "xl-base": 4}


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if "base" in preset])
def test_the_largest_sample_of_a_preset_fits_its_micro_batch_at_every_aspect(name):
    preset = PRESETS[name]
    stride = next((value for key, value in STRIDES.items() if key in preset["base"]), (4, 8, 8))
    patch = next((value for key, value in PATCHES.items() if key in preset["base"]), 2)
    frames, multiple = max(preset["frame_counts"]), (stride[1] * patch, stride[2] * patch)
    assert (frames - 1) % stride[0] == 0
    sizes = shape_table(preset["resolutions"][0], multiple) // np.array(multiple)
    largest = (1 + (frames - 1) // stride[0]) * int(sizes.prod(1).max())
    assert 0.8 * preset["tokens"] < largest <= preset["tokens"]
