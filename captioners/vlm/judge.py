"""Verification: a video-language model answers for each sentence of a caption whether it is true of the frames.

A sentence with a direction is also tested on the mirrored clip, one with an order on the reversed clip: a model that
confirms both cannot tell. Sentences that fail are removed from the caption; nothing is added.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from captioners.base import Action, Caption, ClipFrames
from captioners.text.claims import claims, sentences
from captioners.text.text_quality import ORDER

QUESTION = 'Is this true of the clip? "{}"'
LEAST = 0.5  # probability of yes under which a sentence is removed


class Judge(Protocol):
    def ask(self, clips: Sequence[ClipFrames], questions: Sequence[str]) -> list[float]:
        """Return the probability of yes against no, for one question a clip."""
        ...


def judged(captions: Sequence[Caption], clips: Sequence[ClipFrames], judge: Judge) -> list[Caption]:
    """Return the captions (matched to `clips` by id) without the sentences and actions that fail. `usage` gets
    "faithfulness", the mean natural logarithm of the probability of yes over all statements, and "unfaithful", the
    number of failed ones. If all fail the caption is empty, and the audit rejects it."""
    by_id = {clip.clip_id: clip for clip in clips}
    # Distinct sentences and actions.
    statements = [list(dict.fromkeys([*sentences(c.dense), *(action.text for action in c.actions)])) for c in captions]
    questions = [(by_id[c.clip_id], text) for c, texts in zip(captions, statements, strict=True) for text in texts]
    probabilities = _ask(judge, questions)
    altered = [
        (i, copy, text) for i, (clip, text) in enumerate(questions) if (copy := _altered(clip, text)) is not None
    ]
    altered_probabilities = _ask(judge, [(copy, text) for _, copy, text in altered])
    failed = [p < LEAST for p in probabilities]
    for (i, _, _), p in zip(altered, altered_probabilities, strict=True):
        failed[i] |= p >= probabilities[i]  # as likely of the mirrored or reversed copy
    kept, at = [], 0
    for caption, texts in zip(captions, statements, strict=True):
        span = slice(at, at := at + len(texts))
        wrong = {text for text, bad in zip(texts, failed[span], strict=True) if bad}
        kept.append(_without(caption, wrong, probabilities[span]))
    return kept


def mirrored(clip: ClipFrames) -> ClipFrames:
    """Return the clip mirrored left to right, without measurements."""
    return dataclasses.replace(clip, frames=[np.ascontiguousarray(f[:, ::-1]) for f in clip.frames], scores={})


def backwards(clip: ClipFrames) -> ClipFrames:
    """Return the clip with its frames in reverse order, without measurements."""
    times = (clip.duration - clip.times)[::-1]
    return dataclasses.replace(clip, frames=list(clip.frames)[::-1], times=times, scores={})


def _ask(judge: Judge, questions: Sequence[tuple[ClipFrames, str]]) -> list[float]:
    return (
        judge.ask([clip for clip, _ in questions], [QUESTION.format(text) for _, text in questions])
        if questions
        else []
    )


def _altered(clip: ClipFrames, text: str) -> ClipFrames | None:
    sides = ("left", "right")
    if any(claim.topic in ("direction", "camera") and claim.value.endswith(sides) for claim in claims(text)):
        return mirrored(clip)
    return backwards(clip) if ORDER.search(text) else None


def _without(caption: Caption, wrong: set[str], chance: Sequence[float]) -> Caption:
    dense = " ".join(text for text in sentences(caption.dense) if text not in wrong)
    actions: tuple[Action, ...] = tuple(action for action in caption.actions if action.text not in wrong)
    short = caption.short
    if wrong and dense:  # a short caption that equals a failed sentence is replaced
        short = caption.short if caption.short not in wrong else sentences(dense)[0]
    faithfulness = sum(math.log(max(p, 1e-6)) for p in chance) / len(chance) if chance else 0.0
    usage = {**caption.usage, "faithfulness": faithfulness, "unfaithful": len(wrong)}
    return dataclasses.replace(caption, short=short if dense else "", dense=dense, actions=actions, usage=usage)
