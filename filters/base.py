"""What a filter is: the tracks of a clip that it may read, and the scores that it writes."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
import pyarrow as pa

from pipeline.media.faults import failure, is_machine_fault

Score = float | int | bool | str | list[float] | list[str] | None


class Track(enum.Enum):
    """What a `ClipView` must hold before a filter can score it; the pass that runs a filter follows from it."""

    LUMA = "luma"  # scan: small grey frames of the whole clip
    FLOW = "flow"  # scan: coarse optical flow of the whole clip
    BURST = "burst"  # scan: a run of consecutive source frames, small and grey
    FIELDS = "fields"  # scan: how two orders of a frame's fields fit its neighbours, for frames of the bursts
    DETAIL = "detail"  # scan: patches at the source's own resolution, grey
    FRAMES = "frames"  # embed: sampled colour frames, at the recipe's size
    EMBEDDING = "embedding"  # embed: unit vectors of the sampled frames: their meaning, their looks, and tags
    CAPTION = "caption"  # caption: the clip's text and its embedding


@dataclass(frozen=True, eq=False)
class ClipView:
    """One clip as the filters see it. Tracks that a pass did not make are empty, never guessed.

    Times are seconds of presentation time in the source. Pictures keep the display aspect ratio (square pixels,
    rotation applied) and show what is inside `box`: letterbox and other borders are already cut off.
    """

    clip_id: str
    start: float
    end: float
    fps: float  # of the source, mean over the clip
    width: int  # of the source as displayed, pixels
    height: int
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # x0, y0, x1, y1: the picture inside its borders,
    # as fractions of the frame
    luma: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))  # (n, h, w) uint8
    luma_times: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (n,) float64, rising
    flow: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 2), np.float32))
    # (m, gh, gw, 2) float32: dx (right) and dy (down) of the picture's content, in picture heights per second
    flow_times: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # (m, 2) float64: from, to
    burst: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))  # (b, h, w) uint8, consecutive
    fields: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # (f, 2) float64: misfits of bottom field
    # first and of top field first (filters/interlacing.py), mean absolute grey levels
    detail: Sequence[np.ndarray] = ()  # patches (h, w) uint8 of luma, source pixels, not resized
    frames: Sequence[np.ndarray] = ()  # k arrays (h, w, 3) uint8 RGB, in order of time
    frame_times: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (k,) float64
    tags: Sequence[Sequence[tuple[str, float]]] = ()  # a frame: labels with probabilities, most likely first
    embedding: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (k, d) float32, unit rows
    appearance: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (k, a) float32, unit rows
    caption: str | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)  # columns that earlier filters and passes wrote

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start


class Filter(Protocol):
    """Scores clips; thresholds are the recipe's. Options are the constructor's keyword arguments, with defaults.

    A filter whose constructor has a parameter `encoder` is given the recipe's TextVideoEncoder. One whose model runs on
    a GPU where there is one has an attribute `gpu = True`.
    """

    name: str  # the prefix of its columns
    version: int  # part of the fingerprint: raise it when the same clip would get another score
    needs: frozenset[Track]
    columns: Mapping[str, pa.DataType]

    def score(self, clip: ClipView) -> dict[str, Score]:
        """Every name in `columns`; None where a score could not be computed, and then also a few plain words under
        `why_null(name)`, which is one more column of the table. One clip at a time: what a clip scores does not depend
        on which others share its unit of work.

        Bad clips (one frame, black, 16 pixels wide) are None, never an exception and never 0 or -1. (An exception is
        caught by `score` below, and logged as an error in the filter.)
        """
        ...


def uses_gpu(filter: Filter) -> bool:
    """Whether the filter's model runs on a GPU where there is one."""
    return bool(getattr(filter, "gpu", False))


def why_null(name: str) -> str:
    """The column that says why scores of the filter `name` are null."""
    return f"{name}_null"


def unknown(kind: Filter, why: str) -> dict[str, Score]:
    """The answer of a filter that can say nothing of a clip."""
    return {**dict.fromkeys(kind.columns), why_null(kind.name): why}


def evenly(count: int, most: int) -> np.ndarray:
    """Indices of up to `most` of `count` items, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def shrunk(rgb: np.ndarray, longest: int) -> np.ndarray:
    """(h, w, 3) uint8 by area to `longest` pixels on its longer side, if it is larger; never to nothing."""
    (height, width), scale = rgb.shape[:2], longest / max(rgb.shape[:2])
    if scale >= 1:
        return rgb
    return cv2.resize(rgb, None, fx=max(scale, 1 / width), fy=max(scale, 1 / height), interpolation=cv2.INTER_AREA)


OnError = Callable[[str, ClipView, Exception], None]  # the filter's name, the clip, and what its score raised


def score(kind: Filter, clips: Sequence[ClipView], on_error: OnError | None = None) -> list[dict[str, Score]]:
    """One answer a clip, with NaN and infinity made null: what a model gives for a picture that it cannot digest.

    A clip for which the filter raises has null scores, for the reason that the exception gives, and goes to `on_error`.
    Faults of the machine are raised.
    """
    return [_scored(kind, clip, on_error) for clip in clips]


def _scored(kind: Filter, clip: ClipView, on_error: OnError | None) -> dict[str, Score]:
    try:
        answer = kind.score(clip)
        for name, value in answer.items():
            if isinstance(value, int) and not isinstance(value, bool):
                pa.scalar(value, kind.columns.get(name))  # raises where the column cannot hold it
        broken = [name for name, value in answer.items() if isinstance(value, float) and not math.isfinite(value)]
    except Exception as error:
        if is_machine_fault(error):
            raise
        if on_error is not None:
            on_error(kind.name, clip, error)
        return unknown(kind, failure(error).reason)
    return answer | {**dict.fromkeys(broken), why_null(kind.name): "not a number"} if broken else answer
