"""Encoding a span: exactly its frames, as they look, the same bytes every time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from footage import videos
from footage.numbered_frames import coded, cut_of, decoded, number_of

from pipeline.config.recipe import PackOptions
from pipeline.media.encode import Cut, SpanReader, encode_image, encode_span
from pipeline.media.frame_rate import span_fps, without_gaps
from pipeline.media.video import MediaError, Video

STREAMS = {
    "h264 with B-frames": ("a.mp4", {"g": "12", "bf": "3"}),
    "open GOP": ("a.mkv", {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "transport stream": ("a.ts", {"g": "12", "bf": "3"}),
    "one keyframe": ("a.mp4", {"g": "300"}),
    "h265": ("a.mp4", {"codec": "libx265", "x265-params": "log-level=none:pools=none:keyint=12:bframes=3"}),
    "vp9 with hidden frames": (
        "a.webm",
        {"codec": "libvpx-vp9", "g": "12", "auto-alt-ref": "1", "deadline": "realtime"},
    ),
    "mpeg-4 in avi": ("a.avi", {"codec": "mpeg4", "g": "12"}),
    "10 bit": ("a.mkv", {"pix_fmt": "yuv420p10le", "g": "12"}),
    "4:4:4": ("a.mkv", {"pix_fmt": "yuv444p", "g": "12"}),
    "full range": ("a.mp4", {"pix_fmt": "yuvj420p", "g": "12"}),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_span_is_exactly_its_frames(name: str, tmp_path: Path) -> None:
    file, options = STREAMS[name]
    path = videos.write_video(tmp_path / file, (coded(i) for i in range(40)), fps=25, **options)  # type: ignore[arg-type]
    with Video(str(path)) as video:
        reader = SpanReader(video)
        for first, last in ((17, 31), (31, 33), (3, 9)):  # after each other, and back
            result = encode_span(reader, cut_of(video, first / 25 - 0.002, last / 25 - 0.002), PackOptions())
            frames = decoded(result)
            assert [number_of(f.to_ndarray(format="gray")) for f in frames] == list(range(first, last))
            assert result.frames == last - first
            assert frames[0].pts * frames[0].time_base < 0.01
            assert np.diff([float(f.pts * f.time_base) for f in frames]) == pytest.approx(0.04, abs=0.0021)


def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    gaps = np.random.default_rng(0).choice([0.02, 0.04, 0.1], 40)
    times = np.round(np.cumsum(gaps), 3)
    path = videos.write_video(tmp_path / "a.mp4", (coded(i) for i in range(40)), times=list(times), g="15", bf="2")
    with Video(str(path)) as video:
        cut = cut_of(video, times[11] - times[0] - 0.001, times[30] - times[0] - 0.001)
        result = encode_span(SpanReader(video), cut, PackOptions())
    frames = decoded(result)
    assert [number_of(f.to_ndarray(format="gray")) for f in frames] == list(range(11, 30))
    shown = [float(f.pts * f.time_base) for f in frames]
    assert np.array(shown) - shown[0] == pytest.approx(times[11:30] - times[11], abs=1e-3)
    assert result.duration == pytest.approx(times[30] - times[11], abs=1e-3)


def test_a_missing_frame_does_not_change_the_rate_and_a_variable_rate_is_averaged() -> None:
    film = [1001] * 53 + [2002]  # one frame is missing before the end
    assert without_gaps(film).tolist() == [1001] * 53
    milliseconds = [33, 33, 34] * 10
    assert without_gaps([*milliseconds, 133, *milliseconds]).mean() == pytest.approx(100 / 3)
    assert without_gaps([1, 2] * 10).mean() == 1.5
    assert without_gaps([5]).tolist() == [5]
    times = np.arange(54) * 1001 / 30000
    assert span_fps(times, times[-1] + 2002 / 30000) == pytest.approx(29.97, abs=1e-3)
    assert span_fps(times, times[-1] + 1001 / 30000) == pytest.approx(29.97, abs=1e-3)
    assert span_fps(times[:1], 0.0) == 0


def test_a_constant_rate_shows_what_was_on_at_each_time(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.4, 0.5, 0.75]
    path = videos.write_video(tmp_path / "a.mp4", (coded(i) for i in range(6)), times=times)
    with Video(str(path)) as video:
        result = encode_span(SpanReader(video), cut_of(video, 0.0, 1.0), PackOptions(fps=10))
    frames = decoded(result)
    assert [number_of(f.to_ndarray(format="gray")) for f in frames] == [0, 1, 2, 2, 3, 4, 4, 4, 5, 5]
    assert (result.frames, result.fps, result.duration) == (10, 10.0, 1.0)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_source_comes_out_upright(rotation: int, tmp_path: Path) -> None:
    upright = cv2.resize(videos.texture(5, 96, 64, scale=24), (64, 96))
    stored = np.ascontiguousarray(np.rot90(upright, -rotation // 90))
    path = videos.write_video(tmp_path / "a.mp4", [stored] * 4, rotation=rotation, crf="5")
    with Video(str(path)) as video:
        shown = (video.probe.width, video.probe.height)
        expected = upright if rotation % 180 == 0 or shown == (64, 96) else None
        assert expected is not None
        result = encode_span(SpanReader(video), cut_of(video, 0, 0.16, size=(64, 96)), PackOptions())
    assert np.abs(decoded(result)[1].to_ndarray(format="rgb24").astype(int) - upright).mean() < 9


def test_wide_pixels_become_square(tmp_path: Path) -> None:
    wide = videos.texture(6, 96, 192, scale=24)
    squeezed = cv2.resize(wide, (96, 96), interpolation=cv2.INTER_AREA)
    path = videos.write_video(tmp_path / "a.mp4", [squeezed] * 4, aspect=Fraction(2), crf="5")
    with Video(str(path)) as video:
        assert (video.probe.width, video.probe.height) == (192, 96)
        cut = cut_of(video, 0, 0.16, size=(96, 48), crop=(0, 0, 192, 96))
        frame = decoded(encode_span(SpanReader(video), cut, PackOptions()))[0]
    expected = cv2.resize(wide, (96, 48), interpolation=cv2.INTER_AREA)
    assert (frame.sample_aspect_ratio if hasattr(frame, "sample_aspect_ratio") else 1) in (1, None)
    assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - expected).mean() < 9


def test_the_middle_of_the_crop_fills_the_size_without_stretching() -> None:
    part = Cut(0, 1, Fraction(1), (200, 100), (20, 10, 160, 80), (64, 64)).part()
    assert part == pytest.approx((60 / 200, 10 / 100, 80 / 200, 80 / 100))


def test_a_letterbox_is_cut_off(tmp_path: Path) -> None:
    picture = videos.texture(7, 96, 192)
    boxed = np.zeros((144, 192, 3), np.uint8)
    boxed[24:120] = picture
    path = videos.write_video(tmp_path / "a.mp4", [boxed] * 3, crf="5")
    with Video(str(path)) as video:
        result = encode_span(SpanReader(video), cut_of(video, 0, 0.12, crop=(0, 24, 192, 96)), PackOptions())
    assert np.abs(decoded(result)[0].to_ndarray(format="rgb24").astype(int) - picture).mean() < 9


def test_colours_survive_full_range_and_both_matrices(tmp_path: Path) -> None:
    patches = np.zeros((96, 192, 3), np.uint8)
    for i, colour in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200), (250, 250, 250)]):
        patches[:, i * 48 : (i + 1) * 48] = colour
    for pix_fmt in ("yuv420p", "yuvj420p"):
        path = videos.write_video(tmp_path / f"{pix_fmt}.mp4", [patches] * 3, pix_fmt=pix_fmt, crf="1")
        with Video(str(path)) as video:
            frame = decoded(encode_span(SpanReader(video), cut_of(video, 0, 0.12), PackOptions()))[0]
        assert frame.format.name == "yuv420p"
        shown = frame.to_ndarray(format="rgb24")[:, 24::48].astype(int)
        assert np.abs(shown - patches[:, 24::48]).max() < 12, pix_fmt


def test_combs_of_interlaced_material_are_gone(tmp_path: Path) -> None:
    still = videos.texture(8, 96, 192, scale=40)
    frames = []
    for i in range(10):
        woven = np.roll(still, 12 * i, axis=1)
        woven[1::2] = np.roll(still, 12 * i + 6, axis=1)[1::2]
        frames.append(woven)
    path = videos.write_video(tmp_path / "a.ts", frames, codec="mpeg2video", flags="+ildct+ilme", qmin="1", qmax="2")
    with Video(str(path)) as video:
        flagged = next(video.frames()).native.interlaced_frame
        result = encode_span(SpanReader(video), cut_of(video, 0.08 - 0.002, 0.32 - 0.002), PackOptions())
    if not flagged:
        pytest.skip("this encoder did not mark its frames as interlaced")

    def combs(rgb: np.ndarray) -> float:
        grey = rgb.mean(axis=2)
        return float(np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean())

    shown = [f.to_ndarray(format="rgb24") for f in decoded(result)]
    assert len(shown) == 6
    assert np.mean([combs(f) for f in shown]) < 0.5 * np.mean([combs(f) for f in frames])


@pytest.mark.parametrize("codec", ["h264", "h265", "av1"])
@pytest.mark.parametrize("preset", ["fast_loading", "small"])
def test_the_same_span_gives_the_same_bytes(codec: str, preset: str, tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "a.mp4", (coded(i) for i in range(12)), bf="2")
    options = PackOptions(codec=codec, preset=preset)
    results = []
    for _ in range(2):
        with Video(str(path)) as video:
            reader = SpanReader(video)
            if results:
                encode_span(reader, cut_of(video, 0, 0.16), options)  # what came before leaves no trace
            results.append(encode_span(reader, cut_of(video, 0.078, 0.478), options))
    assert results[0] == results[1]
    frames = decoded(results[0])
    assert [number_of(f.to_ndarray(format="gray")) for f in frames] == list(range(2, 12))
    assert b"Lavf" not in results[0].data
    assert results[0].data.index(b"moov") < results[0].data.index(b"mdat")


def test_most_frames_of_what_is_packed_for_loading_are_needed_by_no_other(tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "a.mp4", (coded(i) for i in range(25)))
    with Video(str(path)) as video:
        encoded = encode_span(SpanReader(video), cut_of(video, 0, 1), PackOptions(preset="fast_loading"))
    kinds = "".join(av.video.frame.PictureType(frame.pict_type).name for frame in decoded(encoded))
    assert kinds.count("B") >= 18


def test_an_image_becomes_a_jpeg_of_the_size(tmp_path: Path) -> None:
    picture = videos.texture(9, 200, 300)
    cv2.imwrite(str(tmp_path / "a.png"), picture[:, :, ::-1])
    with Video(str(tmp_path / "a.png")) as video:
        result = encode_image(SpanReader(video), cut_of(video, 0, 1, size=(144, 96)))
    shown = cv2.imdecode(np.frombuffer(result.data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert (result.media, result.frames, result.width, result.height) == ("jpg", 1, 144, 96)
    expected = cv2.resize(picture, (144, 96), interpolation=cv2.INTER_AREA)
    assert np.abs(shown.astype(int) - expected).mean() < 6


def test_a_span_that_the_source_does_not_have_is_an_error(tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "a.mp4", (coded(i) for i in range(4)))
    with Video(str(path)) as video, pytest.raises(MediaError, match="no frame in the span"):
        encode_span(SpanReader(video), cut_of(video, 10, 12), PackOptions())
