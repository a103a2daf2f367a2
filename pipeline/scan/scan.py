"""The scan: one decode of a source yields its shots, the tracks and cheap scores of its clips, and sampled frames."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from filters.base import ClipView, Track, score
from filters.overlays.borders import content_box
from pipeline.config.recipe import Recipe, RecipeError
from pipeline.media.faults import OverLimit, is_machine_fault
from pipeline.media.frame import Frame
from pipeline.media.frame_rate import span_fps
from pipeline.media.proxy import FrameCandidate, Shrinker
from pipeline.media.video import MediaError, Probe, Video
from pipeline.scan.gap_decoder import ExactFrames, T
from pipeline.scan.tracks import BURST_FRAMES, LEAST_BURST, ShotTracks, Tracks, clip_view, crop_pixels, jpeg, sampled
from pipeline.shots.cascade import Cascade
from pipeline.shots.detectors import Adaptive, ShotDetector, Stride
from pipeline.shots.same_scene import same_scene
from pipeline.shots.shot_cutter import ROUNDING, Shot, ShotCutter, Transition, equal_parts, full_parts
from pipeline.shots.transnet import TransNet
from pipeline.sources.discover import Source, open_media
from pipeline.state.error_log import LoggedError, logged_error
from pipeline.state.fingerprints import columns_of, filters_of
from pipeline.tables.fragments import clip_id

WHOLE = (0.0, 0.0, 1.0, 1.0)  # the box of an uncropped picture: x0, y0, x1, y1 as fractions
MOST_SEGMENTS = 10_000  # segments of one source: 69 days in segments of 600 s
LEAST_FPS = 20.0  # frames a second below which shot detection needs every frame


@dataclass(frozen=True)
class Scanned:
    """The result of a scan: rows of tables.CLIPS with the columns of the filters that ran, rows of tables.FRAMES,
    seconds by part (decode, shots, flow, jpeg, filter:NAME), the exceptions of filters and of single clips, and what is
    missing of the source. `shot_index` counts within the segment."""

    clips: list[dict[str, Any]]
    frames: list[dict[str, Any]]
    stats: dict[str, float]
    errors: Sequence[LoggedError] = ()
    missing: str | None = None


def segments(start: float, duration: float, seconds: float) -> list[tuple[float, float]]:
    """Return parts of a long source, about `seconds` long, whose scans together equal the scan of the whole source:
    each owns the shots that start inside it, and the last one extends to the actual end. An implausible duration gives
    one part."""
    count = max(1, round(duration / seconds)) if 1.5 * seconds < duration < MOST_SEGMENTS * seconds else 1
    edges = [start + duration * i / count for i in range(count + 1)]
    return list(pairwise(edges))


def scan(source: Source, recipe: Recipe, segment: tuple[float, float] | None = None) -> Scanned:
    """Scan a source, or those of its shots that start inside `segment` (seconds). Raises MediaError if nothing of it
    can be used, OverLimit, or Unreachable. If a part can be used, `missing` says what the rest is."""
    cv2.setNumThreads(1)  # one process a core, and the same bytes on any number of cores
    limits = recipe.scan
    with Video(open_media(source.uri, recipe.sources), rough=True) as video:
        if video.streams > limits.max_streams:
            allowed = f"more than scan.max_streams allows ({limits.max_streams})"
            raise OverLimit(f"{video.streams} streams, {allowed}", "max_streams")
        shrinker = Shrinker(video.probe)
        with ExactFrames(source.uri, recipe.sources) as exact:
            return _Scan(source, recipe, video, shrinker, exact, segment).run()


class _Scan:
    """The state of one scan."""

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        video: Video,
        shrinker: Shrinker,
        exact: ExactFrames,
        segment: tuple[float, float] | None,
    ):
        self._source, self._options = source, recipe.scan
        self._video, self._probe = video, video.probe
        self._shrinker, self._exact = shrinker, exact
        self._filters, self._columns = filters_of(recipe, "scan"), columns_of(recipe, "scan")
        bursts = any(scorer.needs & {Track.BURST, Track.FIELDS} for scorer in self._filters.values())
        self._tracks = Tracks(shrinker, recipe.scan.frame_side, video.probe, bursts)
        self._detector = self._make_detector()
        self._keyframes: list[float] = []
        self._segment = _opened(segment, video.probe)
        self._cutter = ShotCutter(self._segment)
        self._seconds: dict[str, float] = defaultdict(float)
        self._clips: list[dict[str, Any]] = []
        self._frames: list[dict[str, Any]] = []
        self._errors: list[LoggedError] = []
        self._shots = 0
        self._last_enter = -math.inf  # time at which the last transition ended

    def run(self) -> Scanned:
        missing = self._image() if self._probe.image else self._film()
        return Scanned(self._clips, self._frames, dict(self._seconds), self._errors, missing)

    def _film(self) -> str | None:
        """Process all frames; return what is missing at the end, if anything."""
        start = self._segment[0]
        first = not math.isfinite(start)
        begin = None if first else ShotCutter.decode_from(start) - self._detector.reach
        problem, decoded = None, 0
        most = self._options.max_gigapixels * 1e9 / (self._probe.coded_width * self._probe.coded_height)  # frames
        try:
            for frame in self._timed(self._video.frames(begin, self._wanted())):
                if not decoded:
                    self._cutter.begin(frame.time, first or frame.time <= self._probe.start)
                if decoded > most:
                    limit = f"more pixels than scan.max_gigapixels allows ({self._options.max_gigapixels:g})"
                    raise OverLimit(f"{limit} until {frame.time:.2f} s", "max_gigapixels")
                decoded += 1
                if self._see(frame):
                    return None
        except MediaError as error:
            if not decoded:
                raise
            problem = str(error)
        if not decoded:
            raise MediaError("no frame could be decoded")
        self._tracks.pass_over(self._video.remaining)
        _, last = self._tracks.last
        end = last + (1 / self._probe.fps if self._probe.fps else 0)
        with self._clock("shots"):
            shots = self._cutter.push(self._stitched(self._detector.finish()), end) + self._cutter.finish()
        for shot in shots:
            self._finish(shot)
        promised = self._probe.start + self._probe.duration
        if problem is None and promised - end > max(1.0, 0.02 * self._probe.duration):
            problem = f"truncated: {end - self._probe.start:.1f} of {self._probe.duration:.1f} s could be decoded"
        return problem

    def _see(self, frame: Frame) -> bool:
        """Process one frame; return True when all shots of the segment have ended."""
        if frame.key:
            self._keyframes = [*self._keyframes[-200:], frame.time]
        with self._clock("proxy"):
            self._tracks.add(frame)
            if frame.is_non_reference:  # decoded only for a burst: shots must not depend on which filters run
                return False
            proxy = self._shrinker.proxy(frame)
        with self._clock("shots"):
            shots = self._cutter.push(self._stitched(self._detector.push(proxy)), self._detector.emitted_until)
        for shot in shots:
            self._finish(shot)
        return self._cutter.done

    def _stitched(self, transitions: Sequence[Transition]) -> list[Transition]:
        """Drop uncertain cuts inside one scene."""
        kept = []
        for transition in transitions:
            beside = self._tracks.beside(transition.enter, self._last_enter) if transition.doubtful else None
            if beside is None or not same_scene(*(still.rgb(WHOLE) for still in beside)):
                kept.append(transition)
                self._last_enter = transition.enter
        return kept

    def _make_detector(self) -> ShotDetector:
        detectors: dict[str, Callable[[], ShotDetector]] = {
            "cascade": lambda: Cascade(self._probe.fps, lambda a, b: self._between(a, b, self._shrinker.proxy)),
            "adaptive": Adaptive,
            "transnetv2": TransNet,
            "stride": lambda: Stride(self._options.max_seconds),
        }
        if self._options.shots not in detectors:
            raise RecipeError(f"scan.shots: expected {' or '.join(detectors)}, got {self._options.shots!r}")
        return detectors[self._options.shots]()

    def _wanted(self) -> Callable[[float], bool] | None:
        """Return which non-reference frames must be decoded; None for all of them. Only the cascade can do without, and
        only if reference frames are dense enough to follow motion."""
        dense = self._probe.fps >= LEAST_FPS
        return self._tracks.in_burst if self._options.shots == "cascade" and dense else None

    def _between(self, after: float, before: float, make: Callable[[Frame], T]) -> list[T]:
        """Return `make(frame)` for all frames between two decoded ones if some were skipped. Empty if the second is an
        irregular keyframe: an encoder that inserts one has detected the cut at exactly that frame."""
        if not self._tracks.skipped(after, before) or self._out_of_turn(before):
            return []
        keyframe = max((k for k in self._keyframes if k <= after), default=-math.inf)
        with self._clock("exact"):
            return self._exact.between(after, before, keyframe, make)

    def _out_of_turn(self, time: float) -> bool:
        """Return whether there is a keyframe at this time whose distance from the previous one is irregular."""
        index = bisect_left(self._keyframes, time)
        near = self._keyframes[max(0, index - 2) : index + 3]
        if time not in near or len(near) < 3:
            return False
        own = time - self._keyframes[index - 1] if index else math.inf
        others = [b - a for a, b in pairwise(near) if b != time]
        return all(abs(own - other) > 2.5 / self._probe.fps for other in others)

    def _image(self) -> str | None:
        frame = next(self._video.frames())
        self._tracks.add(frame)
        kept = self._tracks.span(-math.inf, math.inf)
        self._clip(kept, frame.pts + 1, 0.0, self._box(kept), drop=False)
        return None

    def _finish(self, shot: Shot) -> None:
        """Make the clips of a shot that has ended."""
        whole = self._tracks.span(shot.start, shot.end)
        if len(whole.times):
            end_pts, end = self._tracks.next_frame(shot.end) or self._after_last()
            least, longest = self._options.min_seconds, self._options.max_seconds
            short = end - float(whole.times[0]) < least
            box = self._box(whole)
            split = full_parts if least == longest else equal_parts
            for first, last in split(whole.times.tolist(), end, longest):
                more = last < len(whole.times)
                until = (int(whole.pts[last]), float(whole.times[last])) if more else (end_pts, end)
                is_rest = least == longest and until[1] - float(whole.times[first]) < longest - ROUNDING
                self._clip(self._tracks.span(whole.times[first], until[1]), *until, box, short or is_rest)
            self._shots += 1
        if math.isfinite(shot.end):
            self._tracks.forget(shot.end)

    def _clip(
        self, kept: ShotTracks, end_pts: int, end: float, box: tuple[float, float, float, float], drop: bool
    ) -> None:
        start, size = float(kept.times[0]), (self._probe.width, self._probe.height)
        name = clip_id(self._source.source_id, int(kept.pts[0]), end_pts, str(self._probe.time_base))
        x, y, width, height = crop_pixels(box, size)
        row: dict[str, Any] = {
            "clip_id": name,
            "source_id": self._source.source_id,
            "source_uri": self._source.uri,
            "shot_index": self._shots,
            "start": start,
            "end": end,
            "start_pts": int(kept.pts[0]),
            "end_pts": end_pts,
            "time_base": str(self._probe.time_base),
            "fps": span_fps(kept.times, end),
            "frames": len(kept.times),
            "width": size[0],
            "height": size[1],
            "crop_x": x,
            "crop_y": y,
            "crop_w": width,
            "crop_h": height,
            **self._probe.stated_colour,
            "dropped": "duration" if drop else None,
            **dict.fromkeys(self._columns),
        }
        self._clips.append(row)
        if drop:
            self._sample(name, kept.stills[len(kept.stills) // 2 :][:1], box)  # the report shows it
            return
        pictures = len(self._frames)
        try:
            row |= self._scored(kept, name, end, box)
        except Exception as error:
            if is_machine_fault(error):
                raise
            del self._frames[pictures:]
            row["dropped"] = "error"
            self._errors.append(logged_error(self._source.uri, error, name))

    def _scored(
        self, kept: ShotTracks, name: str, end: float, box: tuple[float, float, float, float]
    ) -> dict[str, Any]:
        """Return the scan's scores of a clip and store its sampled frames."""
        size, scores = (self._probe.width, self._probe.height), dict[str, Any]()
        if 0 < len(kept.burst) < LEAST_BURST <= len(kept.times):
            kept = self._with_burst(kept)
        with self._clock("flow"):
            fits = self._tracks.field_fits(float(kept.times[0]), end)
            view = clip_view(kept, fits, name, end, size, box)
        for key, scorer in self._filters.items():
            with self._clock(f"filter:{key}"):
                scores |= score(scorer, [view], self._filter_failed)[0]
        self._sample(name, sampled(kept, view, self._options.frames_uniform, self._options.frames_peaks), box)
        return scores

    def _filter_failed(self, name: str, clip: ClipView, error: Exception) -> None:
        self._errors.append(logged_error(self._source.uri, error, clip.clip_id, name))

    def _sample(self, name: str, stills: Sequence[FrameCandidate], box: tuple[float, float, float, float]) -> None:
        with self._clock("jpeg"):
            for index, still in enumerate(stills):
                data = jpeg(still.rgb(box), self._options.jpeg_quality)
                self._frames.append({"clip_id": name, "index": index, "time": still.time, "jpeg": data})

    def _with_burst(self, kept: ShotTracks) -> ShotTracks:
        """Add consecutive frames from the middle of a clip that contains no burst of the grid."""
        first = max(0, (len(kept.times) - BURST_FRAMES) // 2)
        last = min(len(kept.times), first + BURST_FRAMES) - 1
        span = float(kept.times[first]) - 1e-6, float(kept.times[last]) + 1e-6
        exact = self._between(*span, self._shrinker.luma)
        return replace(kept, burst=np.stack(exact)) if exact else kept

    def _box(self, kept: ShotTracks) -> tuple[float, float, float, float]:
        with self._clock("borders"):
            return content_box(kept.luma)

    def _after_last(self) -> tuple[int, float]:
        """Return pts and time at which the last frame ends."""
        pts, _ = self._tracks.last
        pts += max(1, round(1 / (self._probe.fps * self._probe.time_base)))
        return pts, float(pts * self._probe.time_base)

    def _timed(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        while True:
            with self._clock("decode"):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - started


def _opened(segment: tuple[float, float] | None, probe: Probe) -> tuple[float, float]:
    """Return the segment, unbounded where it touches the ends of the source: the header's may be wrong."""
    if segment is None:
        return -math.inf, math.inf
    start, end = segment
    return (
        -math.inf if start <= probe.start + 1e-6 else start,
        math.inf if end >= probe.start + probe.duration - 1e-3 else end,
    )
