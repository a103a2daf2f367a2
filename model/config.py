"""Every option of a training run: a preset (presets.py), then a YAML file, then `key=value`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.encoding import read_encoding
from model.presets import CUDA, PRESETS
from pipeline.config.options import (
    Amount,
    Count,
    NonNegative,
    Share,
    WholeNumber,
    nearest,
    override,
    parse_section,
    typed,
)
from pipeline.config.options import OptionError as ConfigError


@dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ()  # datasets; PATH or PATH@WEIGHT, weights in clips drawn (default: all its clips once)
    seed: int = 0

    # the model: a new transformer ...
    size: Literal["tiny", "S", "B", "L", "XL", "XXL"] = "tiny"  # of model.network.dit.SIZES
    attention: Literal["full", "factorised"] = "full"  # factorised: space then time
    patch: Count = 2  # latent pixels a token, in height and in width
    init_from: str = ""  # a run to start from; an image model is inflated to a video model
    train_only: Literal["all", "temporal"] = "all"  # temporal: attention along time, of a factorised or inflated model

    # ... or one of diffusers, which decides latents, text, patch, path and the defaults of time
    base: str = ""  # diffusers:FOLDER_OR_REPO of a pipeline, of a video model or of an image model to inflate
    expert: Literal["", "high", "low"] = ""  # of a base with two transformers, for high and for low noise
    base_precision: Literal["bf16", "fp32"] = "bf16"  # of weights that are not trained, if `precision` is bf16
    quantise: Literal["", "int8", "nf4"] = ""  # of the frozen weights under a LoRA while training, by torchao
    lora_rank: WholeNumber = 0  # 0 trains all weights of the base
    lora_alpha: NonNegative = 0.0  # the LoRA's update is multiplied by alpha / rank; 0 is rank
    lora_dropout: Share = 0.0
    lora_targets: tuple[str, ...] = ()  # ends of layer names, e.g. [to_q, to_v]; default: attention and MLP
    lora_merge: bool = False  # also write the base with the LoRA merged, at the end

    # what it sees
    latents: str = "pca"  # pixel, pca, pca:RUN, or diffusers:FOLDER_OR_REPO
    latent_channels: Count = 16  # of pca
    text: str = "minilm"  # minilm, hf:FOLDER_OR_REPO (T5, UMT5, CLIP ...), or diffusers:FOLDER_OR_REPO of a pipeline
    text_tokens: Count = 48  # longer captions are cut
    resolutions: tuple[Count, ...] = (96,)  # square root of a frame's pixels; a clip takes the largest it fills
    frame_counts: tuple[Count, ...] = (5, 9)  # a clip takes the largest it is long enough for
    fps: Amount = 5.0  # at which clips are sampled
    image_ratio: Share = 0.0  # share of the samples that are single frames of videos
    workers: WholeNumber = 0  # processes that load and decode; 0 decodes between steps
    memory_mb: NonNegative = 1000.0  # each loading process keeps decoded clips in memory if all of them fit into this
    shuffle_shards: WholeNumber = 0  # 0 shuffles everything; n shuffles within n shards at a time (for remote shards)
    cache_gb: NonNegative = 50.0  # of the machine's temporary folder, for copies of remote shards

    # the objective
    path: Literal["linear", "cosine", "scheduler"] = "linear"  # rectified flow, DDPM in v-prediction, or the base's own
    time: Literal["logit_normal", "uniform"] = "logit_normal"  # distribution of time before the shift
    time_mean: float = 0.0  # of the logit-normal distribution
    time_std: Amount = 1.0
    time_range: tuple[float, float] = (0.0, 1.0)  # times to train on: an expert's part
    time_shift: NonNegative = 0.0  # factor by which time moves towards noise; 0: sqrt(tokens / shift_tokens)
    shift_tokens: Count = 512
    caption_dropout: Share = 0.1
    clean_frames: Share = 0.1  # share of samples whose first frames are clean (image-to-video, extension)

    # steps
    steps: Count = 600
    max_seconds: NonNegative = 0.0  # stop and save after this time; 0 is no limit
    tokens: Count = 864  # latent tokens a micro-batch, at most
    micro_batches: Count = 1  # a step, over all ranks
    lr: Amount = 3e-3
    warmup: WholeNumber = 20
    decay: Literal["constant", "cosine"] = "cosine"  # the learning rate after warm-up; cosine goes to a tenth
    beta2: Share = 0.95
    weight_decay: NonNegative = 0.01
    clip_norm: Amount = 1.0
    adaptive_clip: bool = False  # clip to the running mean of the norm plus three deviations, when that is lower
    ema: Share = 0.999  # decay of the moving average that is sampled; 0 takes the weights as they are

    # the machine
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the blocks; weights, loss and moving average are fp32
    parallel: Literal["fsdp", "ddp"] = "fsdp"  # with more than one process
    compile: bool = False  # each block by torch.compile
    recompute: WholeNumber = 0  # every n-th block keeps no activations; 0 keeps all
    attention_kernel: Literal["auto", "cudnn", "flash"] = "auto"  # of CUDA
    deterministic: bool = False  # slower kernels, bit-identical resume on a GPU

    # what is written
    log_every: Count = 10
    save_every: Count = 200
    keep: Count = 2  # checkpoints


# A run may be resumed with other values of these; everything else is part of what the run is.
FREE = {"data", "steps", "max_seconds", "workers", "cache_gb", "device", "parallel", "compile", "recompute"}
FREE |= {"memory_mb", "attention_kernel", "deterministic", "log_every", "save_every", "keep", "lora_merge"}


def load_config(
    file: str | None = None,
    overrides: Sequence[str] = (),
    data: Sequence[str] = (),
    cuda: bool = False,
    preset: str | None = None,
) -> Config:
    """Return the preset (by default the device's), what encoded datasets fix, the YAML `file` and `key=value`, each
    over the one before; and under all of them, what a base decides. Raises ConfigError and BaseError."""
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"no preset called {preset!r}{nearest(preset, PRESETS)}")
    values = dict(PRESETS[preset] if preset is not None else CUDA if cuda else {})
    if encoding := read_encoding(data):
        values |= encoding.options
    if file:
        try:
            values |= parse_section(Path(file).read_text(), file)
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from error
    override(values, overrides)
    if data:
        values["data"] = tuple(data)
    if values.get("base"):
        from model.backbones.pretrained import check_options, default_options

        base, expert = str(values["base"]), str(values.get("expert", ""))
        own_model = ("size", "attention", "shift_tokens")  # of the device's preset
        values = default_options(base, expert) | {k: v for k, v in values.items() if k not in own_model}
        config = from_dict(values)
        check_options(base, expert, to_dict(config))
        return config
    return from_dict(values)


def from_dict(values: Mapping[str, Any]) -> Config:
    """Return a checked Config. Raises ConfigError."""
    config: Config = typed(Config, values)
    if (config.lora_rank or config.expert) and not config.base:
        raise ConfigError("lora_rank and expert need a base, e.g. base=diffusers:FOLDER")
    if config.quantise and not config.lora_rank:
        raise ConfigError("quantise is for frozen weights: set lora_rank")
    if len(config.time_range) != 2 or not 0 <= config.time_range[0] < config.time_range[1] <= 1:
        raise ConfigError(f"time_range={config.time_range}: two numbers, 0 <= from < to <= 1")
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Return plain values, as they go into a run's config.json."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def changed(old: Config, new: Config) -> list[str]:
    """Return the options that differ and may not, between a run and its continuation."""
    return [k for k, v in to_dict(old).items() if k not in FREE and v != to_dict(new)[k]]
