"""The captioner interface: frames and measurements of clips in, captions or the reason for none out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class ClipFrames:
    """One clip as a captioner sees it. `frames` are k arrays (h, w, 3) uint8 RGB; `times` are (k,) float64 seconds
    from the clip's start; `scores` holds the clip's columns (tags, camera, motion ...)."""

    clip_id: str
    duration: float
    frames: Sequence[np.ndarray]
    times: np.ndarray
    scores: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Action:
    """An event in a clip; seconds from the clip's start."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Caption:
    """The caption of one clip. A field is empty if the captioner gave nothing for it."""

    clip_id: str
    short: str  # one sentence
    dense: str  # a paragraph in order of time
    subjects: tuple[str, ...] = ()
    actions: tuple[Action, ...] = ()
    camera: str = ""
    setting: str = ""
    light: str = ""
    style: str = ""
    others: tuple[str, ...] = ()  # further captions of the same clip
    content: float = 1.0  # confidence in the depicted content, 0 to 1; 0: unknown
    provenance: Mapping[str, str] = field(default_factory=dict)  # field -> its origin: measured, model, parsed
    usage: Mapping[str, float] = field(default_factory=dict)  # prompt_tokens, completion_tokens, seconds ...


@dataclass(frozen=True)
class CaptionError:
    """Why a clip has no caption; `reason` is for users."""

    clip_id: str
    reason: str


class Captioner(Protocol):
    """Options are the constructor's keyword arguments, with defaults. One whose `caption` may be called by several
    threads at once has an attribute `thread_safe = True`."""

    id: str  # model and prompt, part of the fingerprint

    def caption(self, clips: Sequence[ClipFrames]) -> list[Caption | CaptionError]:
        """Return one answer a clip; callers match answers by clip_id, not by position."""
        ...


class CaptionerDown(RuntimeError):
    """The captioner cannot answer any more (a server that stays down); the message says what to do. `done` holds the
    answers so far."""

    def __init__(self, message: str, done: Sequence[Caption | CaptionError] = ()) -> None:
        super().__init__(message)
        self.done = list(done)


def to_json(caption: Caption) -> str:
    """Serialise to one line of JSON with every field that is not empty; times are rounded to milliseconds."""
    tree = dataclasses.asdict(caption)
    tree["actions"] = [{**a, "start": round(a["start"], 3), "end": round(a["end"], 3)} for a in tree["actions"]]
    return json.dumps(
        {k: v for k, v in tree.items() if v or k in ("clip_id", "short", "dense", "content")}, ensure_ascii=False
    )
