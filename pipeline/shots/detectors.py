"""Shot detectors that take frames in order and return presentation times: PySceneDetect's, and a fixed stride."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import Protocol

import cv2

from pipeline.media.proxy import Proxy
from pipeline.shots.shot_cutter import Transition


class ShotDetector(Protocol):
    """A result for a time depends only on frames within `reach` seconds of it, not on where decoding began."""

    reach: float

    def push(self, proxy: Proxy) -> list[Transition]:
        """Take the next frame; return the transitions that are now certain, in order, each once."""
        ...

    @property
    def emitted_until(self) -> float:
        """Seconds: all transitions that leave a shot before this time have been returned."""
        ...

    def finish(self) -> list[Transition]:
        """Return the remaining transitions after the last frame."""
        ...


class Adaptive:
    """PySceneDetect's adaptive content detector (hard cuts only), with its default thresholds and no minimum length.

    A cut is placed where the change of hue, saturation and luma between two frames is above 15 and 3 times the mean of
    the two changes before and after it.
    """

    reach = 1.0
    WINDOW = 2

    def __init__(self) -> None:
        from scenedetect import FrameTimecode  # starts an ffmpeg when it is imported
        from scenedetect.detectors import AdaptiveDetector

        self._timecode = FrameTimecode
        self._detector = AdaptiveDetector(min_scene_len=0, window_width=self.WINDOW)
        self._times: deque[float] = deque(maxlen=self.WINDOW + 2)
        self._index = 0

    def push(self, proxy: Proxy) -> list[Transition]:
        self._times.append(proxy.time)
        # Frame numbers at a nominal rate: the detector only compares them, so variable frame rates do not matter.
        cuts = self._detector.process_frame(
            self._timecode(self._index, fps=Fraction(25)), cv2.cvtColor(proxy.colour, cv2.COLOR_RGB2BGR)
        )
        behind = [self._index - cut.frame_num for cut in cuts if cut.frame_num > 0]
        self._index += 1
        return [Transition(self._times[-1 - b], self._times[-1 - b]) for b in behind]

    @property
    def emitted_until(self) -> float:
        return self._times[-1 - self.WINDOW] if len(self._times) > self.WINDOW else float("-inf")

    def finish(self) -> list[Transition]:
        return []


class Stride:
    """Cut at every multiple of `seconds`, without detection."""

    reach = 1.0

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: float | None = None

    def push(self, proxy: Proxy) -> list[Transition]:
        last, self._last = self._last, proxy.time
        if last is None or proxy.time // self._seconds == last // self._seconds:
            return []
        return [Transition(proxy.time, proxy.time)]

    @property
    def emitted_until(self) -> float:
        return float("-inf") if self._last is None else self._last

    def finish(self) -> list[Transition]:
        return []
