"""Properties of tracks, shots, scans and filters for any times, sizes and contents: nothing raises, nothing is lost."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from footage.videos import texture, write_video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import filters
from filters import FILTERS
from filters.base import ClipView, Filter, score, why_null
from filters.movement.flow import coarse_flow
from filters.picture.naturalness import distance
from pipeline.config.recipe import Recipe, ScanOptions
from pipeline.media.colour import Colour
from pipeline.media.frame import Frame, seconds
from pipeline.media.proxy import Shrinker
from pipeline.media.video import Probe
from pipeline.scan.scan import scan
from pipeline.scan.tracks import Tracks, clip_view, crop_pixels, motion_peaks, sampled
from pipeline.shots.shot_cutter import LONGEST, ShotCutter, Transition, equal_parts
from pipeline.sources.discover import Source

BASE = Fraction(1, 1000)
WHOLE = (0.0, 0.0, 1.0, 1.0)
NEED_WEIGHTS = ("aesthetics", "nsfw", "watermark", "concepts")  # files or prompts that no wheel holds
FAST = (
    *("borders", "exposure", "motion", "camera", "frozen", "flicker"),
    *("interlacing", "blockiness", "noise", "logo", "naturalness"),
)
SLOW = ("text", "safety", "faces", "objects")  # networks over colour frames

instants = st.one_of(  # milliseconds: repeated, negative, huge, hours apart
    st.integers(-5_000, 5_000),
    st.sampled_from((0, 1, 40, -1, 3_600_000, 2**31, 2**40, -(2**40))),
    st.integers(-(2**50), 2**50),
)  # fmt: skip
sizes = st.sampled_from(
    ((1, 1), (1, 90), (90, 1), (2, 2), (16, 9), (90, 160), (90, 1600), (200, 90), (64, 64), (65, 300))
)


def native(height: int = 36, width: int = 64) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(texture(1, height, width), format="rgb24").reformat(format="yuv420p")


def probe(width: int = 64, height: int = 36, fps: float = 25.0) -> Probe:
    return Probe(1.0, fps, width, height, width, height, 0, "h264", "yuv420p", BASE, 0.0)


def frame(pts: int, picture: av.VideoFrame, b: bool = False, spare: bool = False) -> Frame:
    return Frame(pts, seconds(pts, BASE), False, picture, 0, False, Colour(), b, (pts,), spare)


@settings(max_examples=60)
@given(st.lists(instants, min_size=1, max_size=30, unique=True), st.lists(instants, min_size=2, max_size=6), st.data())
def test_spans_of_tracks_hold_each_frame_once_wherever_they_begin_and_end(
    pts: list[int], edges: list[int], data: st.DataObject
) -> None:
    tracks, picture = Tracks(Shrinker(probe()), 64, probe(), bursts=True), native()
    pts.sort()
    for p in pts:
        tracks.add(frame(p, picture, data.draw(st.booleans()), data.draw(st.booleans())))
    limits = [-math.inf, *sorted(seconds(e, BASE) for e in edges), math.inf]
    spans = [tracks.span(a, b) for a, b in pairwise(limits)]
    assert [p for span in spans for p in span.pts.tolist()] == pts
    for (start, end), span in zip(pairwise(limits), spans, strict=True):
        assert all(start <= time < end for time in span.times)
        assert len(span.luma) == len(span.luma_times) <= len(span.times)
        if len(span.times):
            fits = tracks.field_fits(start, end)
            assert all(start <= fit.first < fit.last < end for fit in fits)
            view = clip_view(span, fits, "id", float(span.times[-1]) + 0.04, (64, 36), WHOLE)
            chosen = sampled(span, view, 4, 4)
            assert len({still.time for still in chosen}) == len(chosen) <= 8
            motion_peaks(view, 4)
        following = tracks.next_frame(end)
        assert following is None or following[1] >= end
    tracks.forget(limits[1])
    assert tracks.span(-math.inf, limits[1]).times.size == 0
    assert tracks.span(limits[1], math.inf).pts.tolist() == [p for p in pts if seconds(p, BASE) >= limits[1]]


@settings(max_examples=100)
@given(st.lists(instants, min_size=1, max_size=40), st.lists(instants, max_size=10), st.tuples(instants, instants))
def test_shots_are_in_order_and_apart_whatever_the_times(
    times: list[int], cuts: list[int], segment: tuple[int, int]
) -> None:
    stamps = sorted(t / 1000 for t in times)
    for limits in ((-math.inf, math.inf), (min(segment) / 1000, max(segment) / 1000)):
        cutter, pending = ShotCutter(limits), sorted(t / 1000 for t in cuts)
        cutter.begin(stamps[0], True)
        shots = []
        for time in stamps:
            due = [c for c in pending if stamps[0] < c <= time]
            pending = [c for c in pending if c > time]
            shots += cutter.push([Transition(c, c) for c in due], time)
            if cutter.done:
                break
        shots += cutter.finish()
        assert all(shot.start < shot.end for shot in shots)
        assert all(a.end <= b.start for a, b in pairwise(shots))
        assert len(shots) < 1500 * (len(times) + len(cuts) + 1)
        if limits[0] == -math.inf:
            assert shots
            assert shots[0].start == stamps[0]


def test_a_jump_of_a_year_is_cut_as_its_cells_would_be() -> None:
    year = 365 * 86400.0
    cutter = ShotCutter()
    cutter.begin(1.0, True)
    shots = [*cutter.push([], 2.0), *cutter.push([], year + 2.0), *cutter.push([], year + 3.0), *cutter.finish()]
    assert shots[0].end == LONGEST
    assert shots[-1].start == year // LONGEST * LONGEST
    assert all(a.end <= b.start for a, b in pairwise(shots))


@given(st.lists(instants, min_size=1, max_size=60, unique=True), st.integers(1, 2**41), st.floats(0.05, 1e6))
def test_parts_of_a_shot_cover_its_frames_in_order(pts: list[int], after: int, longest: float) -> None:
    times = sorted(p / 1000 for p in pts)
    parts = equal_parts(times, times[-1] + after / 1000, longest)
    assert parts[0][0] == 0
    assert parts[-1][1] == len(times)
    assert all(first < last for first, last in parts)
    assert all(a[1] == b[0] for a, b in pairwise(parts))


@given(
    st.tuples(*[st.floats(0, 0.5)] * 2, *[st.floats(0.5, 1)] * 2),
    st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
)
def test_crops_are_inside_their_picture(box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    x, y, width, height = crop_pixels(box, size)
    assert 0 <= x < x + width <= size[0]
    assert 0 <= y < y + height <= size[1]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from((1, 3, 40, 41, 500, 3_600_000, 80_000_000)), min_size=1, max_size=24),
    st.sampled_from(((16, 16), (16, 2048), (48, 64), (500, 18))),
    st.integers(0, 3),
)
def test_a_scan_has_every_frame_in_one_clip(tmp_path: Path, gaps: list[int], size: tuple[int, int], cuts: int) -> None:
    stamps = [0.0, *np.cumsum(gaps) / 1000]
    pictures = [texture(i * (cuts + 1) // len(stamps), *size) for i in range(len(stamps))]
    path = write_video(tmp_path / "odd.mkv", pictures, times=stamps, time_base=BASE, g="5", bf="1")
    scanned = scan(
        Source("id", str(path)), Recipe(scan=ScanOptions(min_seconds=0.1), filters={name: {} for name in FAST})
    )
    assert sum(clip["frames"] for clip in scanned.clips) <= len(stamps)
    assert sum(clip["frames"] for clip in scanned.clips) >= len(stamps) - 12  # those inside transitions are in none
    assert all(a["end_pts"] <= b["start_pts"] for a, b in pairwise(scanned.clips))
    assert all(clip["start_pts"] < clip["end_pts"] for clip in scanned.clips)
    assert not scanned.errors
    assert len({clip["clip_id"] for clip in scanned.clips}) == len(scanned.clips)


@st.composite
def odd_clips(draw: st.DrawFn) -> ClipView:
    """Any clip that the passes could make of a strange file."""
    height, width = draw(sizes)
    count = draw(st.integers(0, 6))
    stamps = np.sort(np.array(draw(st.lists(instants, min_size=count, max_size=count)), np.float64)) / 1000
    rng = np.random.default_rng(draw(st.integers(0, 5)))
    content = draw(st.sampled_from(("noise", "black", "white", "grey ramp", "one pixel")))
    luma = np.stack([picture(content, height, width, rng) for _ in range(count)]) if count else EMPTY
    flow = (
        [coarse_flow(a, b, float(dt)) for a, b, dt in zip(luma[:-1], luma[1:], np.diff(stamps), strict=True)]
        if count > 1
        else []
    )
    colour = [cvt(picture(content, height, width, rng)) for _ in range(draw(st.integers(0, 2)))]
    start = float(stamps[0]) if count else 0.0
    end = draw(st.sampled_from((start, start + 0.04, start + 1e9)))
    return ClipView(
        clip_id="odd",
        start=start,
        end=end,
        fps=draw(st.sampled_from((0.0, 1e-9, 25.0, 999.0))),
        width=width,
        height=height,
        luma=luma,
        luma_times=stamps,
        flow=np.stack(flow) if flow else np.zeros((0, 0, 0, 2), np.float32),
        flow_times=np.stack([stamps[:-1], stamps[1:]], axis=1) if flow else np.zeros((0, 2)),
        burst=luma[: draw(st.integers(0, 6))],
        detail=[picture(content, min(height, 256), min(width, 256), rng) for _ in range(draw(st.integers(0, 2)))],
        frames=colour,
        frame_times=np.linspace(start, end, len(colour)),
    )


EMPTY = np.zeros((0, 0, 0), np.uint8)


def picture(content: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width) uint8."""
    if content == "noise":
        return rng.integers(0, 256, (height, width), np.uint8)
    if content == "grey ramp":
        return np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    plane = np.full((height, width), 255 if content == "white" else 0, np.uint8)
    if content == "one pixel":
        plane[height // 2, width // 2] = 200
    return plane


def cvt(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


class NoEncoder:
    id, dim = "none:1", 4

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.full((len(texts), self.dim), 0.5, np.float32)


@functools.cache
def loaded(name: str) -> Filter:
    return filters.load_filter(name, {}, NoEncoder())


@pytest.mark.parametrize("name", [name for name in FILTERS if name not in NEED_WEIGHTS])
def test_no_filter_raises_and_every_score_is_finite_or_null_with_a_reason(name: str) -> None:
    @settings(max_examples=3 if name in SLOW else 25)
    @given(odd_clips())
    def holds(clip: ClipView) -> None:
        errors: list[Exception] = []
        (answer,) = score(loaded(name), [clip], lambda _, __, error: errors.append(error))
        assert not errors
        assert set(answer) - {why_null(name)} == set(loaded(name).columns)
        assert all(math.isfinite(value) for value in answer.values() if isinstance(value, float))

    holds()


@settings(max_examples=40)
@given(sizes, st.sampled_from(("noise", "black", "white", "grey ramp", "one pixel")), st.integers(1, 3))
def test_naturalness_is_a_finite_distance_or_none(size: tuple[int, int], content: str, count: int) -> None:
    rng = np.random.default_rng(0)
    away = distance([picture(content, *size, rng) for _ in range(count)])
    assert away is None or (math.isfinite(away) and away >= 0)
