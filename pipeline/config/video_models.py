"""Frame contracts: the frame rate and the frame counts that open video models are trained at, one row a model.

A temporal VAE encodes `multiple` frames into one latent frame, in most models after a single first frame, so a model
takes k * multiple + extra frames. Trainers drop clips with fewer frames than their smallest count, and some lose one
frame to rounding when they convert rates: clips are packed with one spare frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config.options import nearest
from pipeline.config.recipe import FrameOptions, PackOptions, RecipeError


@dataclass(frozen=True)
class VideoModel:
    """The training format of a family of models: `usual` frames in its authors' training and sampling; sides that are
    multiples of `pixels`; `size`, a common (width, height)."""

    fps: float
    multiple: int
    extra: int
    usual: int
    pixels: int
    size: tuple[int, int]
    source: str

    @property
    def least(self) -> int:
        """The smallest number of frames of a video."""
        return self.multiple + self.extra


MODELS: Mapping[str, VideoModel] = {
    "wan2.1": VideoModel(16, 4, 1, 81, 16, (832, 480), "Wan2.2 wan/configs, A14B too; diffusion-pipe models/wan.py"),
    "wan2.2-5b": VideoModel(24, 4, 1, 121, 32, (1280, 704), "Wan2.2 wan/configs, TI2V-5B"),
    "ltx": VideoModel(24, 8, 1, 121, 32, (768, 512), "LTX-2 packages/ltx-trainer/docs; DiffSynth-Studio, LTX-2"),
    "ltx-0.9": VideoModel(25, 8, 1, 121, 32, (768, 512), "LTX-Video 0.9; diffusion-pipe models/ltx_video.py"),
    "hunyuan": VideoModel(24, 4, 1, 129, 16, (960, 544), "HunyuanVideo; musubi-tuner docs/hunyuan_video.md"),
    "hunyuan-1.5": VideoModel(24, 4, 1, 121, 16, (848, 480), "HunyuanVideo-1.5 README"),
    "framepack": VideoModel(30, 36, 1, 73, 16, (640, 640), "musubi-tuner docs/dataset_config.md: N * 36 + 1"),
    "cogvideox": VideoModel(8, 8, 1, 49, 16, (720, 480), "CogVideo README: 8N + 1 frames, N <= 6"),
    "cogvideox-1.5": VideoModel(16, 16, 1, 81, 16, (1360, 768), "CogVideo README: 16N + 1 frames, N <= 10"),
    "mochi": VideoModel(30, 6, 1, 37, 16, (848, 480), "mochi demos/fine_tuner/README.md: 6n + 1 frames up to 85"),
    "skyreels-v2": VideoModel(24, 4, 1, 97, 16, (960, 544), "SkyReels-V2 README; diffusion-pipe models/wan.py"),
    "cosmos-predict2": VideoModel(16, 93, 0, 93, 16, (1280, 704), "cosmos-predict2 documentation: num_frames=93"),
    "minimax-h3": VideoModel(24, 34, 0, 68, 32, (768, 512), "diffusion-pipe examples/minimax_h3_dataset.toml"),
    "open-sora": VideoModel(24, 4, 1, 129, 16, (256, 256), "Open-Sora 2: frame buckets 1, 5 ... 129"),
    "any": VideoModel(24, 16, 1, 81, 32, (832, 480), "16n + 1 frames are 4n + 1 and 8n + 1 frames too"),
}


def video_model(name: str) -> VideoModel:
    """Return the row of MODELS called `name`. Raises RecipeError, which names the most similar one."""
    if name not in MODELS:
        raise RecipeError(f"unknown video model {name!r}{nearest(name, MODELS)}")
    return MODELS[name]


def resolved(pack: PackOptions) -> PackOptions:
    """Return `pack` with the `fps` and `frames` of its `model`, unless they are given. Raises RecipeError for an
    unknown model, and for `frames` without a constant rate."""
    if pack.model is not None:
        model = video_model(pack.model)
        frames = pack.frames or FrameOptions(model.multiple, model.extra)
        pack = dataclasses.replace(pack, model=None, fps=pack.fps or model.fps, frames=frames)
    if pack.frames is not None:
        if pack.fps is None:
            raise RecipeError("pack.frames counts frames at a constant rate: give pack.fps too, or pack.model")
        if pack.frames.multiple < 1 or pack.frames.extra < 0 or pack.frames.spare < 0:
            raise RecipeError("pack.frames: expected multiple of 1 or more, extra and spare of 0 or more")
    return pack
