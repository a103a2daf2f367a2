"""The embedded encoder: a picture is the mean of its likely classes' embeddings (ConSE, Norouzi et al., ICLR 2014).

The sentence embeddings (MiniLM) of ImageNet classes are weighted with the probabilities by EfficientNet-Lite2; a
caption is represented by its own sentence embedding. Both models are in wheels, so nothing is downloaded. The encoder
covers a thousand objects and no actions: it separates most wrong captions from right ones, but is far less accurate
than CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from filters.encoders.base import EncoderOutput, one_thread
from filters.encoders.efficientnet import APPEARANCE, INPUT_SIZE, classifier
from filters.encoders.imagenet import imagenet_classes

if TYPE_CHECKING:
    from filters.encoders.minilm import SentenceEncoder

TOP = 10  # classes that make up an embedding, as in the paper
MEANINGS = Path(__file__).parent / "class_meanings.npz"  # written by tests/benchmarks/filters/encoders.py --meanings


class Conse:
    """Encoder with 384 dimensions. Each picture and each text is processed alone and on one thread, so that the result
    depends neither on the batch nor on the machine's cores."""

    id = "conse:efficientnet-lite2-9656183e:all-MiniLM-L6-v2:2"
    dim = 384

    def __init__(self) -> None:
        self.classifier = classifier()
        self.labels = [label for label, _ in imagenet_classes()]
        self.meanings = class_meanings()

    @cached_property
    def sentences(self) -> SentenceEncoder:
        from filters.encoders.minilm import SentenceEncoder  # imports torch; most workers embed no text

        return SentenceEncoder()

    def frames(self, rgb: np.ndarray) -> np.ndarray:
        return self.look(list(rgb)).embedding

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        with one_thread():
            return np.stack([self.sentences(text) for text in texts]) if texts else np.zeros((0, self.dim), np.float32)

    def look(self, frames: Sequence[np.ndarray]) -> EncoderOutput:
        rows, looks, tags = [], [], []
        for frame in frames:
            probability, appearance_row = self.classifier(middle_square(frame))
            likeliest = np.argsort(-probability, kind="stable")[:TOP]
            row = (probability[likeliest, None] * self.meanings[likeliest]).sum(axis=0)
            rows.append(row / np.linalg.norm(row))
            looks.append(appearance_row)
            tags.append([(self.labels[i], float(probability[i])) for i in likeliest])
        if not rows:
            return EncoderOutput(np.zeros((0, self.dim), np.float32), np.zeros((0, APPEARANCE), np.float32), [])
        return EncoderOutput(np.stack(rows), np.stack(looks), tags)


def class_meanings() -> np.ndarray:
    """Return the sentence embeddings of the classes' names and definitions, (1000, 384) float32, unit norm to 3 digits.

    They are stored because computing them takes as long as embedding a hundred clips. Name and definition together are
    more accurate than the name alone (tests/benchmarks/filters/encoders.py).
    """
    with np.load(MEANINGS) as stored:
        return stored["meanings"].astype(np.float32)


def appearance(frame: np.ndarray, side: int = INPUT_SIZE) -> np.ndarray:
    """Return `EncoderOutput.appearance` of one frame, (h, w, 3) uint8 RGB, without its embedding. A smaller `side` is
    cheaper; results of different sides are not comparable."""
    return classifier()(middle_square(frame, side))[1]


def middle_square(frame: np.ndarray, side: int = INPUT_SIZE) -> np.ndarray:
    """Return the central square of a picture (h, w, 3) uint8, resized to (side, side, 3) uint8."""
    height, width = frame.shape[:2]
    short = min(height, width)
    y0, x0 = (height - short) // 2, (width - short) // 2
    square = frame[y0 : y0 + short, x0 : x0 + short]
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if short > side else cv2.INTER_LINEAR)
