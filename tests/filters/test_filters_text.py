"""Burned-in against filmed lettering, on textures with known text and a known camera."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from footage.videos import texture
from PIL import Image, ImageDraw, ImageFont

from filters import load_filter
from filters.base import ClipView, Filter
from filters.overlays.marks import likeness


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


SWAY = ((0, 0), (17, -9), (-12, 14), (21, 6))  # pixels: offsets of a hand-held camera at the sampled frames


def filmed(picture: np.ndarray, dx: int, dy: int, seed: int) -> np.ndarray:
    """A view of the world at an offset, with the noise of a sensor."""
    window = picture[60 + dy : 330 + dy, 230 + dx : 710 + dx].astype(np.float32)
    noise = np.random.default_rng(seed).normal(0, 4, window.shape)
    return np.clip(window + noise, 0, 255).astype(np.uint8)


def people(frame: np.ndarray, k: int) -> np.ndarray:
    """Two in patterned coats, who pass above and below a sign and are at other places in every frame."""
    for top, bottom, x in ((0, 58, 30 + 50 * k), (92, 262, 200 - 50 * k)):
        frame[top:bottom, x : x + 150] = texture(11 + top, bottom - top, 150)
    return frame


def test_a_board_sways_with_a_hand_held_camera_and_a_caption_does_not(text: Filter) -> None:
    board = clip(lambda k: filmed(SIGN, *SWAY[k], k))
    caption = clip(lambda k: write(filmed(WORLD, *SWAY[k], k), "GRAND HOTEL", 70, 60))
    assert text.score(board)["text_overlay"] == 0
    assert text.score(caption)["text_overlay"] == pytest.approx(text.score(caption)["text_area"])
    assert text.score(caption)["text_area"] > 0.02


def test_under_a_still_camera_nothing_tells_a_sign_from_a_caption(text: Filter) -> None:
    alone = clip(lambda k: filmed(SIGN, 0, 0, k))
    passed = clip(lambda k: people(filmed(SIGN, 0, 0, k), k))
    for still in (alone, passed):
        scores = text.score(still)
        assert scores["text_area"] > 0.01
        assert scores["text_overlay"] is None


def test_a_poster_that_is_held_still_and_then_moved_is_no_overlay(text: Filter) -> None:
    poster = write(np.full((44, 230, 3), 90, np.uint8), "VOTE TODAY", 20, 4)

    def held(k: int) -> np.ndarray:
        frame, x = view(WORLD, k), 120 + 14 * (k == 3)
        frame[100:144, x : x + 230] = poster
        return frame

    stays = text.score(clip(lambda k: held(min(k, 2)) if k < 3 else write(view(WORLD, 3), "VOTE TODAY", 140, 104)))
    assert stays["text_overlay"] > 0
    assert text.score(clip(held))["text_overlay"] == 0


def test_a_mark_that_changes_its_corner_is_an_overlay(text: Filter) -> None:
    places = ((20, 20), (20, 20), (300, 220), (300, 220))
    scores = text.score(clip(lambda k: write(view(WORLD, k), "@somebody", *places[k])))
    assert scores["text_overlay"] == pytest.approx(scores["text_area"])
    assert scores["text_area"] > 0.01


def test_a_page_of_text_is_no_overlay_and_has_no_subtitles(text: Filter) -> None:
    def page(lines: int) -> ClipView:
        def frame(k: int) -> np.ndarray:
            picture = view(WORLD, k)
            for line in range(lines):
                picture = write(picture, "and then they went on", 160, 244 - 24 * line, 16)
            return picture

        return clip(frame)

    full, few = text.score(page(11)), text.score(page(2))
    assert full["text_overlay"] is None
    assert full["text_subtitle"] == 0
    assert few["text_overlay"] > 0.02
    assert few["text_subtitle"] == 1


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


@pytest.fixture(scope="module")
def marks() -> Filter:
    return load_filter("marks")


def pale(picture: np.ndarray, words: str) -> np.ndarray:
    """Letters that add a fifth of white, as a stock agency writes across a picture."""
    written = write(picture, words, 110, 110, 40)
    return cv2.addWeighted(picture, 0.8, written, 0.2, 0)


def test_a_pale_name_of_an_agency_is_read_under_a_still_camera(marks: Filter) -> None:
    marked = marks.score(clip(lambda _: pale(view(WORLD, 0), "shutterstock")))
    assert marked["marks_likeness"] > 0.91
    assert marks.score(clip(lambda _: view(SIGN, 0)))["marks_likeness"] < 0.91


def test_addresses_and_accounts_are_marks_and_words_are_not() -> None:
    for text in ("clideo.com", "www.howcast.com", "@some_account"):
        assert likeness(text) == 1
    for text in ("GRAND HOTEL", "STOCK", "Round 2", "example.com/path", ""):
        assert likeness(text) < 0.91
    assert likeness("www.howcast.com", at_edge=False) < 0.91
    assert likeness("www.shutterstock.com", at_edge=False) == 1


def test_an_address_on_a_sign_or_a_name_on_a_page_is_no_mark(marks: Filter) -> None:
    def likeness_of(*placed: tuple[str, int, int]) -> float | None:
        picture = view(WORLD, 0)
        for words, x, y in placed:
            picture = write(picture, words, x, y, 20)
        return marks.score(clip(lambda _: picture))["marks_likeness"]

    assert likeness_of(("www.howcast.com", 250, 10)) == 1
    assert likeness_of(("www.howcast.com", 150, 120)) == 0
    page = [("watch the news", x, 14 + 30 * row) for row in range(8) for x in (10, 250)]
    assert likeness_of(("shutterstock", 10, 14)) == 1
    assert likeness_of(*page[1:], ("shutterstock", 10, 14)) == 0


def test_words_that_change_on_a_page_are_no_motion_around_those_that_stay(text: Filter) -> None:
    page = np.full((270, 480, 3), 230, np.uint8)
    typed = ["first words", "second line here", "and one more", "the end of it"]
    scores = text.score(clip(lambda k: write(write(page, "HEADING", 60, 60), typed[k], 60, 110)))
    assert scores["text_area"] > 0.02
    assert not scores["text_overlay"]
