"""Every option of a training run, in one place: a preset for the device, a YAML file, then `key=value` on top."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config.options import Amount, Count, override, parse_section, typed
from pipeline.config.options import OptionError as ConfigError
from pipeline.storage.store import Store


@dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ()  # datasets; PATH or PATH@WEIGHT, weights in clips drawn (default: all its clips once)
    seed: int = 0

    # the model
    size: str = "tiny"  # a name in model.dit.SIZES
    attention: Literal["full", "factorised"] = "full"  # factorised: space then time
    patch: Count = 2  # latent pixels a token, in height and in width
    init_from: str = ""  # a run to start from: an image model is inflated to a video model
    train_only: Literal["all", "temporal"] = "all"  # temporal: only the temporal attention of a factorised model

    # what it sees
    latents: str = "pca"  # pixel, pca, vae:RUN, or diffusers:FOLDER_OR_REPO
    latent_channels: Count = 16  # of pca
    text: str = "minilm"  # minilm, or hf:FOLDER_OR_REPO (T5, UMT5, CLIP ...)
    text_tokens: Count = 48  # longer captions are cut
    resolutions: tuple[Count, ...] = (96,)  # square root of a frame's pixels; a clip takes the largest it fills
    frame_counts: tuple[Count, ...] = (5, 9)  # a clip takes the largest it is long enough for
    fps: Amount = 5.0  # at which clips are sampled
    image_ratio: float = 0.0  # share of the samples that are single frames of videos
    workers: int = 0  # processes that load and decode; 0 decodes between steps
    memory_mb: float = 1000.0  # a process that loads may hold this much of decoded clips, if that is all of them
    shuffle_shards: int = 0  # 0 shuffles everything; n shuffles within n shards at a time (for remote shards)
    cache_gb: float = 50.0  # of the machine's temporary folder, for copies of remote shards

    # the objective
    path: Literal["linear", "cosine"] = "linear"  # rectified flow, or DDPM in v-prediction
    time_mean: float = 0.0  # of the logit-normal distribution of time
    time_std: float = 1.0
    shift_tokens: Count = 512  # time moves towards noise by the square root of tokens over this
    caption_dropout: float = 0.1
    clean_frames: float = 0.1  # share of samples whose first frames are given (image-to-video, extension)

    # steps
    steps: Count = 600
    max_seconds: float = 0.0  # stop and save after this long; 0 is no limit
    tokens: Count = 864  # latent tokens a micro-batch, at most
    micro_batches: Count = 1  # a step, over all ranks
    lr: Amount = 3e-3
    warmup: int = 20
    decay: Literal["constant", "cosine"] = "cosine"  # the learning rate after warm-up; cosine goes to a tenth
    beta2: float = 0.95
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    adaptive_clip: bool = False  # clip to the running mean of the norm plus three deviations, when that is lower
    ema: float = 0.999

    # the machine
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the blocks; weights, loss and moving average are fp32
    parallel: Literal["fsdp", "ddp"] = "fsdp"  # with more than one process
    compile: bool = False  # each block by torch.compile
    recompute: int = 0  # every n-th block keeps no activations; 0 keeps all
    attention_kernel: Literal["auto", "cudnn", "flash"] = "auto"  # of CUDA
    deterministic: bool = False  # slower kernels, bit-identical resume on a GPU

    # what is written
    log_every: Count = 10
    save_every: Count = 200
    keep: Count = 2  # checkpoints


CUDA_PRESET: Mapping[str, Any] = {
    "size": "B",
    "latent_channels": 32,
    "resolutions": (256,),
    "frame_counts": (1, 33),
    "fps": 16.0,
    "workers": 8,
    "steps": 100_000,
    "shift_tokens": 1024,
    "tokens": 32_768,
    "lr": 2e-4,
    "warmup": 1000,
    "decay": "constant",
    "ema": 0.9999,
    "precision": "bf16",
    "compile": True,
    "save_every": 1000,
}

# A run may be resumed with other values of these; everything else is part of what the run is.
FREE = {"data", "steps", "max_seconds", "workers", "cache_gb", "device", "parallel", "compile", "recompute"}
FREE |= {"memory_mb", "attention_kernel", "deterministic", "log_every", "save_every", "keep"}


@dataclass(frozen=True)
class Encoding:
    """encoding.json of a dataset of latents: what `clipmill encode` made them with. A run on them uses the same."""

    source: str  # the dataset of clips
    encoder: Mapping[str, Any]  # that scored it: the recipe's
    latents: str  # id
    stride: tuple[int, int, int]  # theirs
    text: str  # id of the captions' encoder
    text_width: int
    options: Mapping[str, Any]  # the config's values of ENCODED
    shards: Mapping[str, int]  # by split


ENCODED = ("latents", "latent_channels", "text", "text_tokens", "resolutions", "frame_counts", "fps", "patch")


def read_encoding(datasets: Sequence[str]) -> Encoding | None:
    """Of datasets of latents, which must have been made with the same; None for datasets of clips. Raises
    ConfigError."""
    found: list[Encoding | None] = []
    for dataset in datasets:
        store = Store(split_weight(dataset)[0])
        there = store.exists("encoding.json")
        found.append(Encoding(**json.loads(store.read("encoding.json"))) if there else None)
    made = {json.dumps([e.latents, e.text, {**e.options, "latents": ""}], sort_keys=True) if e else "" for e in found}
    if len(made) > 1:
        raise ConfigError(f"{' and '.join(datasets)} were not encoded with the same latents, texts and options")
    return found[0] if found else None


def scored_by(dataset: str) -> dict[str, Any]:
    """The encoder in the recipe of a dataset of clips; empty where it has no dataset.json."""
    store = Store(dataset)
    there = store.exists("dataset.json")
    return dict(json.loads(store.read("dataset.json"))["recipe"]["encoder"]) if there else {}


def check_encoding(config: Config, encoding: Encoding | None) -> None:
    """Raises ConfigError when a run asks for other latents, texts or shapes than its datasets hold."""
    asked, made = to_dict(config), encoding.options if encoding else {}
    if wrong := [f"{key}={made[key]}, not {asked[key]}" for key in made if made[key] != asked[key]]:
        raise ConfigError(f"the latents were encoded with {', '.join(wrong)}; leave that out, or encode again")


def split_weight(dataset: str) -> tuple[str, float | None]:
    """PATH@WEIGHT into its parts."""
    path, at, weight = dataset.rpartition("@")
    try:
        return (path, float(weight)) if at else (dataset, None)
    except ValueError:
        return dataset, None


def load_config(
    file: str | None = None,
    overrides: Sequence[str] = (),
    data: Sequence[str] = (),
    cuda: bool = False,
    preset: Mapping[str, Any] | None = None,
) -> Config:
    """The device's preset, or `preset` instead; what encoded datasets fix; then the YAML `file`, then `key=value`.
    Raises ConfigError."""
    values = dict(preset if preset is not None else CUDA_PRESET if cuda else {})
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
    return from_dict(values)


def from_dict(values: Mapping[str, Any]) -> Config:
    """A checked Config. Raises ConfigError."""
    config: Config = typed(Config, values)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values, as they go into a run's config.json."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def changed(old: Config, new: Config) -> list[str]:
    """Options that differ and may not, between a run and its continuation."""
    return [k for k, v in to_dict(old).items() if k not in FREE and v != to_dict(new)[k]]
