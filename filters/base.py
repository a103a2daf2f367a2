"""The filter interface: the tracks of a clip that a filter reads, and the scores that it writes."""

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
    """Data that a `ClipView` must hold before a filter can score it; it determines the pass that runs the filter."""

    LUMA = "luma"  # scan: small grey frames of the whole clip
    FLOW = "flow"  # scan: coarse optical flow of the whole clip
    BURST = "burst"  # scan: a run of consecutive source frames, small and grey
    FIELDS = "fields"  # scan: how well two field orders of a burst's frames fit their neighbours
    DETAIL = "detail"  # scan: patches at the source's own resolution, grey
    FRAMES = "frames"  # embed: sampled colour frames, at the recipe's size
    EMBEDDING = "embedding"  # embed: embedding and appearance of the sampled frames (unit vectors), and tags
    CAPTION = "caption"  # caption: the clip's text and its embedding


@dataclass(frozen=True, eq=False)
class ClipView:
    """One clip as input of the filters. Tracks that the pass does not compute are empty.

    Times are seconds of presentation time in the source. Pictures keep the display aspect ratio (square pixels,
    rotation applied) and are cropped to `box`: letterbox and other borders are already removed.
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
    # first and of top field first (filters/picture/interlacing.py), mean absolute grey levels
    line_phases: np.ndarray = field(default_factory=lambda: np.zeros((0, 2, 0, 0), np.complex64))
    # (f, 2, windows, periods) of the same frames: what resized fields show in (filters/picture/interlacing.py)
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
    """Scores clips; thresholds are in the recipe. Options are the constructor's keyword arguments, with defaults.

    A filter whose constructor has a parameter `encoder` gets the recipe's TextVideoEncoder. One whose model runs on
    a GPU if there is one has an attribute `gpu = True`.
    """

    name: str  # the prefix of its columns
    version: int  # part of the fingerprint: raise it when the same clip would get another score
    needs: frozenset[Track]
    columns: Mapping[str, pa.DataType]

    def score(self, clip: ClipView) -> dict[str, Score]:
        """Return a value for every name in `columns`: None if a score could not be computed, and then also the reason
        under `why_null(name)`, an additional column. Clips are scored one at a time, so that a score does not depend on
        the other clips of a unit.

        The scores of unusable clips (one frame, black, 16 pixels wide) are None, never 0 or -1, and no exception is
        raised. (`score` below catches exceptions and logs them as errors of the filter.)
        """
        ...


def uses_gpu(filter: Filter) -> bool:
    """Return whether the filter's model runs on a GPU if there is one."""
    return bool(getattr(filter, "gpu", False))


def why_null(name: str) -> str:
    """Return the name of the column with the reason for null scores of the filter `name`."""
    return f"{name}_null"


def unknown(scorer: Filter, why: str) -> dict[str, Score]:
    """Return null scores with a reason, for a clip that a filter cannot score."""
    return {**dict.fromkeys(scorer.columns), why_null(scorer.name): why}


def evenly(count: int, most: int) -> np.ndarray:
    """Return indices of up to `most` of `count` items, evenly spread, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def shrunk(rgb: np.ndarray, longest: int) -> np.ndarray:
    """Scale (h, w, 3) uint8 by area to `longest` pixels on its longer side if it is larger; at least one pixel."""
    (height, width), scale = rgb.shape[:2], longest / max(rgb.shape[:2])
    if scale >= 1:
        return rgb
    return cv2.resize(rgb, None, fx=max(scale, 1 / width), fy=max(scale, 1 / height), interpolation=cv2.INTER_AREA)


OnError = Callable[[str, ClipView, Exception], None]  # the filter's name, the clip, and what its score raised


def score(scorer: Filter, clips: Sequence[ClipView], on_error: OnError | None = None) -> list[dict[str, Score]]:
    """Return one answer a clip; NaN and infinity, which a model may return for unusual pictures, become null.

    If the filter raises for a clip, its scores are null with the exception as reason, and `on_error` is called. Machine
    faults are raised.
    """
    return [_scored(scorer, clip, on_error) for clip in clips]


def _scored(scorer: Filter, clip: ClipView, on_error: OnError | None) -> dict[str, Score]:
    try:
        answer = scorer.score(clip)
        for name, value in answer.items():
            if isinstance(value, int) and not isinstance(value, bool):
                pa.scalar(value, scorer.columns.get(name))  # raises where the column cannot hold it
        broken = [name for name, value in answer.items() if isinstance(value, float) and not math.isfinite(value)]
    except Exception as error:
        if is_machine_fault(error):
            raise
        if on_error is not None:
            on_error(scorer.name, clip, error)
        return unknown(scorer, failure(error).reason)
    return (
        answer | {**dict.fromkeys(broken), why_null(scorer.name): "the result is not a finite number"}
        if broken
        else answer
    )
