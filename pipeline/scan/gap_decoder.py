"""A second decoder for the short ranges in which every frame is needed; the first one skips most frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeVar

from pipeline.config.recipe import SourceOptions
from pipeline.media.frame import Frame
from pipeline.media.video import MediaError, Video
from pipeline.sources.discover import open_media

T = TypeVar("T")


class ExactFrames:
    """Decodes every frame of short ranges; ask in increasing time to avoid seeks. A context manager that opens the file
    on the first call."""

    def __init__(self, uri: str, options: SourceOptions | None = None):
        self._uri, self._options = uri, options
        self._stack = ExitStack()
        self._video: Video | None = None
        self._frames: Iterator[Frame] | None = None
        self._passed = 0.0  # time of the last frame that was returned or skipped
        self._span = (0.0, 0.0)

    def __enter__(self) -> ExactFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def between(self, after: float, before: float, keyframe: float, make: Callable[[Frame], T]) -> list[T]:
        """Return `make(frame)` for the frames with after < time < before. `keyframe` is the time of the last keyframe
        up to `after`: decoding continues from its current position if that is nearer. Empty if the file cannot be read
        again."""
        try:
            if self._video is None:
                self._video = self._stack.enter_context(Video(open_media(self._uri, self._options)))
            if self._frames is None or self._passed > after or keyframe > self._passed:
                self._frames, self._passed = self._video.frames(after, self._is_wanted), 0.0
            self._span, results = (after, before), []
            for frame in self._frames:
                self._passed = max(self._passed, frame.time)
                if frame.time >= before:
                    break
                if frame.time > after:
                    results.append(make(frame))
            else:
                self._frames = None
            return results
        except MediaError:
            self._frames = None
            return []

    def _is_wanted(self, time: float) -> bool:
        wanted = self._span[0] < time < self._span[1]
        if not wanted:
            self._passed = max(self._passed, time)
        return wanted
