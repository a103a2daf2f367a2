"""Frames come out in display order at their times, whatever the container stores: each codec with B-frames in each
container that takes it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.config.recipe import PackOptions
from pipeline.media.encode import Cut, SpanReader, encode_span
from pipeline.media.video import Video

COUNT, FPS = 40, 25
SIZE = (160, 96)
CODECS = {
    "h264": ("libx264", {"bf": "3", "g": "12", "b_strategy": "0"}),
    "h264 open GOP": ("libx264", {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0"}),
    "hevc": ("libx265", {"x265-params": "keyint=12:bframes=3:b-adapt=0:log-level=none:pools=none"}),
    "mpeg4": ("mpeg4", {"bf": "2", "g": "12"}),
    "mpeg2": ("mpeg2video", {"bf": "2", "g": "12"}),
}
PAIRS = [
    *(("h264", c) for c in "mp4 mov matroska avi mpegts mpeg vob flv nut asf h264 mxf 3gp ismv f4v".split()),  # noqa: SIM905
    *(("h264 open GOP", container) for container in ("mp4", "avi", "asf", "mpegts")),
    *(("hevc", c) for c in "mp4 mov matroska mpegts mpeg flv nut hevc ismv".split()),  # noqa: SIM905
    *(("mpeg4", c) for c in "mp4 matroska avi mpegts mpeg nut asf m4v 3gp".split()),  # noqa: SIM905
    *(("mpeg2", c) for c in "mp4 matroska avi mpegts mpeg vob nut asf mpeg2video mxf".split()),  # noqa: SIM905
]


def numbered(index: int) -> np.ndarray:
    """A picture of six bars, bright or dark, that spell its number in binary."""
    bits = np.array([index >> (5 - bit) & 1 for bit in range(6)])
    row = np.repeat(bits * 180 + 30, SIZE[0] // 6 + 1)[: SIZE[0]].astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (SIZE[1], SIZE[0], 3)))


def number_of(frame: av.VideoFrame) -> int:
    grey, step = frame.to_ndarray(format="gray"), SIZE[0] // 6 + 1
    bars = [grey[:, min(bit * step + step // 2, SIZE[0] - 1)].mean() > 120 for bit in range(6)]
    return sum(int(bar) << (5 - bit) for bit, bar in enumerate(bars))


def write(path: Path, codec: str, container: str) -> None:
    encoder, options = CODECS[codec]
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(encoder, rate=FPS, options={"threads": "1", **options})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for index in range(COUNT):
            frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def by_ffmpeg(path: Path) -> list[tuple[int, float | None]]:
    """Number and time of the frames as FFmpeg's decoder gives them."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_type = "NONE"
        return [
            (number_of(frame), None if frame.pts is None else float(frame.pts * stream.time_base))
            for frame in file.decode(stream)
        ]


@pytest.mark.parametrize(("codec", "container"), PAIRS)
def test_frames_are_in_display_order_at_their_times(tmp_path: Path, codec: str, container: str) -> None:
    path = tmp_path / "film"
    write(path, codec, container)
    reference = by_ffmpeg(path)
    with Video(str(path)) as video:
        frames = [(number_of(frame.native), frame.time) for frame in video.frames()]
        assert [number for number, _ in frames] == [number for number, _ in reference] == list(range(COUNT))
        times = np.array([time for _, time in frames])
        assert times - times[0] == pytest.approx(np.arange(COUNT) / FPS, abs=1.5e-3)
        assert video.probe.fps == pytest.approx(FPS, rel=0.01)
        given = [time for _, time in reference if time is not None]
        if len(given) == COUNT and np.all(np.diff(given) > 0):  # else FFmpeg knows decoding times only, or few times
            assert times == pytest.approx(given)
        for start in (0.7, 1.1):
            later = [(number_of(frame.native), frame.time) for frame in video.frames(times[0] + start)]
            assert later == frames[-len(later) :]
            assert later[0][1] <= times[0] + start


@pytest.mark.parametrize(("codec", "container"), [("h264", "avi"), ("h264 open GOP", "avi"), ("mpeg2", "asf")])
def test_a_span_of_a_file_with_decoding_times_only_is_its_frames(tmp_path: Path, codec: str, container: str) -> None:
    path = tmp_path / "film"
    write(path, codec, container)
    with Video(str(path)) as video:
        assert not video.skips
        pts = [frame.pts for frame in video.frames()]
    with Video(str(path)) as video:  # which has not decoded anything yet
        cut = Cut(pts[17], pts[31], video.probe.time_base, SIZE, (0, 0, *SIZE), SIZE)
        encoded = encode_span(SpanReader(video), cut, PackOptions())
    copy = tmp_path / "clip.mp4"
    copy.write_bytes(encoded.data)
    assert [number for number, _ in by_ffmpeg(copy)] == list(range(17, 31))


def test_frames_of_a_stream_with_few_times_are_all_given(tmp_path: Path) -> None:
    """An MPEG program stream of H.264 has a time a pack, and FFmpeg none for the frames between."""
    path = tmp_path / "film.mpg"
    write(path, "h264", "mpeg")
    assert [time for _, time in by_ffmpeg(path)].count(None) > COUNT // 2
    with Video(str(path)) as video:
        all_pts = [pts for frame in video.frames(None, lambda _: False) for pts in frame.skipped_pts] + video.remaining
    assert len(all_pts) == COUNT
    assert np.diff(all_pts) == pytest.approx(3600)
