"""`clipmill evaluate`: loss on held-out clips at fixed noise and times, and measures of samples.

The measures of samples mean something only beside those of real footage, so real clips are encoded, decoded and
measured in the same way, as a reference.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from filters.encoders.base import TextVideoEncoder, load_encoder
from model import objective
from model.cli import ERRORS
from model.data.index import Index, make_schedule, read_index
from model.data.loader import Clips
from model.data.schedule import SampleRef
from model.encoding import read_encoding, scored_by, split_weight
from model.errors import MeasureError
from model.evaluation import page
from model.evaluation.measures import I3D, consistency, frechet, look
from model.evaluation.page import Pair
from model.latents.base import to_bytes
from model.latents.first_frame import add_picture
from model.latents.settle import encode_batch
from model.sample import Guidance, Trained
from pipeline.media.clip_reader import write_mp4

TIMES = tuple((i + 0.5) / 8 for i in range(8))  # of the run's time range, where the loss is measured
SCORES = ("motion", "warp", "flicker", "same", "text", "others")


def main(argv: Sequence[str] | None = None) -> int:
    """`clipmill evaluate`; 0 when measured, 2 when there is nothing to measure."""
    parser = argparse.ArgumentParser(prog="clipmill evaluate", description="Measure a trained model on held-out clips.")
    parser.add_argument("run", metavar="RUN", help="folder of a `clipmill train` run")
    parser.add_argument("data", nargs="*", metavar="DATASET", help="where the clips are from; default: as trained")
    parser.add_argument("--split", default="val", choices=["val", "train"])
    parser.add_argument("--clips", type=int, default=8, help="clips to measure on")
    parser.add_argument("--steps", type=int, default=30, help="of the sampler")
    parser.add_argument("--i3d", metavar="FILE", help="I3D weights as TorchScript, for the Frechet video distance")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args(argv)
    try:
        trained = Trained(Path(args.run), args.device)
        data = args.data or trained.config.data
        i3d = I3D(Path(args.i3d), trained.device) if args.i3d else None
        result, pairs = evaluate(
            trained, read_index(data, args.split), args.clips, args.steps, encoder_of(data[0]), i3d
        )
    except ERRORS as error:
        print(f"clipmill evaluate: {error}", file=sys.stderr)
        return 2
    out = Path(args.run) / "evaluation"
    out.mkdir(exist_ok=True)
    finite = {name: value if math.isfinite(value) else None for name, value in result.items()}
    (out / "scores.json").write_text(json.dumps(finite, indent=1))
    if pairs:
        write_mp4(out / "samples.mp4", page.grid(pairs), trained.config.fps)
        (out / "index.html").write_text(page.page(result, pairs, trained.config.fps, args.split))
    print(f"loss on {result['clips']} clips of the split {args.split} {result['loss']:.4f}\n")
    print(f"{'':8}" + "".join(f"{name:>9}" for name in SCORES))
    for name in ("sampled", "real"):
        print(f"{name:8}" + "".join(f"{result.get(f'{name}_{key}', float('nan')):9.4f}" for key in SCORES))
    if "frechet_video_distance" in result:
        print(f"\nFrechet video distance of {len(pairs)} clips {result['frechet_video_distance']:.1f}")
    print(f"\nscores.json, samples.mp4 and index.html are in {out}")
    return 0


def encoder_of(dataset: str) -> TextVideoEncoder:
    """Return the encoder that scored a dataset, or the dataset that its latents are of. Raises MeasureError."""
    encoding = read_encoding([dataset])
    options = encoding.encoder if encoding else scored_by(split_weight(dataset)[0])
    try:
        return load_encoder(**options)
    except (KeyError, RuntimeError) as error:
        raise MeasureError(f"{dataset} was scored with an encoder that cannot be loaded: {error}") from error


def evaluate(
    trained: Trained, index: Index, count: int, steps: int, encoder: TextVideoEncoder, i3d: I3D | None = None
) -> tuple[dict[str, float], list[Pair]]:
    """Return scores and the clips that they are of: validation loss, overall and at each of eight times; means of
    `measures.consistency` and `measures.look` over samples ("sampled_") and over real clips after a round trip through
    the latents ("real_"). Clips, noise and times are the same at every call. Raises DataError."""
    config = trained.config
    schedule = make_schedule(index, config, trained.latents.stride)
    clips = Clips(index, schedule, config)
    first: dict[int, SampleRef] = {}
    for step in range(16 * count):
        for ref in (d for batch in schedule.step(step) for d in batch):
            if len(first) < min(count, len(index)):
                first.setdefault(ref.sample, ref)
    low, high = config.time_range
    times = [low + (high - low) * at for at in TIMES]
    losses: list[list[float]] = [[] for _ in times]
    captions = [clips.caption(sample) for sample in first]
    pairs: list[Pair] = []
    for ref in first.values():
        batch = clips[[ref]]
        x0 = encode_batch(trained.latents, batch, trained.device)
        words, picture = trained.text(batch.captions), trained.first_frame.of_batch(batch, trained.device)
        for at, values in zip(times, losses, strict=True):
            t = torch.full((1, x0.shape[2]), at, device=trained.device)
            noise = objective.draw_noise(0, ref, x0.shape[1:], trained.device)[None]
            x, target = objective.noisy(x0, noise, t, trained.path)
            with torch.no_grad():
                inputs, conditions = add_picture(x, words, picture)
                prediction = trained.model(inputs, t, conditions)
                loss = objective.loss_per_sample(prediction, target, torch.ones_like(t))
            values.append(float(loss))
        if (shape := ref.shape).frames > 1:
            caption = batch.captions[0]
            texts = [caption, *(c for c in dict.fromkeys(captions) if c != caption)]
            real = trained.latents.decode(x0)
            start = real[:, :, :1] if trained.first_frame.picture else None
            size = (shape.frames, shape.height, shape.width)
            sampled = trained.generate([caption], *size, Guidance(steps), ref.slot, start)
            both = {"sampled": sampled, "real": to_bytes(real)}
            videos = {name: video[0].cpu().numpy() for name, video in both.items()}
            scores = {name: consistency(video) | look(video, texts, encoder) for name, video in videos.items()}
            pairs.append(Pair(caption, videos["sampled"], videos["real"], scores))
    result = {f"loss_t{at:.3f}": float(np.mean(values)) for at, values in zip(times, losses, strict=True)}
    result = {"clips": len(first), "loss": float(np.mean(list(result.values())))} | result
    for name in ("sampled", "real") if pairs else ():
        result |= {f"{name}_{key}": float(np.mean([pair.scores[name][key] for pair in pairs])) for key in SCORES}
    if i3d and len(pairs) > 1:
        videos_of = ([pair.sampled for pair in pairs], [pair.real for pair in pairs])
        features = [torch.stack([i3d(video) for video in videos]) for videos in videos_of]
        result["frechet_video_distance"] = frechet(features[0], features[1])
    return result, pairs
