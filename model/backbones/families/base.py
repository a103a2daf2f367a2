"""What differs between the families of models that diffusers knows; each other file of this folder has one `Family`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from model.backbones.base import Words

Settings = Mapping[str, Any]  # of a model_index.json, a config.json or a scheduler_config.json
TIMESTEPS = 1000  # t = 1 is this timestep, in all families
FLOW: Settings = {"path": "linear", "time": "logit_normal"}  # options of a run on a rectified flow
DIFFUSION: Settings = {"path": "scheduler", "time": "uniform", "time_shift": 1.0}  # and on discrete steps


@dataclass(frozen=True)
class Conditions:
    """What a prediction depends on besides latents, times and words. time_per_frame: whether frames of a sample may
    have different times; fps: frames a second of the videos; stride: of the latents."""

    time_per_frame: bool
    fps: float
    stride: tuple[int, int, int]


@dataclass(frozen=True)
class Inflation:
    """How a model of images becomes a model of videos that computes the same at first.

    inflate: the image model and the most frames to the video model. temporal: part of the names of the parameters that
    it adds. empty: the video model to one without weights, on the meta device. save: writes the temporal layers to a
    folder and returns how they are loaded; video model, path of the pipeline, folder. pipeline: diffusers' class that
    samples videos; "" where our sampler does. guidance: of our sampler.
    """

    inflate: Callable[[Any, int], Any]
    temporal: str
    empty: Callable[[Any], Any]
    save: Callable[[Any, str, Path], str]
    pipeline: str = ""
    guidance: float = 4.5


@dataclass(frozen=True)
class Picture:
    """How a model that continues a picture takes it.

    channels: of latents (latents/hub.py), pictures (b, 3, 1, h, w) in [-1, 1] and the number of frames of the video:
    what follows the channels of the noisy latents, (b, c, t', h', w'). embed: of the pipeline and pictures as PIL
    images: further inputs of the transformer, by the names of its arguments. size: of a configuration: the only height
    and width of latents that the transformer has positions for; None: any. size_options: of the pipeline, height and
    width of a video: options of the pipeline's call.
    """

    channels: Callable[[Any, Tensor, int], Tensor]
    embed: Callable[[Any, list[Any]], Words] = lambda pipeline, pictures: {}
    size: Callable[[Settings], tuple[int, int] | None] = lambda config: None
    size_options: Callable[[Any, int, int], dict[str, int]] = lambda pipeline, height, width: {
        "height": height,
        "width": width,
    }


def sample_options(scale: float | None, fps: float, tokens: int) -> dict[str, Any]:
    """Return options of a pipeline's call: guidance (None: the pipeline's own), frames a second, tokens of text."""
    return {"max_sequence_length": tokens} | ({} if scale is None else {"guidance_scale": scale})


def encode_vectors(pipeline: Any, caption: str, tokens: int) -> Words:
    """Return T5's or UMT5's vectors of a caption, those of the padding included."""
    vectors, *_ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=tokens)
    return {"encoder_hidden_states": vectors[0]}


def encode_masked(pipeline: Any, caption: str, tokens: int) -> Words:
    """Return T5's vectors of a caption, and which of them are not padding."""
    vectors, mask, *_ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=tokens)
    return {"encoder_hidden_states": vectors[0], "encoder_attention_mask": mask[0]}


def image_conditioned(config: Settings) -> str:
    """Return why a transformer with more input than output channels cannot be trained, or ""."""
    return "it is conditioned on images" if config["in_channels"] != config["out_channels"] else ""


@dataclass(frozen=True)
class Family:
    """The conventions of one family."""

    pipelines: tuple[str, ...]  # values of `_class_name` in model_index.json
    transformer: str  # class in diffusers
    blocks: tuple[str, ...]  # attributes of the transformer that are lists of blocks
    text_tokens: int  # that the pipeline encodes a prompt to, at most
    lora_targets: tuple[str, ...]  # ends of the names of the linear layers that get a LoRA
    predict: Callable[[Any, Tensor, Tensor, Words, Conditions], Tensor]  # transformer, x, t, words, conditions
    encode: Callable[[Any, str, int], Words]  # pipeline, caption, tokens: one caption as the pipeline encodes it
    layout: Callable[[Settings], Mapping[str, tuple[int | None, ...]]]  # shapes of an encoded caption; None: its tokens
    masked: str | None = None  # the word tensor that is 1 at tokens and 0 at padding; None: zero rows are padding
    padding_counts: bool = False  # whether the model reads the vectors of padding, so that none may be dropped
    fixed_tokens: bool = False  # whether the model takes captions of exactly `text_tokens`, padding included
    channels: Callable[[Settings], int] = lambda config: int(config["in_channels"])  # of the latents
    patch: Callable[[Settings], int] = lambda config: int(config["patch_size"])  # latent pixels a token, each side
    unsupported: Callable[[Settings], str] = lambda config: ""  # why a transformer cannot be trained, or ""
    speed_up: Callable[[Any], None] = lambda transformer: None  # make the forward pass faster, in place
    time_per_frame: Callable[[Settings], bool] = lambda index: False  # by model_index.json
    sample_options: Callable[[float | None, float, int], dict[str, Any]] = sample_options
    options: Mapping[str, Any] = field(default_factory=dict)  # defaults of the run's config
    text_needs: tuple[str, ...] = ()  # other parts without which the pipeline cannot be loaded to encode text
    frame_patch: Callable[[Settings], int] = lambda config: 1  # latent frames a token
    component: str = "transformer"  # name of the pipeline's part that is trained, and of its folder
    inflation: Inflation | None = None  # of a model of images
    picture: Picture | None = None  # of a model that continues a picture
