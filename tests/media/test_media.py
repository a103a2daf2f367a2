"""Decoding is exact in presentation time, whatever the container and the stream do, and bad files have reasons."""

from __future__ import annotations

import io
import wave
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from footage.videos import texture, write_video

from pipeline.media.video import MediaError, Video, probe

COUNT = 40


def numbered(index: int, height: int = 96, width: int = 160) -> np.ndarray:
    """A frame that says its number: six bright or dark bars, most significant left."""
    bits = [(index >> (5 - b)) & 1 for b in range(6)]
    row = np.repeat(np.array(bits) * 180 + 30, width // 6 + 1)[:width]
    return np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8)


def number_of(rgb: np.ndarray) -> int:
    step = rgb.shape[1] // 6 + 1
    bars = [rgb[:, min(b * step + step // 2, rgb.shape[1] - 1)].mean() > 120 for b in range(6)]
    return sum(int(bar) << (5 - b) for b, bar in enumerate(bars))


def read(path, start=None) -> list[tuple[float, int]]:
    with Video(str(path)) as video:
        return [(frame.time, number_of(frame.rgb())) for frame in video.frames(start)]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("bframes.mp4", "libx264", {"bf": "3", "g": "12"}),
        ("opengop.mp4", "libx264", {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3"}),
        ("opengop.mkv", "libx264", {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3"}),
        ("interlaced.mp4", "libx264", {"flags": "+ildct+ilme", "x264-params": "interlaced=1", "g": "12"}),
        ("ten.mp4", "libx264", {"pix_fmt": "yuv420p10le", "g": "12"}),
        ("hevc.mp4", "libx265", {"x265-params": "keyint=12:bframes=3:log-level=none"}),
        ("vp9.webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
        ("av1.mp4", "libsvtav1", {"g": "12", "preset": "8", "crf": "10"}),
        ("transport.ts", "libx264", {"bf": "3", "g": "12"}),
        ("old.avi", "mpeg4", {"g": "12"}),
        ("matroska.mkv", "libx264", {"bf": "3", "g": "12"}),
    ],
)
def test_every_frame_comes_once_in_order_and_a_seek_agrees(tmp_path, name, codec, options):
    frames = [numbered(i) for i in range(COUNT)]
    path = write_video(tmp_path / name, frames, 25, codec, **options)
    all_frames = read(path)
    assert [number for _, number in all_frames] == list(range(COUNT))
    times = np.array([time for time, _ in all_frames])
    assert np.allclose(times - times[0], np.arange(COUNT) / 25, atol=1.5e-3)
    info = probe(str(path))
    assert info.start == pytest.approx(times[0])
    assert info.duration == pytest.approx(COUNT / 25, abs=0.05)
    assert info.fps == pytest.approx(25, rel=0.03)
    for wanted in (0.0, 0.5, 0.9, 1.3, 5.0):
        got = read(path, times[0] + wanted)
        assert got == all_frames[-len(got) :]
        assert got[0][0] <= times[0] + wanted


def test_a_variable_frame_rate_keeps_its_times(tmp_path):
    times = np.cumsum([0.0] + [0.02, 0.04, 0.1, 0.033, 0.5] * 7).tolist()
    path = write_video(tmp_path / "vfr.mp4", [numbered(i) for i in range(len(times))], times=times, bf="2")
    got = read(path)
    assert [number for _, number in got] == list(range(len(times)))
    assert np.allclose([time for time, _ in got], times, atol=1e-4)


def test_a_delayed_start_is_part_of_the_time(tmp_path):
    times = [3.0 + i / 25 for i in range(20)]
    path = write_video(tmp_path / "late.mkv", [numbered(i) for i in range(20)], times=times)
    assert read(path)[0] == (pytest.approx(3.0, abs=2e-3), 0)
    assert probe(str(path)).start == pytest.approx(3.0, abs=2e-3)
    assert probe(str(path)).duration == pytest.approx(0.8, abs=0.05)


def test_repeated_and_backward_times_are_left_out(tmp_path):
    """Block times of a Matroska file are rewritten in place: no muxer writes such a file."""
    frames = [numbered(i) for i in range(8)]
    path = write_video(tmp_path / "odd.mkv", frames, codec="mjpeg", pix_fmt="yuvj420p")
    data = path.read_bytes()
    for old, new in ((120, 80), (200, 120)):  # frame 3 repeats a time, frame 5 goes back
        block = b"\x81" + old.to_bytes(2, "big") + b"\x80"  # track, time, keyframe
        assert data.count(block) == 1
        data = data.replace(block, b"\x81" + new.to_bytes(2, "big") + b"\x80")
    path.write_bytes(data)
    got = read(path)
    assert [number for _, number in got] == [0, 1, 2, 4, 6, 7]
    assert np.allclose([time for time, _ in got], [0, 0.04, 0.08, 0.16, 0.24, 0.28], atol=1e-3)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(tmp_path, rotation):
    picture = texture(1, 96, 160)
    path = write_video(tmp_path / "turned.mp4", [picture] * 5, rotation=rotation, crf="5")
    with Video(str(path)) as video:
        info, frame = video.probe, next(video.frames())
    shown = frame.rgb()
    assert (info.width, info.height) == ((96, 160) if rotation % 180 else (160, 96)) == shown.shape[1::-1]
    expected = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}[rotation]
    assert np.abs(shown.astype(int) - cv2.rotate(picture, expected)).mean() < 12


def test_pixel_aspect_widens_the_display(tmp_path):
    path = write_video(tmp_path / "dv.mp4", [texture(2, 96, 120)] * 3, aspect=Fraction(4, 3))
    info = probe(str(path))
    assert (info.width, info.height, info.coded_width) == (160, 96, 120)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray", "yuv444p10le"])
def test_planes_are_eight_bit_luma_of_any_format(tmp_path, pix_fmt):
    picture = texture(3, 96, 160)
    path = write_video(tmp_path / "deep.mkv", [picture] * 2, codec="ffv1", pix_fmt=pix_fmt)
    with Video(str(path)) as video:
        y, u, v = next(video.frames()).planes()
    assert y.dtype == u.dtype == v.dtype == np.uint8
    reference = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p").to_ndarray()[0]
    if pix_fmt == "gray":
        reference = (reference.astype(float) - 16) * 255 / 219
    assert np.abs(y.astype(float) - reference).mean() < 1.5


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_image_is_one_frame(tmp_path, suffix):
    path = tmp_path / f"still.{suffix}"
    cv2.imwrite(str(path), texture(4, 90, 120)[:, :, ::-1])
    with Video(str(path)) as video:
        assert video.probe.image
        assert (video.probe.width, video.probe.height, video.probe.duration) == (120, 90, 0.0)
        assert len(list(video.frames())) == 1


def test_a_binary_file_is_read_like_a_path(tmp_path):
    path = write_video(tmp_path / "a.mp4", [numbered(i) for i in range(10)])
    with Video(io.BytesIO(path.read_bytes())) as video:
        assert [number_of(frame.rgb()) for frame in video.frames()] == list(range(10))


def test_bad_files_have_reasons(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video at all\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(100_000))
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    whole = write_video(tmp_path / "whole.mp4", [numbered(i) for i in range(COUNT)]).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index was at the end
    reasons = {
        "missing.mp4": "no such file",
        "empty.mp4": "empty file",
        "text.mp4": "not a video file",
        "noise.mp4": "not a video file",
        "sound.wav": r"no video stream \(only audio\)",
        "cut.mp4": "header is damaged or cut off",
    }
    for name, reason in reasons.items():
        with pytest.raises(MediaError, match=reason):
            probe(str(tmp_path / name))


def test_sound_files_with_a_cover_have_no_video(tmp_path):
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=44100)
        cover = container.add_stream("png")
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(texture(5, 32, 32), format="rgb24")
        container.mux(cover.encode(picture) + cover.encode(None))
        samples = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
        samples.sample_rate = 44100
        container.mux(sound.encode(samples) + sound.encode(None))
    with pytest.raises(MediaError, match="no video stream"):
        probe(str(path))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("pyramid.mp4", "libx264", {"bf": "3", "g": "48"}),
        ("transport.ts", "libx264", {"bf": "3", "g": "48"}),
        ("opengop.mkv", "libx264", {"x264-params": "open-gop=1:keyint=24:bframes=5:b-pyramid=2"}),
        ("hevc.mp4", "libx265", {"x265-params": "keyint=48:bframes=4:log-level=none"}),
        ("mpeg4.avi", "mpeg4", {}),
        ("fields.mp4", "libx264", {"flags": "+ildct+ilme", "x264-params": "interlaced=1"}),
    ],
)
def test_reference_frames_alone_are_right_and_the_times_of_all_are_known(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, [numbered(i % 64) for i in range(150)], 25, codec, **options)
    with Video(str(path)) as video:
        every = [frame.pts for frame in video.frames()]
        start = video.probe.start
        frames = list(video.frames(None, lambda time: 2 <= time - start < 2.5))
        assert [pts for frame in frames for pts in frame.skipped_pts] + video.remaining == every
        assert all(number_of(frame.rgb()) == every.index(frame.pts) % 64 for frame in frames)
        assert len([frame for frame in frames if 2 <= frame.time - start < 2.5]) in (12, 13)
        assert (len(frames) < 120) == video.skips == (name not in ("mpeg4.avi", "fields.mp4"))
        later = list(video.frames(start + 3.0, lambda time: False))
        passed = [pts for frame in later for pts in frame.skipped_pts] + video.remaining
        assert passed == every[-len(passed) :]
        assert len(passed) >= 75
