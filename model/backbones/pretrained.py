"""What a `base: diffusers:FOLDER_OR_REPO` is: its family, and the options of a run that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from model.backbones.families import cogvideox, hunyuan, hunyuan15, ltx, pixart, stable_diffusion, wan
from model.backbones.families.base import Family, Settings
from model.errors import BaseError
from model.objective import LINEAR, Path, scheduled

FAMILIES: tuple[Family, ...] = (
    *(wan.FAMILY, wan.FROM_PICTURE, ltx.FAMILY, hunyuan.FAMILY, hunyuan15.FAMILY),
    *(hunyuan15.FROM_PICTURE, cogvideox.FAMILY, cogvideox.FROM_PICTURE),
    *(*stable_diffusion.FAMILIES, *pixart.FAMILIES),
)


@dataclass(frozen=True)
class Base:
    """A pipeline in diffusers' folder format. path: folder or hub repository; index, transformer, scheduler: its
    configurations."""

    path: str
    family: Family
    index: Settings
    transformer: Settings
    scheduler: Settings

    def component(self, expert: str | None) -> str:
        """Return the name of the pipeline's part that is trained, which is also its folder."""
        return "transformer_2" if expert == "low" else self.family.component

    @property
    def boundary(self) -> float | None:
        """Time above which the first of two experts predicts; None for a model of one transformer."""
        return self.index.get("boundary_ratio")


def read_base(option: str, expert: str | None = None) -> Base:
    """Read the configurations of `diffusers:FOLDER_OR_REPO`. Raises BaseError when it is no pipeline of a known family,
    or `expert` (high, low or empty; None for whichever) does not fit it."""
    diffusers = load_diffusers()
    prefix, _, path = option.partition(":")
    if prefix != "diffusers" or not path:
        raise BaseError(f"base={option}: write diffusers:FOLDER or diffusers:REPO")
    try:
        index = dict(diffusers.DiffusionPipeline.load_config(path))
    except (OSError, ValueError) as error:
        raise BaseError(f"{path} is not a pipeline that diffusers can read: {first_line(error)}") from error
    name = index.get("_class_name")
    family = next((family for family in FAMILIES if name in family.pipelines), None)
    if family is None:
        names = ", ".join(name for family in FAMILIES for name in family.pipelines)
        raise BaseError(f"{path} is a {name}; training works on {names}")
    experts = index.get("boundary_ratio") is not None
    if expert is not None and experts != bool(expert):
        wanted = "set expert=high or expert=low: one is trained at a time" if experts else "leave expert out"
        raise BaseError(f"{path} has {'two transformers' if experts else 'one transformer'}; {wanted}")
    subfolder = "transformer_2" if expert == "low" else family.component
    try:
        model = getattr(diffusers, family.transformer).load_config(path, subfolder=subfolder)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.load_config(path, subfolder="scheduler")
    except (OSError, ValueError) as error:
        raise BaseError(f"{path} is not whole: {first_line(error)}") from error
    if model.get("_class_name") != family.transformer:
        raise BaseError(f"{path} has a {model.get('_class_name')}, not the {family.transformer} of a {name}")
    if reason := family.unsupported(model):
        raise BaseError(f"{path} cannot be trained on: {reason}")
    return Base(path, family, index, model, scheduler)


def default_options(option: str, expert: str) -> dict[str, Any]:
    """Return the options of a run that follow from its base, where nothing else is set. Raises BaseError."""
    base = read_base(option, expert)
    family = base.family
    fixed_shift = base.scheduler.get("flow_shift") or base.scheduler.get("shift") or 0.0
    shift = 0.0 if base.scheduler.get("use_dynamic_shifting") else fixed_shift  # 0: by the number of tokens
    options: dict[str, Any] = {"latents": option, "text": option, "text_tokens": family.text_tokens}
    options |= {"patch": family.patch(base.transformer), "time_shift": float(shift)}
    options |= {} if family.time_per_frame(base.index) else {"clean_frames": 0.0}
    if base.boundary is not None:
        options["time_range"] = [base.boundary, 1.0] if expert == "high" else [0.0, base.boundary]
    return options | dict(family.options)


def check_options(option: str, expert: str, values: dict[str, Any]) -> None:
    """Raise BaseError when a run's options contradict its base."""
    base = read_base(option, expert)
    fixed = {"patch": base.family.patch(base.transformer)}
    for key, value in fixed.items():
        if values[key] != value:
            raise BaseError(
                f"{key}={values[key]}: {base.path} has {key}={value}; leave the option out, or encode for this base"
            )
    if values["text_tokens"] > base.family.text_tokens:
        raise BaseError(
            f"text_tokens={values['text_tokens']}: {base.path} encodes {base.family.text_tokens} tokens at most"
        )
    if (base.family.padding_counts or base.family.fixed_tokens) and values["text_tokens"] != base.family.text_tokens:
        raise BaseError(f"text_tokens={values['text_tokens']}: {base.path} needs all {base.family.text_tokens}")
    frame_patch = base.family.frame_patch(base.transformer)
    stride = cogvideox.TIME_STRIDE
    if odd := [count for count in values["frame_counts"] if (1 + (count - 1) // stride) % frame_patch]:
        raise BaseError(f"frame_counts={odd}: {base.path} takes an even number of latent frames, as of 5, 13 ... 85")
    if values["clean_frames"] and not base.family.time_per_frame(base.index):
        raise BaseError(f"clean_frames: {base.path} has one time for all frames of a sample; set clean_frames=0")
    if values["init_from"]:
        raise BaseError("init_from is for models without a base; leave it out")
    if values["train_only"] == "temporal" and base.family.inflation is None:
        raise BaseError(f"train_only=temporal: {base.path} is a model of videos; use lora_rank to train a part of it")
    if values["lora_rank"] and base.family.inflation is not None:
        raise BaseError(f"lora_rank: {base.path} is a model of images, whose new temporal layers are trained in full")


def base_path(base: Base) -> Path:
    """Return the objective's path, with the scheduler's own noise levels where it has discrete steps."""
    if base.family.options.get("path") != "scheduler":
        return LINEAR
    diffusers = load_diffusers()
    scheduler = getattr(diffusers, base.scheduler["_class_name"]).from_config(base.scheduler)
    targets = {"v_prediction": "v", "epsilon": "epsilon"}
    prediction = scheduler.config.get("prediction_type")
    if prediction not in targets:
        raise BaseError(f"{base.path} predicts {prediction}; training works on {', '.join(targets)}")
    return scheduled(scheduler.alphas_cumprod, targets[prediction])  # type: ignore[arg-type]


def load_transformer(base: Base, expert: str, dtype: torch.dtype) -> Any:
    """Load the transformer's weights. Raises BaseError."""
    transformer_class = getattr(load_diffusers(), base.family.transformer)
    try:
        return transformer_class.from_pretrained(base.path, subfolder=base.component(expert), dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseError(f"cannot load the transformer of {base.path}: {first_line(error)}") from error


def make_pipeline(base: Base, expert: str, transformer: Any, parts: dict[str, Any]) -> Any:
    """Return the base's pipeline with a trained transformer and components that are loaded already; the rest, as its
    scheduler, is loaded. Raises BaseError."""
    inflation = base.family.inflation
    pipeline_class = getattr(load_diffusers(), inflation.pipeline if inflation else base.index["_class_name"])
    absent = {"motion_adapter": None} if inflation else {}  # its layers are in the transformer
    try:
        return pipeline_class.from_pretrained(base.path, **parts, **absent, **{base.component(expert): transformer})
    except (OSError, ValueError) as error:
        raise BaseError(f"cannot load the pipeline {base.path}: {first_line(error)}") from error


def load_diffusers() -> Any:
    """Import diffusers. Raises BaseError when it is not installed."""
    from filters.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    try:
        import diffusers
    except ImportError as error:
        raise BaseError("this needs diffusers and peft: pip install 'clipmill[diffusers]'") from error
    diffusers.utils.logging.disable_progress_bar()  # among the lines of a run
    return diffusers


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
