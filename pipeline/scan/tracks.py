"""Data that the scan keeps until a shot has ended: the tracks of clips, and candidates for sampled frames."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from filters.base import ClipView
from filters.movement.flow import coarse_flow
from filters.picture.interlacing import field_columns, field_misfits, line_phases
from pipeline.media.frame import Frame, seconds
from pipeline.media.frame_rate import span_fps
from pipeline.media.proxy import FrameCandidate, Shrinker, crop
from pipeline.media.video import Probe

LUMA_RATE = 8.0  # frames a second of the luma track; flow is computed between neighbours in it
STILL_RATE = 3.0  # candidates a second for sampled frames
BURST_EVERY = 3.0  # seconds between the beginnings of bursts; the cost of a burst is decoding its frames
BURST_FRAMES = 12  # consecutive frames in a burst
LEAST_BURST = 8  # frames that a burst needs to be usable
MOST_UNFITTED = 3  # bursts whose fields are not fitted yet: by then most shots that are too short are known
DETAIL_PATCHES = 4  # patches of a clip at the source's resolution
PEAK_APART = 0.5  # seconds between two motion peaks

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class LumaFrame:
    """The small luma of a frame, (h, w) uint8."""

    time: float
    luma: np.ndarray


@dataclass(frozen=True)
class FieldColumns:
    """The `field_columns` of a frame."""

    time: float
    columns: np.ndarray


@dataclass(frozen=True)
class FieldFit:
    """What a frame and its neighbours tell of fields (filters/picture/interlacing.py), and the neighbours' times."""

    first: float
    last: float
    misfits: tuple[float, float]
    phases: np.ndarray  # (2, windows, periods) complex64


@dataclass(frozen=True)
class ShotTracks:
    """The frames of one span: presentation times and pts of all, and the tracks that fall inside."""

    times: np.ndarray  # (n,) float64
    pts: np.ndarray  # (n,) int64
    luma_times: np.ndarray
    luma: np.ndarray  # (m, h, w) uint8
    stills: Sequence[FrameCandidate]
    burst: np.ndarray  # (b, h, w) uint8


class Tracks:
    """Collects tracks frame by frame on grids of absolute time, so that they do not depend on where decoding began."""

    def __init__(self, shrinker: Shrinker, frame_side: int, probe: Probe, bursts: bool):
        self._shrinker, self._side = shrinker, frame_side
        self._base, self._wants_bursts = probe.time_base, bursts
        self._burst_seconds = (BURST_FRAMES + 0.5) / max(probe.fps, 1.0) if bursts else 0.0
        self._times: list[float] = []  # times of all frames of the source, including skipped ones
        self._pts: list[int] = []
        self._analysed: list[float] = []  # times of reference frames, which all tracks but bursts are made of
        self._last: float | None = None  # time of the last decoded frame
        self._luma: list[LumaFrame] = []
        self._stills: list[FrameCandidate] = []
        self._due = False  # whether the next frame that is not a B-frame becomes a still
        self._bursts: list[list[LumaFrame]] = []
        self._filling = False
        self._unfitted: deque[list[FieldColumns]] = deque()  # the frames of the last bursts
        self._fields: list[FieldFit] = []

    def add(self, frame: Frame) -> None:
        before, self._last = self._last, frame.time
        self.pass_over(frame.skipped_pts)
        if self._wants_bursts and _crossed(before, frame.time, 1 / BURST_EVERY):
            self._bursts.append([])
            self._unfitted.append([])
            if len(self._unfitted) > MOST_UNFITTED:
                self._fit_fields(self._unfitted.popleft())
            self._filling = True
        elif self._filling and len(frame.skipped_pts) > 1:
            self._filling = False  # frames were skipped, so this one does not follow the last
        in_luma_track = False
        if not frame.is_non_reference:
            last = self._analysed[-1] if self._analysed else None
            self._analysed.append(frame.time)
            late, again = self._due, _crossed(last, frame.time, STILL_RATE)
            self._due = late or again
            if self._due and (not frame.is_b_frame or (late and again)):  # a B-frame only if no other frame came
                self._stills.append(self._shrinker.still(frame, self._side))
                self._due = False
            in_luma_track = _crossed(last, frame.time, LUMA_RATE)
        if not in_luma_track and not self._filling:
            return
        grey = LumaFrame(frame.time, self._shrinker.luma(frame))
        if in_luma_track:
            self._luma.append(grey)
        if self._filling:
            self._bursts[-1].append(grey)
            self._filling = len(self._bursts[-1]) < BURST_FRAMES
            self._unfitted[-1].append(FieldColumns(frame.time, field_columns(frame.planes()[0])))

    def pass_over(self, pts: Sequence[int]) -> None:
        """Record the pts of frames of the source, decoded or skipped."""
        self._pts += pts
        self._times += [seconds(p, self._base) for p in pts]

    def in_burst(self, time: float) -> bool:
        """Return whether the burst track needs a frame at this time, so that it has to be decoded."""
        return time % BURST_EVERY < self._burst_seconds

    def skipped(self, after: float, before: float) -> bool:
        """Return whether the source has frames with after < time < before that were not analysed."""
        total, analysed = (bisect_left(t, before) - bisect_right(t, after) for t in (self._times, self._analysed))
        return total > analysed

    def span(self, start: float, end: float) -> ShotTracks:
        """Return the tracks of frames with start <= time < end; empty if there is no such frame."""
        first, last = bisect_left(self._times, start), bisect_left(self._times, end)
        luma = [p for p in self._luma if start <= p.time < end]
        bursts = [[p for p in burst if start <= p.time < end] for burst in self._bursts]
        middle = (self._times[first] + self._times[last - 1]) / 2 if first < last else start
        best = max(
            bursts, key=lambda b: (len(b) >= LEAST_BURST, -abs(b[0].time - middle)) if b else (False, -1e9), default=[]
        )
        return ShotTracks(
            times=np.array(self._times[first:last]),
            pts=np.array(self._pts[first:last], np.int64),
            luma_times=np.array([p.time for p in luma]),
            luma=_stack([p.luma for p in luma]),
            stills=[s for s in self._stills if start <= s.time < end],
            burst=_stack([p.luma for p in best]),
        )

    def field_fits(self, start: float, end: float) -> list[FieldFit]:
        """Return the fits of burst frames whose neighbours have start <= time < end.

        They are computed on demand because most shots that are dropped as too short end before their bursts are due.
        """
        for burst in self._unfitted:
            if burst[0].time < end:
                self._fit_fields(burst)
        return [fit for fit in self._fields if start <= fit.first and fit.last < end]

    def _fit_fields(self, burst: list[FieldColumns]) -> None:
        """Fit the fields of a burst's frames and keep its last two frames, which the next one is compared with."""
        for before, frame, after in zip(burst, burst[1:], burst[2:], strict=False):
            triple = before.columns, frame.columns, after.columns
            self._fields.append(FieldFit(before.time, after.time, field_misfits(*triple), line_phases(*triple)))
        del burst[:-2]

    def beside(self, time: float, since: float) -> tuple[FrameCandidate, FrameCandidate] | None:
        """Return the candidates before and after a cut at `time`; None without one between `since` and it, or after."""
        index = bisect_left(self._stills, time, key=lambda still: still.time)
        if not 0 < index < len(self._stills) or self._stills[index - 1].time < since:
            return None
        return self._stills[index - 1], self._stills[index]

    def forget(self, before: float) -> None:
        """Drop all data before a time that no later span will reach."""
        gone = bisect_left(self._times, before)
        del self._times[:gone], self._pts[:gone]
        del self._analysed[: bisect_left(self._analysed, before)]
        self._luma = [p for p in self._luma if p.time >= before]
        self._stills = [s for s in self._stills if s.time >= before]
        self._fields = [f for f in self._fields if f.first >= before]
        while len(self._bursts) > 1 and self._bursts[0][-1].time < before:
            del self._bursts[0]
        while len(self._unfitted) > 1 and self._unfitted[0][-1].time < before:
            self._unfitted.popleft()

    def next_frame(self, time: float) -> tuple[int, float] | None:
        """Return pts and time of the first frame at or after `time`."""
        index = bisect_left(self._times, time)
        return (self._pts[index], self._times[index]) if index < len(self._times) else None

    @property
    def last(self) -> tuple[int, float]:
        return self._pts[-1], self._times[-1]


def clip_view(
    kept: ShotTracks, fits: Sequence[FieldFit], clip_id: str, end: float, size: tuple[int, int], box: Box
) -> ClipView:
    """Return the scan's tracks of one clip, cropped to `box`; `size` is width and height of the source as displayed."""
    luma = np.ascontiguousarray(crop(kept.luma, box))
    start = float(kept.times[0])
    times = kept.luma_times
    flow = [coarse_flow(a, b, float(dt)) for a, b, dt in zip(luma[:-1], luma[1:], np.diff(times), strict=True)]
    return ClipView(
        clip_id=clip_id,
        start=start,
        end=end,
        fps=span_fps(kept.times, end),
        width=size[0],
        height=size[1],
        box=box,
        luma=luma,
        luma_times=times,
        flow=np.stack(flow) if flow else np.zeros((0, 0, 0, 2), np.float32),
        flow_times=np.stack([times[:-1], times[1:]], axis=1) if flow else np.zeros((0, 2)),
        burst=np.ascontiguousarray(crop(kept.burst, box)),
        fields=np.array([fit.misfits for fit in fits]).reshape(-1, 2),
        line_phases=np.stack([fit.phases for fit in fits]) if fits else np.zeros((0, 2, 0, 0), np.complex64),
        detail=[s.patch for s in _spread(kept.stills, DETAIL_PATCHES)],
    )


def sampled(kept: ShotTracks, view: ClipView, uniform: int, peaks: int) -> list[FrameCandidate]:
    """Choose the sampled frames among the candidates: `uniform` evenly spaced ones and those at the `peaks` strongest
    peaks of motion relative to the rest of the picture, each the sharpest in its neighbourhood; in order of time."""
    duration = view.end - view.start
    wanted = [(view.start + duration * (i + 0.5) / uniform, duration / uniform / 4) for i in range(uniform)]
    wanted += [(moment, 1 / STILL_RATE) for moment in motion_peaks(view, peaks)]
    unused, chosen = list(kept.stills), []
    for moment, around in wanted:
        if not unused:
            break
        near = [s for s in unused if abs(s.time - moment) <= around] or [
            min(unused, key=lambda s: abs(s.time - moment))
        ]
        best = max(near, key=lambda s: s.sharpness)
        chosen.append(best)
        unused = [s for s in unused if s is not best]
    return sorted(chosen, key=lambda s: s.time)


def motion_peaks(view: ClipView, count: int) -> list[float]:
    """Return the times, seconds, of the strongest motion relative to the picture's, strongest first, at least
    `PEAK_APART` apart."""
    if not len(view.flow):
        return []
    own = view.flow - np.nanmedian(view.flow, axis=(1, 2), keepdims=True)
    speed = np.nan_to_num(np.linalg.norm(own, axis=-1).mean(axis=(1, 2)))
    moments = view.flow_times.mean(axis=1)
    peaks: list[float] = []
    for index in np.argsort(-speed, kind="stable"):
        if len(peaks) == count:
            break
        if all(abs(moments[index] - other) >= PEAK_APART for other in peaks):
            peaks.append(float(moments[index]))
    return peaks


def crop_pixels(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the even-sized rectangle x, y, width, height inside `box` (fractions) of a picture of `size` pixels; the
    whole side where it would be under two pixels."""
    spans = []
    for low, high, pixels in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        first = 2 * math.ceil(low * pixels / 2 - 1e-6)
        length = 2 * math.floor((high * pixels - first) / 2 + 1e-6)
        spans.append((first, length) if length >= 2 else (0, pixels))
    (x, width), (y, height) = spans
    return x, y, width, height


def jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """(h, w, 3) uint8 RGB as a JPEG."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()


def _crossed(last: float | None, time: float, rate: float) -> bool:
    """Return whether a multiple of 1 / rate lies between two frames, or this is the first."""
    return last is None or int(time * rate) != int(last * rate)


def _spread(items: Sequence[FrameCandidate], count: int) -> list[FrameCandidate]:
    """Return `count` evenly spread items."""
    if not items:
        return []
    return [items[i] for i in sorted({int((k + 0.5) * len(items) / count) for k in range(count)})]


def _stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(pictures) if pictures else np.zeros((0, 0, 0), np.uint8)
