"""The backbone of a run: a new transformer of ours, or a model of diffusers with or without LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.backbones.adapter import DiffusersBackbone
from model.backbones.base import Layout
from model.backbones.families.base import Conditions
from model.backbones.lora import add_lora, lora_file, merge_lora
from model.backbones.pretrained import Base, base_path, load_diffusers, load_transformer, read_base
from model.errors import BaseError, CheckpointError
from model.network.dit import SIZES, DiT
from model.objective import COSINE, LINEAR
from model.objective import Path as ObjectivePath

if TYPE_CHECKING:
    from model.config import Config


def make_backbone(
    config: Config, channels: int, layout: Layout, stride: tuple[int, int, int], weights: bool = True
) -> DiT | DiffusersBackbone:
    """Return the backbone of a run before training, on the CPU. channels, stride: of the latents; layout: of the words.
    weights=False reads no weights of a base, for use on the meta device. Raises BaseError."""
    if not config.base:
        return DiT(SIZES[config.size], channels, layout["text"][1], config.patch, config.attention)
    base = read_base(config.base, config.expert)
    if (wanted := base.family.channels(base.transformer)) != channels:
        raise BaseError(f"{base.path} takes latents of {wanted} channels, these have {channels}")
    temporal = config.train_only == "temporal"
    halved = config.precision == config.base_precision == "bf16" and (config.lora_rank > 0 or temporal)
    dtype = torch.bfloat16 if halved else torch.float32
    if weights:
        transformer = load_transformer(base, config.expert, dtype)
    else:
        transformer = getattr(load_diffusers(), base.family.transformer).from_config(base.transformer)
        _cast_weights(transformer, dtype)
    if base.family.inflation:
        transformer = base.family.inflation.inflate(transformer, max(config.frame_counts))
        _train(transformer, base.family.inflation.temporal if temporal else "")
    elif config.lora_rank:
        targets = config.lora_targets or base.family.lora_targets
        add_lora(transformer, config.lora_rank, lora_alpha(config), config.lora_dropout, targets)
    else:
        transformer.requires_grad_(True)
    return DiffusersBackbone(transformer.train(), base.family, Conditions(config.clean_frames > 0, config.fps, stride))


def make_path(config: Config) -> ObjectivePath:
    """Return the path of a run's objective. Raises BaseError."""
    if config.path == "scheduler":
        if not config.base:
            raise BaseError("path=scheduler: it is the noise schedule of a base; set base, or path=linear or cosine")
        return base_path(read_base(config.base, config.expert))
    return LINEAR if config.path == "linear" else COSINE


def load_trained(model: DiT | DiffusersBackbone, weights: Mapping[str, Tensor]) -> None:
    """Set the weights that a checkpoint holds, in place. Raises CheckpointError when they are of another model."""
    own = dict(model.named_parameters())
    expected = own if isinstance(model, DiT) else {name: p for name, p in own.items() if p.requires_grad}
    wrong = [name for name, p in weights.items() if name not in expected or expected[name].shape != p.shape]
    if problems := [*sorted(expected.keys() - weights.keys()), *wrong]:
        raise CheckpointError(f"the checkpoint is of another model: {', '.join(problems[:3])} do not fit")
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def lora_alpha(config: Config) -> float:
    return config.lora_alpha or float(config.lora_rank)


def export(config: Config, weights: Mapping[str, Tensor], out: Path) -> str:
    """Write a run's weights as diffusers loads them and return a line that says how: a LoRA file, temporal layers, or
    with `lora_merge` or with all weights trained a transformer folder."""
    base: Base = read_base(config.base, config.expert)
    how = f"{base.index['_class_name']}.from_pretrained({base.path!r}"
    if config.lora_rank:
        file = lora_file(weights, config.lora_rank, lora_alpha(config), out)
        second = ", load_into_transformer_2=True" if config.expert == "low" else ""
        pipeline_class = getattr(load_diffusers(), base.index["_class_name"])
        if hasattr(pipeline_class, "load_lora_weights"):
            line = f"{file}: load it with {how}).load_lora_weights({str(out)!r}{second})"
        else:
            line = f"{file}: load it with {how}).transformer.load_lora_adapter({str(out)!r}, weight_name={file.name!r})"
        if not config.lora_merge:
            return line
    model = make_backbone(config, base.family.channels(base.transformer), {}, (1, 1, 1))
    assert isinstance(model, DiffusersBackbone)
    load_trained(model, weights)
    if config.lora_rank:
        merge_lora(model.transformer)
    if base.family.inflation and config.train_only == "temporal":
        return base.family.inflation.save(model.transformer, base.path, out)
    name = base.component(config.expert)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    _cast_weights(model.transformer, dtype)
    model.transformer.save_pretrained(out / name)
    loader = f"{type(model.transformer).__name__}.from_pretrained({str(out / name)!r})"
    return f"{out / name}: load it with {how}, {name}={loader})"


def _train(transformer: Any, part: str) -> None:
    """Train the parameters with `part` in their names, in fp32, and freeze the others."""
    for name, module in transformer.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            trained = part in f".{name}.{key}"
            new = torch.nn.Parameter(parameter.detach().float() if trained else parameter.detach(), trained)
            module.register_parameter(key, new)


def _cast_weights(transformer: Any, dtype: torch.dtype) -> None:
    """Replace the weights as loading with `dtype=dtype` does, which leaves some modules in fp32."""
    fp32 = transformer._keep_in_fp32_modules or ()
    for name, module in transformer.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if not any(part in f"{name}.{key}".split(".") for part in fp32):
                module.register_parameter(key, torch.nn.Parameter(parameter.detach().to(dtype)))
