"""A second decoder for the few moments where every frame is needed, while the first one leaves most of them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeVar

from pipeline.config.recipe import SourceOptions
from pipeline.media.frame import Frame
from pipeline.media.video import MediaError, Video
from pipeline.sources.discover import open_media

T = TypeVar("T")

AHEAD = 1.0  # seconds: a decoder may have passed over frames this far ahead of the last one that it gave


class ExactFrames:
    """All frames of short spans of a source, in order of time mostly; a context manager that opens the file when first
    asked."""

    def __init__(self, uri: str, options: SourceOptions | None = None):
        self._uri, self._options = uri, options
        self._stack = ExitStack()
        self._video: Video | None = None
        self._frames: Iterator[Frame] | None = None
        self._at = 0.0
        self._span = (0.0, 0.0)

    def __enter__(self) -> ExactFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def between(self, after: float, before: float, keyframe: float, make: Callable[[Frame], T]) -> list[T]:
        """What `make` makes of the frames with after < time < before. `keyframe` is the time of the last keyframe up to
        `after`: decoding goes on from where it stands if that is nearer. Empty where the file cannot be read again."""
        try:
            if self._video is None:
                self._video = self._stack.enter_context(Video(open_media(self._uri, self._options)))
            if self._frames is None or not max(keyframe, self._at + AHEAD) <= after or keyframe > self._at:
                self._frames = self._video.frames(after, lambda time: self._span[0] < time < self._span[1])
            self._span, found = (after, before), []
            for frame in self._frames:
                self._at = frame.time
                if frame.time >= before:
                    break
                if frame.time > after:
                    found.append(make(frame))
            else:
                self._frames = None
            return found
        except MediaError:
            self._frames = None
            return []
