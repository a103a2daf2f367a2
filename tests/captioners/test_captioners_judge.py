"""Captions asked back: what the judge denies, or says of the mirrored clip too, is taken out."""

import numpy as np
import pytest

from captioners.base import Caption, ClipFrames
from captioners.text.audit import audit
from captioners.vlm.judge import backwards, judged, mirrored


def caption_of(dense):
    return Caption("clip", dense.split(".")[0] + ".", dense)


class BrightSide:
    """A judge that sees one thing, on which side the frames' bright half moves to, and otherwise says yes."""

    def __init__(self, fooled=False):
        self.fooled, self.questions = fooled, []

    def ask(self, clips, questions):
        self.questions += questions
        return [self._one(clip, question) for clip, question in zip(clips, questions, strict=True)]

    def _one(self, clip, question):
        if "giraffe" in question:
            return 0.1
        centres = [
            float((f[..., 0].mean(0) * np.arange(f.shape[1])).sum() / f[..., 0].mean(0).sum()) for f in clip.frames
        ]
        goes = "right" if centres[-1] > centres[0] else "left"
        if "to the left" in question or "to the right" in question:
            return 0.9 if self.fooled or f"to the {goes}" in question else 0.2
        return 0.95


def moving_box(to_right=True):
    frames = [np.zeros((20, 60, 3), np.uint8) for _ in range(4)]
    for i, frame in enumerate(frames if to_right else frames[::-1]):
        frame[5:15, 5 + 12 * i : 15 + 12 * i] = 255
    return ClipFrames("clip", 4.0, frames, np.arange(4.0), {})


def test_sentences_that_the_judge_denies_are_taken_out():
    caption = caption_of("A white box moves to the right. A giraffe stands behind it. The floor is black.")
    judge = BrightSide()
    (kept,) = judged([caption], [moving_box()], judge)
    assert kept.dense == "A white box moves to the right. The floor is black."
    assert kept.usage["unfaithful"] == 1
    assert audit(kept, moving_box()).score["audit_faithfulness"] == pytest.approx(np.log([0.9, 0.1, 0.95]).mean())
    (wrong,) = judged([caption_of("A white box moves to the left. The floor is black.")], [moving_box()], BrightSide())
    assert wrong.dense == "The floor is black."


def test_a_judge_that_says_the_same_of_the_mirrored_clip_is_not_believed():
    caption = caption_of("A white box moves to the right. The floor is black.")
    (kept,) = judged([caption], [moving_box()], BrightSide(fooled=True))
    assert kept.dense == "The floor is black."


def test_mirrored_and_reversed_clips_are_what_they_say():
    clip = moving_box()
    assert np.array_equal(mirrored(mirrored(clip)).frames[0], clip.frames[0])
    assert np.array_equal(backwards(moving_box(to_right=False)).frames, clip.frames)
    assert BrightSide().ask([mirrored(clip), backwards(clip)], ["It moves to the left."] * 2) == [0.9, 0.9]
    assert np.all(np.diff(backwards(clip).times) > 0)


def test_a_caption_of_which_nothing_is_left_is_rejected():
    (kept,) = judged([caption_of("A giraffe stands here.")], [moving_box()], BrightSide())
    assert audit(kept, moving_box()).rejected == "empty"
