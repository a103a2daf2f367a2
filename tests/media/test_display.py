"""Pictures are shown as the file means them: turned, mirrored, deinterlaced, cropped to the pixel, from the right
stream; and a file that is encrypted is said to be."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from footage.numbered_frames import coded, cut_of, decoded
from footage.videos import texture, write_video
from repository import SHARED

from pipeline.config.recipe import PackOptions
from pipeline.media.encode import Cut, SpanReader, encode_span
from pipeline.media.proxy import Shrinker
from pipeline.media.video import MediaError, Video, probe
from pipeline.selection.buckets import bucket_names, bucket_size

HARD = SHARED / "hard"
MATRICES = {  # the first four of a display matrix (a, b, c, d), and what it makes of a picture
    "left and right swapped": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda picture: np.transpose(picture, (1, 0, 2))),
    "transposed the other way": ((0, -1, -1, 0), lambda picture: np.transpose(picture, (1, 0, 2))[::-1, ::-1]),
    "turned": ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
    "nothing": ((0, 0, 0, 0), lambda picture: picture),
}


def with_matrix(path: Path, matrix: tuple[int, ...]) -> None:
    """Overwrites the matrix in the track header of an MP4 with one video track (ISO/IEC 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = matrix
    data[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("name", MATRICES)
def test_a_display_matrix_is_honoured_by_the_scan_and_in_clips(tmp_path: Path, name: str) -> None:
    matrix, turn = MATRICES[name]
    picture = texture(1, 96, 160)
    path = write_video(tmp_path / "a.mp4", [picture] * 5, crf="5")
    with_matrix(path, matrix)
    expected = turn(picture).astype(int)
    with Video(str(path)) as video:
        frame = next(video.frames())
        shown = (video.probe.width, video.probe.height)
        assert shown == expected.shape[1::-1]
        assert np.abs(frame.rgb() - expected).mean() < 9
        assert np.abs(Shrinker(video.probe).still(frame, 512).rgb((0, 0, 1, 1)) - expected).mean() < 9
        encoded = encode_span(SpanReader(video), cut_of(video, 0, 0.2, size=shown), PackOptions())
    assert np.abs(decoded(encoded)[0].to_ndarray(format="rgb24") - expected).mean() < 9


@pytest.mark.parametrize("size", [(1920, 1080), (854, 480), (640, 360), (426, 240), (1080, 1920)])
def test_usual_sizes_are_cropped_to_multiples_of_16_without_scaling(tmp_path: Path, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(60, 200, (size[1] // 2, size[0] // 2, 1), dtype=np.uint8)
    picture = np.kron(picture, np.ones((2, 2, 3), np.uint8))  # of 2x2 blocks: scaling would blur them
    path = write_video(tmp_path / "a.mp4", [picture] * 2, codec="ffv1", container_options={"strict": "-2"})
    heights = PackOptions().heights
    name = bucket_names(np.array([size[0]]), np.array([size[1]]), np.array([False]), heights)[0].as_py()
    width, height = bucket_size(name)
    left, top = ((side - kept) // 2 // 2 * 2 for side, kept in zip(size, (width, height), strict=True))
    with Video(str(path)) as video:
        y = next(video.frames()).planes()[0][top : top + height, left : left + width]
        full = (0, 0, *size)
        cut = Cut(0, round(1 / video.probe.time_base), video.probe.time_base, size, full, (width, height))
        frame = decoded(encode_span(SpanReader(video), cut, PackOptions()))[0]
    packed = np.frombuffer(frame.planes[0], np.uint8).reshape(height, -1)[:, :width]
    assert np.corrcoef(packed.ravel(), y.ravel())[0, 1] > 0.98


def test_frames_that_turn_interlaced_within_a_span_are_deinterlaced(tmp_path: Path) -> None:
    """Two transport streams after each other are one."""
    still, woven = texture(8, 96, 192, scale=40), []
    for index in range(10):
        frame = np.roll(still, 12 * index, axis=1)
        frame[1::2] = np.roll(still, 12 * index + 6, axis=1)[1::2]
        woven.append(frame)
    times = [index / 25 for index in range(20)]
    first = write_video(tmp_path / "1.ts", [still] * 10, times=times[:10], crf="5", bf="0")
    interlaced = {"flags": "+ildct+ilme", "x264-params": "interlaced=1:bframes=0"}
    second = write_video(tmp_path / "2.ts", woven, times=times[10:], crf="5", **interlaced)
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with Video(str(path)) as video:
        flags = [bool(frame.native.interlaced_frame) for frame in video.frames()]
        assert flags == [False] * 10 + [True] * 10
        shown = decoded(encode_span(SpanReader(video), cut_of(video, 0, 0.8, size=(192, 96)), PackOptions()))
    assert len(shown) == 20

    def combs(rgb: np.ndarray) -> float:
        grey = rgb.mean(axis=2)
        return float(np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean())

    packed = [frame.to_ndarray(format="rgb24") for frame in shown]
    assert np.mean([combs(frame) for frame in packed[10:]]) < 0.5 * np.mean([combs(frame) for frame in woven])
    assert np.abs(packed[4].astype(int) - still).mean() < 9


def test_an_encrypted_file_is_said_to_be(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4",
        [coded(i) for i in range(3)],
        container_options={
            "encryption_scheme": "cenc-aes-ctr",
            "encryption_key": "00" * 16,
            "encryption_kid": "11" * 16,
        },
    )
    with pytest.raises(MediaError, match="encrypted"):
        probe(str(path))


def test_an_animated_avif_is_a_film_and_a_still_one_a_picture(tmp_path: Path) -> None:
    for count in (1, 6):
        path = write_video(tmp_path / f"{count}.avif", [texture(i, 96, 160) for i in range(count)], 25, "libsvtav1")
        with Video(str(path)) as video:
            assert len(list(video.frames())) == count
            assert video.probe.image == (count == 1)


@pytest.mark.parametrize(
    ("name", "frames", "fps"),
    [
        ("alpha_video.avif", 48, 25),
        ("Chimera-AV1-10bit-480x270.avif", 95, 23.976),
        ("fixture.asf", 153, 5.588),
        ("sample-with-large-length.avi", 58, 30),
        ("fixture.ogm", 48, 25),
        ("sample_edit_list_no_sync_frame_before_edit.mp4", 68, 27.7),
    ],
)
def test_hard_files_give_their_frames_at_their_rate(name: str, frames: int, fps: float) -> None:
    if not (HARD / name).exists():
        pytest.skip("the collection of hard files is not here")
    with Video(str(HARD / name)) as video:
        assert video.probe.fps == pytest.approx(fps, rel=0.01)
        times = [frame.time for frame in video.frames()]
    assert len(times) == frames
    assert np.all(np.diff(times) > 0)


def test_a_mirrored_hard_file_is_as_its_makers_meant_it() -> None:
    path = HARD / "sample_rotate_and_reflect.mp4"
    if not path.exists():
        pytest.skip("the collection of hard files is not here")
    with Video(str(path)) as video:
        frame = next(video.frames())
        assert (video.probe.rotation, video.probe.mirrored) == (270, True)
        as_coded = frame.native.to_ndarray(format="rgb24").astype(int)
        assert np.abs(frame.rgb() - np.transpose(as_coded, (1, 0, 2))).mean() < 5
    with pytest.raises(MediaError, match="encrypted"):
        probe(str(HARD / "sample_fragmented_clearkey.mp4"))


def test_a_span_after_a_seek_that_an_edit_list_misleads_is_whole() -> None:
    path = HARD / "sample_edit_list_no_sync_frame_before_edit.mp4"
    if not path.exists():
        pytest.skip("the collection of hard files is not here")
    with Video(str(path)) as video:
        pts = [frame.pts for frame in video.frames()]
    for first in (9, 12):
        with Video(str(path)) as video:
            assert [frame.pts for frame in SpanReader(video).frames(pts[first], pts[-1] + 1)] == pts[first:]
