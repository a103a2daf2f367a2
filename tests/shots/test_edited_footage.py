"""Shots of films as they are edited and encoded: bars, similar shots, mixed frames, flashes, loops."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from footage.videos import pan, texture, write_video

from pipeline.config.recipe import Recipe, ScanOptions
from pipeline.scan.scan import scan
from pipeline.shots import bars
from pipeline.shots.blend import is_mixed
from pipeline.shots.frame_features import REACH, features
from pipeline.sources.discover import Source

FPS = 25
SIZE = (320, 180)
WHOLE = (0, 27, 0, 48)


def shots(tmp_path, frames) -> list[tuple[int, int]]:
    """Frames of the shots that a scan of an encoded film cuts."""
    path = write_video(tmp_path / "film.mp4", frames, FPS, bf="2", crf="20")
    recipe = Recipe(scan=ScanOptions(min_seconds=0.0, max_seconds=1e9, frames_uniform=1, frames_peaks=0))
    return [(round(c["start"] * FPS), round(c["end"] * FPS)) for c in scan(Source("film", str(path)), recipe).clips]


def moving(seed: int, frames: int) -> list[np.ndarray]:
    tint = [(1.0, 0.6, 0.4), (0.4, 0.7, 1.0), (0.7, 1.0, 0.5)][seed % 3]
    return pan((texture(seed, 180, 320) * tint).astype(np.uint8), frames, 1.5)


def closer(frames, scale: float) -> list[np.ndarray]:
    """The same from nearer by, as a jump cut shows it."""
    warp = np.array([[1 / scale, 0, 40], [0, 1 / scale, 20]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return [cv2.warpAffine(frame, warp, SIZE, flags=flags, borderMode=cv2.BORDER_REFLECT_101) for frame in frames]


def framed(frames, rows: tuple[int, int], columns: tuple[int, int], colour: int = 0) -> list[np.ndarray]:
    """The frames made smaller, inside bars."""
    inner = (columns[1] - columns[0], rows[1] - rows[0])
    result = []
    for frame in frames:
        result.append(np.full_like(frame, colour))
        view = result[-1][rows[0] : rows[1], columns[0] : columns[1]]
        view[:] = cv2.resize(frame, inner, interpolation=cv2.INTER_AREA)
    return result


@pytest.mark.parametrize(
    ("rows", "columns"), [((0, 180), (0, 320)), ((24, 156), (0, 320)), ((0, 180), (109, 211)), ((40, 140), (72, 248))]
)
def test_a_cut_between_two_views_of_one_scene_is_found_inside_any_bars(tmp_path, rows, columns):
    scene = moving(1, 120)
    film = framed([*scene[:60], *closer(scene[60:], 2.0)], rows, columns)
    assert shots(tmp_path, film) == [(0, 60), (60, 120)]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_mixed_frame_of_a_cut_is_in_no_shot(tmp_path, share):
    a, b = moving(0, 62), moving(1, 62)
    film = [*a[:60], cv2.addWeighted(a[60], 1 - share, b[1], share, 0), *b[2:]]
    (first, leave), (enter, last) = shots(tmp_path, film)
    assert (first, last) == (0, 121)
    assert leave in (59, 60)
    assert enter in (61, 62)


@pytest.mark.parametrize("frames", [1, 3, 9])
def test_a_flash_is_no_transition(tmp_path, frames):
    film = pan(texture(0), 110, 0.5)
    for i in range(50, 50 + frames):
        film[i] = cv2.addWeighted(film[i], 0.05, np.full_like(film[i], 255), 0.95, 0)
    for i in range(50 + frames, 56 + frames):  # the light fades
        share = 0.7 * 0.6 ** (i - 50 - frames)
        film[i] = cv2.addWeighted(film[i], 1 - share, np.full_like(film[i], 255), share, 0)
    assert shots(tmp_path, film) == [(0, 110)]


def test_the_seam_of_a_loop_is_a_cut(tmp_path):
    loop = pan(texture(2), 60, 1.0)  # its end shows another part of the scene than its beginning
    assert shots(tmp_path, [*loop, *loop, *loop]) == [(0, 60), (60, 120), (120, 180)]


def test_a_loop_without_a_seam_is_one_shot(tmp_path):
    forward = moving(2, 40)
    assert shots(tmp_path, [*forward, *forward[::-1], *forward, *forward[::-1]]) == [(0, 160)]


def small(frames) -> np.ndarray:
    return np.stack([cv2.resize(frame, (48, 27), interpolation=cv2.INTER_AREA) for frame in frames])


@pytest.mark.parametrize("colour", [0, 90])
def test_bars_are_lines_of_one_colour_on_opposite_sides(colour):
    scene = moving(0, 40)
    letterbox = small(framed(scene, (28, 152), (0, 320), colour))
    pillarbox = small(framed(scene, (0, 180), (110, 210), colour))
    assert set(bars.boxes(letterbox, REACH)) == {(4, 23, 0, 48)}
    assert set(bars.boxes(pillarbox, REACH)) == {(0, 27, 16, 32)}
    assert set(bars.boxes(small(scene), REACH)) == {WHOLE}


def test_a_dark_scene_and_a_title_have_no_bars():
    lamp = np.zeros((180, 320, 3), np.uint8)
    cv2.circle(lamp, (160, 90), 60, (200, 180, 120), -1)
    title = np.full((180, 320, 3), 240, np.uint8)
    cv2.putText(title, "The End", (60, 100), cv2.FONT_HERSHEY_DUPLEX, 1.5, (20, 20, 20), 3)
    for picture in (lamp, title, np.zeros_like(lamp)):
        assert set(bars.boxes(small([picture] * 30), REACH)) == {WHOLE}


def test_features_inside_bars_are_those_of_the_picture_alone():
    scene = moving(1, 60)
    times = np.arange(60) / 12.5
    boxed = small(framed(scene, (40, 140), (0, 320)))
    plain = features(small(scene), times)
    apart = [np.abs(of(boxed, times) - plain).mean() for of in (bars.inner_features, features)]
    assert apart[0] < 0.3 * apart[1]


def test_bars_that_come_and_go_leave_each_frame_its_own_box():
    scene = moving(1, 120)
    film = small([*framed(scene[:60], (28, 152), (0, 320)), *scene[60:]])
    boxes = bars.boxes(film, REACH)
    assert boxes[: 60 - 2 * REACH] == [(4, 23, 0, 48)] * (60 - 2 * REACH)
    assert boxes[60 - REACH :] == [WHOLE] * (120 - 2 * REACH - 60 + REACH)
    times = np.arange(120) / 12.5
    assert len(bars.inner_features(film, times)) == 120 - 2 * REACH
    alone = bars.inner_features(film[: 2 * REACH + 1], times[: 2 * REACH + 1])
    assert np.allclose(alone[0], bars.inner_features(film, times)[0], atol=1e-4)


def test_a_mixed_frame_lies_between_its_neighbours():
    a, b = small(moving(0, 3)), small(moving(1, 3))
    assert is_mixed(a[0], cv2.addWeighted(a[1], 0.6, b[1], 0.4, 0), b[2])
    assert not is_mixed(a[0], a[1], b[0])
    assert not is_mixed(a[0], b[0], b[1])
    assert not is_mixed(a[0], small(moving(2, 1))[0], b[0])
