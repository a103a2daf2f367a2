"""How good a trained run is: loss on held-out clips at fixed noise and times, and how consistent its samples are.

The consistency numbers mean something only beside those of real footage, so real clips are put through the latents and
back and measured in the same way: that is the reference band.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from model import checkpoint, flow
from model.config import ConfigError
from model.data import Clips
from model.index import DataError, Index, make_order, read_index
from model.latents import to_bytes, to_signed
from model.order import Draw
from model.sample import Guidance, Trained
from model.text import TextError
from model.train import draw_noise

TIMES = tuple((i + 0.5) / 8 for i in range(8))


def main(argv: Sequence[str] | None = None) -> int:
    """`clipmill evaluate`; 0 when measured, 2 when there is nothing to measure."""
    parser = argparse.ArgumentParser(prog="clipmill evaluate", description="Measure a trained model on held-out clips.")
    parser.add_argument("run", metavar="RUN", help="folder of a `clipmill train` run")
    parser.add_argument("data", nargs="*", metavar="DATASET", help="where the clips are from; default: as trained")
    parser.add_argument("--split", default="val", help="val or train")
    parser.add_argument("--clips", type=int, default=8, help="clips to measure on")
    parser.add_argument("--steps", type=int, default=30, help="of the sampler")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args(argv)
    try:
        trained = Trained(Path(args.run), args.device)
        index = read_index(args.data or trained.config.data, args.split)
        result = evaluate(trained, index, args.clips, args.steps)
    except (ConfigError, DataError, TextError, checkpoint.CheckpointError) as error:
        print(f"clipmill evaluate: {error}", file=sys.stderr)
        return 2
    out = Path(args.run) / "evaluation.json"
    out.write_text(json.dumps(result, indent=1))
    print(f"{'':10} {'loss':>8} {'flicker':>8} {'warp':>8} {'motion':>8}")
    print(f"{'held out':10} {result['loss']:8.4f}")
    for name in ("sampled", "real"):
        print(f"{name:10} {'':8}" + "".join(f" {result[f'{name}_{k}']:8.4f}" for k in ("flicker", "warp", "motion")))
    print(f"written to {out}")
    return 0


def evaluate(trained: Trained, index: Index, count: int, steps: int) -> dict[str, float]:
    """Validation loss, overall and at each of eight times, and `consistency` of samples and of real clips after a round
    trip through the latents. The same clips, noise and times every time it is called. Raises DataError."""
    config = trained.config
    order = make_order(index, config, trained.latents.stride)
    clips = Clips(index, order, config)
    first: dict[int, Draw] = {}
    for step in range(16 * count):
        for draw in (d for batch in order.step(step) for d in batch):
            if len(first) < min(count, len(index)):
                first.setdefault(draw.sample, draw)
    losses: list[list[float]] = [[] for _ in TIMES]
    scores: dict[str, list[dict[str, float]]] = {"sampled": [], "real": []}
    for draw in first.values():
        batch = clips[[draw]]
        x0 = trained.latents.encode(to_signed(batch.video.to(trained.device)))
        text = trained.text(batch.captions)
        for at, values in zip(TIMES, losses, strict=True):
            t = torch.full((1, x0.shape[2]), at, device=trained.device)
            noise = draw_noise(0, draw, x0.shape[1:], trained.device)[None]
            x, target = flow.noisy(x0, noise, t, config.path)
            with torch.no_grad():
                loss = flow.loss_per_sample(trained.model(x, t, text), target, torch.ones_like(t))
            values.append(float(loss))
        if draw.shape.frames > 1:
            shape = draw.shape
            made = trained.generate(batch.captions, shape.frames, shape.height, shape.width, Guidance(steps), draw.slot)
            scores["sampled"].append(consistency(made[0].numpy()))
            scores["real"].append(consistency(to_bytes(trained.latents.decode(x0))[0].cpu().numpy()))
    result = {f"loss_t{at:.3f}": float(np.mean(values)) for at, values in zip(TIMES, losses, strict=True)}
    result = {"loss": float(np.mean(list(result.values())))} | result
    for name, rows in scores.items():
        for key in ("flicker", "warp", "motion"):
            result[f"{name}_{key}"] = float(np.mean([row[key] for row in rows])) if rows else float("nan")
    return result


def consistency(frames: np.ndarray) -> dict[str, float]:
    """Of a video (t, h, w, 3) uint8. motion: mean optical flow between frames, picture heights a frame (a frozen video
    has none). warp: mean absolute difference, 0 to 1, between a frame and its predecessor moved along the flow, where
    the flow there and back agrees (Lai et al., ECCV 2018). flicker: mean absolute difference, 0 to 1, where nothing
    moves."""
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    height, width = grey[0].shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    motion, warp, flicker = [], [], []
    for i in range(1, len(frames)):
        back = search.calc(grey[i], grey[i - 1], None)
        forth = search.calc(grey[i - 1], grey[i], None)
        at_x, at_y = x + back[..., 0], y + back[..., 1]
        moved = cv2.remap(frames[i - 1], at_x, at_y, cv2.INTER_LINEAR)
        returned = back + cv2.remap(forth, at_x, at_y, cv2.INTER_LINEAR)
        inside = (at_x >= 0) & (at_x <= width - 1) & (at_y >= 0) & (at_y <= height - 1)
        seen = inside & (np.linalg.norm(returned, axis=2) < 1)
        speed = np.linalg.norm(back, axis=2)
        motion.append(float(speed.mean()) / height)
        difference = np.abs(frames[i].astype(np.float32) - moved).mean(2) / 255
        warp.append(float(difference[seen].mean()) if seen.any() else 1.0)
        plain = np.abs(frames[i].astype(np.float32) - frames[i - 1]).mean(2) / 255
        still = speed < 0.1
        flicker.append(float(plain[still].mean()) if still.any() else 0.0)
    return {"motion": float(np.mean(motion)), "warp": float(np.mean(warp)), "flicker": float(np.mean(flicker))}
