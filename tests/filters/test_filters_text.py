"""Burned-in against filmed lettering, on textures with known text and a known camera."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from videos import texture

from filters import load_filter
from filters.base import ClipView, Filter


@pytest.fixture(scope="module")
def text() -> Filter:
    return load_filter("text")


def write(picture: np.ndarray, words: str, x: int, y: int, size: int = 26) -> np.ndarray:
    image = Image.fromarray(picture)
    style = {"font": ImageFont.load_default(size), "fill": "white", "stroke_width": 2, "stroke_fill": "black"}
    ImageDraw.Draw(image).text((x, y), words, **style)
    return np.array(image)


def clip(frame: Callable[[int], np.ndarray], count: int = 4) -> ClipView:
    return ClipView("c", 0, 4, 25, 480, 270, frames=[frame(k) for k in range(count)])


WORLD = cv2.GaussianBlur(texture(3, 400, 900), (5, 5), 0)
SIGN = write(WORLD, "GRAND HOTEL", 300, 120)


def view(picture: np.ndarray, k: int) -> np.ndarray:
    """The camera pans to the right, 40 pixels a sampled frame."""
    return np.ascontiguousarray(picture[60:330, 150 + 40 * k : 630 + 40 * k])


def test_text_that_stays_while_the_picture_moves_was_burned_in(text: Filter) -> None:
    burned, filmed, both, bare = map(
        text.score,
        [
            clip(lambda k: write(view(WORLD, k), "GRAND HOTEL", 150, 60)),
            clip(lambda k: view(SIGN, k)),
            clip(lambda k: write(view(SIGN, k), "Channel 5", 20, 200)),
            clip(lambda k: view(WORLD, k)),
        ],
    )
    assert burned["text_overlay"] == pytest.approx(burned["text_area"])
    assert 0.02 < burned["text_area"] < 0.1
    assert filmed["text_overlay"] == 0
    assert filmed["text_area"] == pytest.approx(burned["text_area"], rel=0.4)
    assert 0 < both["text_overlay"] < 0.8 * both["text_area"]
    assert bare == {"text_area": 0, "text_overlay": 0, "text_subtitle": 0}


def test_frames_are_searched_only_beside_frames_with_text(text: Filter) -> None:
    def words_in(*frames: int) -> ClipView:
        return clip(lambda k: write(view(WORLD, k), "GRAND HOTEL", 150, 60) if k in frames else view(WORLD, k))

    assert text.score(words_in(1))["text_area"] == 0  # the first and third frames have none
    once, twice = (text.score(words_in(*frames))["text_area"] for frames in ((2,), (1, 2)))
    assert twice == pytest.approx(2 * once, rel=0.1)


def test_under_a_still_camera_nothing_tells_a_sign_from_a_caption(text: Filter) -> None:
    scores = text.score(clip(lambda _: view(SIGN, 1)))
    assert scores["text_area"] > 0.02
    assert scores["text_overlay"] is None


def test_the_area_is_that_of_the_lettering(text: Filter) -> None:
    small, large = (text.score(clip(lambda _, s=s: write(view(WORLD, 0), "HELLO", 100, 90, s))) for s in (24, 48))
    assert large["text_area"] / small["text_area"] == pytest.approx(4, rel=0.5)
    left, top, right, bottom = ImageFont.load_default(48).getbbox("HELLO")
    assert large["text_area"] == pytest.approx((right - left) * (bottom - top) / (480 * 270), rel=0.6)


def test_a_row_from_side_to_side_is_no_line_of_text(text: Filter) -> None:
    """A crowd, a hedge or a shore, which the detector takes for lettering."""
    row, line = (
        text.score(clip(lambda _, w=w: write(view(WORLD, 0), w, -4, 200, 24))) for w in ("HOTEL " * 9, "HOTEL " * 3)
    )
    assert row["text_area"] == 0
    assert line["text_area"] > 0.01


def test_subtitles_are_low_and_centred(text: Filter) -> None:
    line = "and then they left"
    width = ImageFont.load_default(22).getlength(line)
    low, high, corner = map(
        text.score,
        [
            clip(lambda k: write(view(WORLD, k), line, int(240 - width / 2), 225, 22)),
            clip(lambda k: write(view(WORLD, k), line, int(240 - width / 2), 30, 22)),
            clip(lambda k: write(view(WORLD, k), "ch 5", 10, 225, 22)),
        ],
    )
    assert low["text_subtitle"] == 1
    assert high["text_subtitle"] == 0
    assert corner["text_subtitle"] == 0


def test_a_black_picture_has_no_text(text: Filter) -> None:
    black = ClipView("c", 0, 1, 25, 640, 360, frames=[np.zeros((270, 480, 3), np.uint8)])
    assert text.score(black) == {"text_area": 0, "text_overlay": 0, "text_subtitle": 0}
