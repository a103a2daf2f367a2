"""Marks: names of stock agencies, web addresses and accounts that are burned into a clip, also under a still camera.

`text` distinguishes burned-in text from signs by motion around it. A mark like "shutterstock" is burned in whatever
moves, so here the text is read. The mean of the frames keeps what stays at its place and blurs the rest; after its
contrast is made even, the detector of `text` finds pale letters that it misses in every single frame.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown
from filters.overlays.text import TextDetector
from filters.weights import onnx_session, package_folder

# Agencies that sell footage with their name across it, and programs and sites that write theirs into a corner.
NAMES = (
    *("shutterstock", "istock", "istockphoto", "gettyimages", "adobestock", "dreamstime", "depositphotos", "pond5"),
    *("alamy", "123rf", "storyblocks", "videoblocks", "videohive", "envato", "vecteezy", "bigstock", "motionarray"),
    *("filmora", "kinemaster", "capcut", "inshot", "vivavideo", "bandicam", "clideo", "tiktok", "kwai", "youtube"),
)
ADDRESS = re.compile(r"(?:www\.)?([a-z0-9-]{3,})\.(?:com|net|org|tv|io|cn|ru|de|uk|fr|info)|@([a-z0-9_.]{4,})")
ENLARGED = 1.5  # factor by which the mean is enlarged for the detector; pale letters are missed at the frames' size
LIKELY = 0.5  # smallest mean probability of a line of text, less than in `text`: what is read decides
FINE, BROAD = 3.0, 6.0  # pixels: sigmas of the blur that is subtracted, and of the window that contrast is measured in
FLAT = 3.0  # grey levels added to that contrast, so that noise on flat ground stays faint
GAIN = 60.0  # grey levels for detail as strong as its surroundings
LEAST_HEIGHT = 9  # pixels: smaller lines cannot be read
MOST_LINES = 8  # more lines are a page or a screen, where a name is no mark; web clips with a mark have 1 to 4
EDGE = 0.2  # fraction of the height at the top and bottom in which addresses and accounts are marks, and not signs
READING_HEIGHT = 48  # pixels, of the recognition network's input


class Marks:
    """`marks_likeness`, 0 to 1: how well the line of text that resembles one most is a name of NAMES, or an address or
    account near the upper or lower edge (1). `marks_text`: that line as it was read; null where nothing resembles one.
    """

    name = "marks"
    version = 2
    needs = frozenset({Track.FRAMES})
    columns: Mapping[str, pa.DataType] = {"marks_likeness": pa.float32(), "marks_text": pa.string()}

    @functools.cached_property
    def detector(self) -> TextDetector:
        return TextDetector(LIKELY)

    @functools.cached_property
    def reader(self) -> TextReader:
        return TextReader()

    def score(self, clip: ClipView) -> dict[str, Score]:
        frames = [frame for frame in clip.frames if frame.shape == clip.frames[0].shape]
        if not frames or min(frames[0].shape[:2]) < 32:
            return unknown(self, "no frame of at least 32 pixels")
        picture = even_mean(frames)
        try:
            lines = self.detector(picture)
            tall = [line for line in lines if line.y1 - line.y0 >= LEAST_HEIGHT]
            if len(tall) > MOST_LINES:
                return {"marks_likeness": 0.0, "marks_text": None}
            texts = [self.reader(picture[line.y0 : line.y1, line.x0 : line.x1]) for line in tall]
        except FloatingPointError:
            return unknown(self, "the result is not a finite number")
        middles = [(line.y0 + line.y1) / 2 / len(picture) for line in tall]
        values = [likeness(text, not EDGE < y < 1 - EDGE) for text, y in zip(texts, middles, strict=True)]
        value, best = max(zip(values, texts, strict=True), default=(0.0, ""))
        return {"marks_likeness": value, "marks_text": best if value > 0 else None}


class TextReader:
    """The recognition network in RapidOCR's wheel (PP-OCR), on one CPU thread; about 20 ms a line."""

    def __init__(self) -> None:
        models = sorted((package_folder("rapidocr") / "models").glob("*rec*.onnx"))
        if not models:
            raise RuntimeError("the installed rapidocr contains no recognition model: install rapidocr>=3.10")
        self.session = onnx_session(models[-1])
        alphabet = self.session.get_modelmeta().custom_metadata_map["character"].splitlines()
        self.characters = ["", *alphabet, " "]  # class 0 is the blank of connectionist temporal classification

    def __call__(self, rgb: np.ndarray) -> str:
        """Return the text of one line, (h, w, 3) uint8 RGB. Raises FloatingPointError if the network's output is not
        finite."""
        width = max(READING_HEIGHT, round(READING_HEIGHT * rgb.shape[1] / rgb.shape[0]))
        bgr = cv2.resize(rgb, (width, READING_HEIGHT), interpolation=cv2.INTER_LINEAR)[..., ::-1]
        planes = np.ascontiguousarray(bgr.transpose(2, 0, 1)[None], np.float32) / 127.5 - 1
        probability = self.session.run(None, {self.session.get_inputs()[0].name: planes})[0][0]
        if not np.isfinite(probability).all():
            raise FloatingPointError
        classes = probability.argmax(axis=1)
        return "".join(self.characters[k] for k in classes[np.append(True, np.diff(classes) != 0)])


def even_mean(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of (h, w, 3) uint8 frames, enlarged, with its detail at the same contrast everywhere: uint8."""
    mean = np.mean([frame.astype(np.float32) for frame in frames], axis=0)
    detail = mean - cv2.GaussianBlur(mean, (0, 0), FINE)
    contrast = cv2.sqrt(cv2.GaussianBlur((detail**2).mean(axis=2), (0, 0), BROAD)) + FLAT
    even = np.clip(128 + GAIN * detail / contrast[..., None], 0, 255).astype(np.uint8)
    return cv2.resize(even, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC)


def likeness(text: str, at_edge: bool = True) -> float:
    """Return how well a line of text reads as a mark, 0 to 1; below 0.5 as 0. Addresses and accounts of other names are
    marks only if `at_edge`."""
    lower = text.lower().strip()
    address = ADDRESS.fullmatch(lower)
    if address and at_edge:
        return 1.0
    letters = re.sub(r"[^a-z0-9]", "", address[1] or address[2] if address else lower)
    ratio = max(SequenceMatcher(None, name, letters).ratio() for name in NAMES)
    return ratio if ratio >= 0.5 else 0.0
