"""Filters of the embed and caption passes: similarity, tags, consistency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from filters import load_filter
from filters.base import ClipView
from filters.content.similarity import visual_sentences
from filters.encoders.base import EncoderOutput

WORDS = ("dog", "car", "lake", "night")


class WordEncoder:
    """One dimension a word: what a text or frame holds is known exactly. A frame's colour names its word."""

    id = "words:1"
    dim = len(WORDS)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.array([[float(word in text) for word in WORDS] for text in texts], np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    def frames(self, rgb: np.ndarray) -> np.ndarray:
        return np.eye(self.dim, dtype=np.float32)[rgb[:, 0, 0, 0]]

    def look(self, frames: Sequence[np.ndarray]) -> EncoderOutput:
        rows = self.frames(np.stack(frames))
        return EncoderOutput(rows, rows, [[(WORDS[int(f[0, 0, 0])], 1.0)] for f in frames])


def clip(words: Sequence[str], caption: str | None = None) -> ClipView:
    frames = [np.full((4, 4, 3), WORDS.index(word), np.uint8) for word in words]
    none = np.zeros((0, 4), np.float32)
    looked = WordEncoder().look(frames) if frames else EncoderOutput(none, none, [])
    return ClipView(
        "c",
        0,
        2,
        25,
        640,
        360,
        frames=frames,
        caption=caption,
        embedding=looked.embedding,
        appearance=looked.appearance,
    )


def test_similarity_is_the_mean_over_frames_and_its_worst_sentence_is_the_least_shown() -> None:
    similarity = load_filter("similarity", encoder=WordEncoder())
    right, half, wrong, pair, invented = map(
        similarity.score,
        [
            clip(["dog", "dog"], "A dog runs."),
            clip(["dog", "car"], "A dog runs."),
            clip(["car", "car"], "A dog runs."),
            clip(["dog", "car"], "A dog runs. Then a car passes! The camera pans left to the lake."),
            clip(["dog", "car"], "A dog runs. Then a lake is seen."),
        ],
    )
    assert [s["similarity_clip"] for s in (right, half, wrong)] == pytest.approx([1.0, 0.5, 0.0])
    assert pair["similarity_sentence_min"] == pytest.approx(1.0)
    assert invented["similarity_sentence_min"] == pytest.approx(0.0)
    assert right["similarity_encoder"] == "words:1"


def test_what_cannot_be_compared_has_no_similarity() -> None:
    similarity = load_filter("similarity", encoder=WordEncoder())
    bad = clip(["dog"], "A dog.")
    odd = [
        clip([], "A dog runs."),
        clip(["dog"]),
        clip(["dog"], "  "),
        replace(bad, embedding=np.full((1, 4), np.nan, np.float32)),
        replace(bad, embedding=np.ones((1, 7), np.float32)),
    ]
    assert [scores["similarity_null"] for scores in map(similarity.score, odd)] == [
        "no usable embedding", "no caption", "no caption", "no usable embedding", "no usable embedding",
    ]  # fmt: skip
    camera = similarity.score(clip(["dog"], "The camera pans left."))
    assert camera["similarity_sentence_min"] is None
    assert camera["similarity_null"] == "no sentence about visible content"


def test_sentences_are_found_and_those_about_the_camera_left_out() -> None:
    caption = "A bicycle (0.61) stands there. The camera pans left; it shakes. Is it 3.5 m long? Static camera. Yes!"
    assert visual_sentences(caption) == ["A bicycle (0.61) stands there.", "Is it 3.5 m long?", "Yes!"]
    assert visual_sentences(" ... ") == []


def test_tags_are_the_mean_over_frames_best_first() -> None:
    tags = load_filter("tags", {"count": 2})
    view = replace(clip(["dog"]), tags=[[("dog", 0.6), ("cat", 0.3)], [("car", 0.5), ("dog", 0.2)], [], []])
    scores = tags.score(view)
    assert scores["tags_labels"] == ["dog", "car"]
    assert scores["tags_probabilities"] == pytest.approx([0.2, 0.125])


def test_a_missed_cut_is_the_lowest_consistency() -> None:
    same, cut = map(load_filter("consistency").score, [clip(["dog"] * 4), clip(["dog", "dog", "car", "car"])])
    assert same["consistency_min"] == pytest.approx(1.0)
    assert cut["consistency_min"] == pytest.approx(0.0)
    assert cut["consistency_mean"] == pytest.approx(2 / 3)
