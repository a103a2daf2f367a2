"""How a trainer uses each clip: which clips it drops or shows at a wrong speed, and which frame counts and picture size
fit the dataset."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.config.video_models import VideoModel

SAME_RATE = 0.01  # relative difference between two frame rates that nobody sees
FLOAT_ERROR = 1e-6  # of a frame


@dataclass(frozen=True)
class Reads:
    """How a trainer reads clips. `converts`: it converts the frame rate to the model's; `loses`: frames of a clip that
    it may not use, such as one lost to rounding; `stills`: it trains on still images too; `spreads`: it spreads the
    training length over longer clips."""

    converts: bool
    stills: bool = False
    loses: int = 0
    spreads: bool = False


@dataclass(frozen=True)
class Finding:
    """A reason why clips are dropped or altered; `clips` is (n,) bool over the rows of the index."""

    effect: Literal["dropped", "altered"]
    reason: str
    clips: np.ndarray


def findings(index: pa.Table, reads: Reads, model: VideoModel) -> list[Finding]:
    """Return the reasons why a trainer of `model` that reads as `reads` drops or alters clips of `index`, without
    reasons that concern no clip."""
    still = np.asarray(index["media"].to_numpy() != "mp4", bool)
    frames, fps = seen_frames(index, reads, model), index["fps"].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        wrong_rate = ~still & (np.abs(fps / model.fps - 1) > SAME_RATE)
    short, least = ~still & (frames < model.least), model.least + reads.loses
    reasons = [
        Finding("dropped", f"fewer than {least} frames{f' at {model.fps:g} fps' * reads.converts}", short),
        Finding("dropped", "a still image, and the trainer reads videos only", still & (not reads.stills)),
        Finding("altered", f"not {model.fps:g} fps: motion has a wrong speed", wrong_rate & (not reads.converts)),
    ]
    if reads.spreads and (most := int(usable_frames(index, reads, model).max(initial=0))):
        fast = ~still & (frames > most * (1 + 2 * SAME_RATE))
        reasons.append(Finding("altered", f"{most} frames are spread over a longer clip: motion is too fast", fast))
    return [finding for finding in reasons if finding.clips.any()]


def seen_frames(index: pa.Table, reads: Reads, model: VideoModel) -> np.ndarray:
    """Return the number of frames of each clip that the trainer can use, (n,) int64; 1 for a still image."""
    frames, fps = index["frames"].to_numpy().astype(np.int64), index["fps"].to_numpy()
    if not reads.converts:
        return np.maximum(frames - reads.loses, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        converted = np.floor(np.where(fps > 0, frames * model.fps / fps, 1) + FLOAT_ERROR).astype(np.int64)
    return np.where(fps > 0, np.maximum(converted - reads.loses, 0), 1)


def usable_frames(index: pa.Table, reads: Reads, model: VideoModel) -> np.ndarray:
    """Return the number of frames of each video that the model trains on, (n,) int64: k * multiple + extra, at most the
    model's usual count; 0 for still images and videos that are too short."""
    frames = np.minimum(seen_frames(index, reads, model), model.usual)
    steps = np.maximum(frames - model.extra, 0) // model.multiple
    moving = np.asarray(index["media"].to_numpy() == "mp4", bool)
    return np.where(moving & (steps > 0), steps * model.multiple + model.extra, 0)


def frame_buckets(usable: np.ndarray) -> list[int]:
    """Return the frame counts to train on, ascending: those of the shortest, the median and the longest usable clip, so
    that no usable clip is dropped. Empty where there is none."""
    counts = np.sort(usable[usable > 0])
    return sorted({int(counts[i]) for i in (0, len(counts) // 2, -1)}) if len(counts) else []


def commonest_size(index: pa.Table, pixels: int) -> tuple[int, int]:
    """Return the (width, height) of most videos, or of most clips where there is no video, in multiples of `pixels`."""
    moving = index["media"].to_numpy() == "mp4"
    rows = index.filter(pa.array(moving)) if moving.any() else index
    sizes = Counter(zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True))
    width, height = min(sizes, key=lambda size: (-sizes[size], size))
    return max(pixels, width // pixels * pixels), max(pixels, height // pixels * pixels)
