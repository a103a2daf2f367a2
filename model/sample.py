"""Videos from a trained run: text to video, image to video, and longer than the model was trained for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model import sampler
from model.backbones.adapter import DiffusersBackbone
from model.backbones.base import Words
from model.backbones.build import load_trained, make_backbone, make_path
from model.backbones.pretrained import make_pipeline, read_base
from model.backbones.prompts import PipelineText
from model.cli import ERRORS
from model.config import Config, ConfigError, from_dict
from model.data.index import shape_table
from model.latents.base import Latents, to_bytes, to_signed
from model.latents.first_frame import FirstFrame
from model.latents.hub import HubLatents
from model.latents.settle import load_latents
from model.objective import time_shift
from model.text import load_text
from model.training import checkpoint
from pipeline.media.clip_reader import fit, write_mp4


@dataclass(frozen=True)
class Guidance:
    """How a sample is made; see model/sampler.py for the meaning."""

    steps: int = 30
    sampler: str = "euler"
    scale: float | None = None  # None: 2 for our own transformer, else what the base's pipeline uses
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0


class Trained:
    """A run's model with its latents and its text encoder, ready to sample."""

    def __init__(self, run: Path, device: str = "auto") -> None:
        """Raises ConfigError or CheckpointError when there is no run or no checkpoint in the folder."""
        if not (run / "config.json").exists():
            raise ConfigError(f"{run}: no training run in it")
        self.config: Config = from_dict(json.loads((run / "config.json").read_text()))
        chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(chosen)
        weights = checkpoint.read_weights(run)
        checkpoint.check_latents(checkpoint.read_state(run), (run / "latents" / "id").read_text())
        self.latents: Latents = load_latents(self.config.latents, run / "latents").to(self.device)
        self.text = load_text(self.config.text, self.config.text_tokens, chosen)
        self.first_frame = FirstFrame(self.config, self.latents, self.text)
        self.path = make_path(self.config)
        self.network = make_backbone(self.config, self.latents.channels, self.text.layout, self.latents.stride)
        load_trained(self.network, weights)
        self.network.to(self.device).eval()

    def model(self, x: Tensor, t: Tensor, words: Words) -> Tensor:
        """Return the prediction of the objective's target; see backbones.base.Backbone."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bool(self.config.base) and x.is_cuda):
            return self.network(x, t, **words)

    def size(self, aspect: float, resolution: int | None = None) -> tuple[int, int]:
        """Return height and width of a sample of an aspect ratio (width over height), or those that the base fixes."""
        stride = self.latents.stride
        if (
            isinstance(self.network, DiffusersBackbone)
            and (picture := self.network.family.picture)
            and (fixed := picture.size(self.network.transformer.config))
        ):
            return fixed[0] * stride[1], fixed[1] * stride[2]
        table = shape_table(
            resolution or max(self.config.resolutions), (stride[1] * self.config.patch, stride[2] * self.config.patch)
        )
        height, width = table[np.abs(np.log(table[:, 1] / table[:, 0]) - np.log(aspect)).argmin()].tolist()
        return height, width

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        frames: int,
        height: int,
        width: int,
        guidance: Guidance,
        seed: int = 0,
        first: Tensor | None = None,
    ) -> Tensor:
        """Return (n, frames, height, width, 3) uint8. first: (n, 3, k, height, width) in [-1, 1], frames to start from.

        More frames than the model was trained on are made in windows: each continues the last frames of the one before.
        A run on a base samples by the base's own pipeline, also more frames at once where the base has one time for all
        frames; with a time a frame, it starts from pictures and continues in windows by our sampler. Raises ConfigError
        where that cannot do what is asked for.
        """
        (st, sh, sw), trained_frames, default_scale = self.latents.stride, max(self.config.frame_counts), 2.0
        if isinstance(self.network, DiffusersBackbone):
            inflation = self.network.family.inflation
            if self.network.family.picture:
                if first is None or first.shape[2] != 1:
                    raise ConfigError(f"{self.config.base} continues one picture: give --image")
                return self._sample_by_pipeline(prompts, frames, height, width, guidance, seed, first)
            if first is not None and not self.config.clean_frames:
                why = "it has one time for all frames, or was trained with clean_frames=0"
                raise ConfigError(f"{self.config.base} cannot start from a picture: {why}")
            longest = getattr(self.network.transformer.config, "motion_max_seq_length", frames)
            if frames > longest:
                raise ConfigError(f"{frames} frames: the motion modules of this run have places for {longest}")
            extended = self.config.clean_frames > 0 and frames > trained_frames
            if first is None and not extended and (inflation is None or inflation.pipeline):
                return self._sample_by_pipeline(prompts, frames, height, width, guidance, seed)
            if inflation:
                default_scale, trained_frames = inflation.guidance, max(frames, trained_frames)
        words, empty = self.text(list(prompts)), self.text([""])
        scale = guidance.scale or default_scale
        model = sampler.guided(self.model, words, empty, scale, guidance.interval, guidance.rescale)

        def window(length: int, seed: int, first: Tensor | None) -> Tensor:
            shape = (len(prompts), self.latents.channels, 1 + (length - 1) // st, height // sh, width // sw)
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
            clean = None if first is None else self.latents.encode(first.to(self.device))
            factor = time_shift(self.config, self.network.tokens(shape))
            latents = sampler.sample(model, noise, words, guidance.steps, guidance.sampler, factor, self.path, clean)
            video = self.latents.decode(latents).cpu()
            if first is not None:
                video[:, :, : first.shape[2]] = first.cpu()
            return video

        video = window(min(trained_frames, 1 + -(-(frames - 1) // st) * st), seed, first)
        overlap = 1 + st * max(0, (trained_frames - 1) // st // 3)
        while video.shape[2] < frames:
            seed += 1
            following = window(trained_frames, seed, video[:, :, -overlap:])
            video = torch.cat([video, following[:, :, overlap:]], dim=2)
        return to_bytes(video[:, :, :frames])

    def _sample_by_pipeline(
        self,
        prompts: Sequence[str],
        frames: int,
        height: int,
        width: int,
        guidance: Guidance,
        seed: int,
        first: Tensor | None = None,
    ) -> Tensor:
        """Sample a run on a base with the base's own pipeline, scheduler and defaults; from pictures one by one."""
        if (guidance.sampler, guidance.interval, guidance.rescale) != ("euler", (0.0, 1.0), 0.0):
            raise ConfigError("--sampler, --interval and --rescale are for runs without a base")
        assert isinstance(self.text, PipelineText)
        assert isinstance(self.latents, HubLatents)
        assert isinstance(self.network, DiffusersBackbone)
        base, stride = read_base(self.config.base, self.config.expert), self.latents.stride[0]
        parts = {**self.text.parts(), "vae": self.latents.vae}
        pipeline = make_pipeline(base, self.config.expert, self.network.transformer, parts)
        pipeline.to(self.device).set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(seed)
        options = base.family.sample_options(guidance.scale, self.config.fps, self.config.text_tokens)
        size = {"height": height, "width": width}
        calls: list[dict[str, Any]] = [{"prompt": list(prompts)}]
        if base.family.picture and first is not None:
            size = base.family.picture.size_options(pipeline, height, width)
            images = [Image.fromarray(clip[0].numpy()) for clip in to_bytes(first).cpu()]
            calls = [{"prompt": [p], "image": image} for p, image in zip(prompts, images, strict=True)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            videos = [
                pipeline(
                    **call,
                    num_frames=1 + -(-(frames - 1) // stride) * stride,
                    **size,
                    num_inference_steps=guidance.steps,
                    generator=generator,
                    output_type="pt",
                    **options,
                ).frames
                for call in calls
            ]
        video = torch.cat(videos)
        return (video[:, :frames].float().clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).cpu()


def main(argv: Sequence[str] | None = None) -> int:
    """`clipmill sample`; 0 when the video is written, 2 when it cannot be."""
    parser = argparse.ArgumentParser(prog="clipmill sample", description="Make a video with a trained run.")
    parser.add_argument("run", metavar="RUN", help="folder of a `clipmill train` run")
    parser.add_argument("--prompt", required=True, action="append", help="what to show; repeat it for a row of videos")
    parser.add_argument("--out", required=True, metavar="FILE.mp4")
    parser.add_argument("--seconds", type=float, help="length; past the trained length it is extended window by window")
    parser.add_argument("--image", metavar="FILE", help="a picture that the video starts from")
    parser.add_argument("--aspect", type=float, default=16 / 9, help="width over height")
    parser.add_argument("--resolution", type=int, help="square root of the pixels of a frame; default: as trained")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sampler", default="euler", choices=["euler", "heun", "dpm"])
    parser.add_argument(
        "--guidance", type=float, help="1 is none, more follows the text more; default: 2, or the base pipeline's own"
    )
    parser.add_argument(
        "--interval", type=float, nargs=2, default=(0.0, 1.0), metavar=("FROM", "TO"), help="of t, where guidance acts"
    )
    parser.add_argument("--rescale", type=float, default=0.0, help="0 to 1: undo the contrast that guidance adds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args(argv)
    try:
        trained = Trained(Path(args.run), args.device)
        fps = trained.config.fps
        frames = max(1, round(args.seconds * fps)) if args.seconds else max(trained.config.frame_counts)
        first = None
        if args.image:
            picture = cv2.imread(args.image)
            if picture is None:
                raise ConfigError(f"{args.image}: not a picture that can be read")
            height, width = trained.size(picture.shape[1] / picture.shape[0], args.resolution)
            rgb = fit(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)[None], height, width)
            first = to_signed(torch.from_numpy(rgb)[None]).expand(len(args.prompt), -1, -1, -1, -1)
        else:
            height, width = trained.size(args.aspect, args.resolution)
        guidance = Guidance(args.steps, args.sampler, args.guidance, tuple(args.interval), args.rescale)
        videos = trained.generate(args.prompt, frames, height, width, guidance, args.seed, first)
    except ERRORS as error:
        print(f"clipmill sample: {error}", file=sys.stderr)
        return 2
    row = np.concatenate(list(videos.numpy()), axis=2)  # side by side
    enlarge = 256 // row.shape[1]  # so that small samples can be seen
    if enlarge > 1:
        size = (row.shape[2] * enlarge, row.shape[1] * enlarge)
        row = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_CUBIC) for f in row])
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    write_mp4(args.out, row, fps)
    print(f"{args.out}: {len(row)} frames of {row.shape[2]}x{row.shape[1]} at {fps:g} fps")
    return 0
