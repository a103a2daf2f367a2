"""Text: the share of the picture covered by text, and by burned-in text as opposed to filmed text.

Text is detected by the detector in RapidOCR's wheel (PP-OCR, a DB network: Liao et al., AAAI 2020). Filmed text moves
with its surface; burned-in text keeps its position while the camera moves. Under a still camera a sign keeps its
position too, even if people walk past it, so there text is not judged.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, evenly, unknown, why_null
from filters.weights import onnx_session, package_folder

CORE = 0.3  # probability above which a pixel is the core of a line of text
LIKELY = 0.7  # smallest mean probability of the rectangle around a core; snow, sand and foliage reach 0.65
THIN = 3  # pixels; thinner cores are noise
TALL = 0.65  # fraction of the picture's height; taller detections are fences, roofs and shadows
SIDE = 0.01  # fraction of the picture's width; detections as near to both sides are crowds, shores and hedges
UNCLIP = 1.6  # extent of a line beyond its core, in units of core area over core perimeter
STAYS = 0.65  # correlation of a line's edges in two frames above which it is the same text at the same position
MOVES = 0.6  # correlation of the edges around a line in two frames below which the picture there moved
BLOCK = 24  # pixels: side of the blocks in which the rest of the picture is compared
TEXTURED = 25.0  # grey levels: standard deviation of Sobel's gradients in a block that can be compared
STANDS = 0.8  # correlation of a block's edges in two frames above which it kept its position
STANDING = 0.15  # share of standing blocks above which the camera may be still; other overlays stand under a moving one
LEAST_BLOCKS = 8  # smallest number of blocks that are compared
SEARCH = 32  # pixels: distance within which a line is looked for in another frame
SHIFTED = 2  # pixels: displacement from which a line has moved, if its edges correlate by more than MOVES there ...
BETTER = 0.2  # ... and by this much more than where it was
PAGE = 10  # lines of text in a frame from which it is a page or a screen, whose text is the picture
BAND = 0.7  # fraction of the height below which subtitles lie
CENTRED = 0.05  # fraction of the width by which a subtitle may be off the centre
LEAST_WIDTH = 0.15  # fraction of the width: shorter lines are not taken for subtitles


class Line(NamedTuple):
    """One line of text: bounding box in pixels, x1 and y1 exclusive, and its area as a fraction of the picture."""

    x0: int
    y0: int
    x1: int
    y1: int
    area: float


class Text:
    """Columns, computed from at most `frames` sampled frames:

    - `text_area`: fraction of the picture that lines of text cover, mean over frames;
    - `text_overlay`: the same for lines that keep their position in another frame while hardly anything else does.
      Null if there are lines but the camera is still, because captions cannot be distinguished from signs then;
    - `text_subtitle`: fraction of the frames with a centred line in the lowest 30% of the picture.

    On a page or a screen, with `PAGE` lines or more in the median frame, `text_overlay` is null and `text_subtitle` 0.

    If no text is detected in every second frame, the other frames are not searched. On 141 real clips this missed the
    text of four clips, changed no decision by `text_overlay`, and saved 3 of 10 searches.
    """

    name = "text"
    version = 6
    needs = frozenset({Track.FRAMES})
    columns: Mapping[str, pa.DataType] = {
        "text_area": pa.float32(),
        "text_overlay": pa.float32(),
        "text_subtitle": pa.float32(),
    }

    def __init__(self, frames: int = 4):
        self.frames = frames

    @functools.cached_property
    def detector(self) -> TextDetector:
        return TextDetector()

    def score(self, clip: ClipView) -> dict[str, Score]:
        if not len(clip.frames) or min(clip.frames[0].shape[:2]) < 32:
            return unknown(self, "no frame of at least 32 pixels")
        chosen = evenly(len(clip.frames), self.frames)
        pictures = [clip.frames[i] for i in chosen if clip.frames[i].shape == clip.frames[0].shape]
        try:
            lines = self._lines(pictures)
        except FloatingPointError:
            return unknown(self, "the result is not a finite number")
        is_page = float(np.median([len(frame_lines) for frame_lines in lines])) >= PAGE
        overlay, subtitle = (None, 0.0) if is_page else judge_lines(pictures, lines)
        reason = "a page of text" if is_page else "no motion of the camera"
        return {
            "text_area": math.fsum(line.area for frame_lines in lines for line in frame_lines) / len(pictures),
            "text_overlay": overlay,
            "text_subtitle": subtitle,
            **({why_null(self.name): reason} if overlay is None else {}),
        }

    def _lines(self, pictures: Sequence[np.ndarray]) -> list[list[Line]]:
        lines: list[list[Line]] = [[] for _ in pictures]
        lines[::2] = map(self.detector, pictures[::2])
        if any(lines):
            lines[1::2] = map(self.detector, pictures[1::2])
        return lines


class TextDetector:
    """The detection network, which runs on one CPU thread; about 60 ms for 512x288 pixels. Its lines have a
    mean probability of at least `likely`."""

    def __init__(self, likely: float = LIKELY) -> None:
        self.likely = likely
        models = sorted((package_folder("rapidocr") / "models").glob("*det*.onnx"))
        if not models:
            raise RuntimeError("the installed rapidocr contains no detection model: install rapidocr>=3.10")
        self.session = onnx_session(models[-1])

    def __call__(self, rgb: np.ndarray) -> list[Line]:
        """Return the lines of text in (h, w, 3) uint8 RGB, from top to bottom. Raises FloatingPointError if the
        network's output is not finite."""
        height, width = rgb.shape[:2]
        size = max(32, round(width / 32) * 32), max(32, round(height / 32) * 32)
        bgr = cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR)[..., ::-1]
        planes = np.ascontiguousarray(bgr.transpose(2, 0, 1)[None], np.float32) / 127.5 - 1
        probability = self.session.run(None, {self.session.get_inputs()[0].name: planes})[0][0, 0]
        if not np.isfinite(probability).all():
            raise FloatingPointError
        outlines, _ = cv2.findContours((probability > CORE).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        lines = [line for outline in outlines if (line := _line(outline, probability, (height, width), self.likely))]
        return sorted(lines, key=lambda line: (line.y0, line.x0))


def _line(outline: np.ndarray, probability: np.ndarray, shape: tuple[int, int], likely: float) -> Line | None:
    """Return the line of text around a core, grown to the size of its letters; None if its mean probability is below
    `likely` or its shape is not that of text."""
    centre, (w, h), angle = cv2.minAreaRect(outline)
    if min(w, h) < THIN:
        return None
    x, y, bw, bh = cv2.boundingRect(outline)
    inside = np.zeros((bh, bw), np.uint8)
    cv2.fillPoly(inside, [np.round(cv2.boxPoints((centre, (w, h), angle)) - (x, y)).astype(np.int32)], 1)
    if cv2.mean(probability[y : y + bh, x : x + bw], inside)[0] < likely:
        return None
    grow = UNCLIP * w * h / (w + h)  # on both sides together
    if min(w, h) + grow > TALL * probability.shape[0]:
        return None
    corners = cv2.boxPoints((centre, (w + grow, h + grow), angle))
    scale = np.array([shape[1] / probability.shape[1], shape[0] / probability.shape[0]])
    x0, y0 = np.maximum(corners.min(axis=0) * scale, 0).astype(int).tolist()
    x1, y1 = np.minimum(np.ceil(corners.max(axis=0) * scale), shape[::-1]).astype(int).tolist()
    if x0 <= SIDE * shape[1] and x1 >= (1 - SIDE) * shape[1]:
        return None
    return Line(x0, y0, x1, y1, float((w + grow) * (h + grow) / probability.size))


def is_subtitle(line: Line, picture: np.ndarray) -> bool:
    """Return whether a line is low, centred, wide enough and less than an eighth of the picture high."""
    height, width = picture.shape[:2]
    centred = abs((line.x0 + line.x1) / 2 - width / 2) < CENTRED * width
    low, flat = (line.y0 + line.y1) / 2 > BAND * height, line.y1 - line.y0 < height / 8
    wide = line.x1 - line.x0 > max(2 * (line.y1 - line.y0), LEAST_WIDTH * width)
    return bool(centred and low and flat and wide)


def judge_lines(pictures: Sequence[np.ndarray], lines: Sequence[Sequence[Line]]) -> tuple[float | None, float]:
    """Return the fraction of the picture that burned-in lines cover, mean over pictures of one size, and the share of
    pictures with a subtitle.

    The first is 0 without lines, and None if there are lines and more than STANDING of the picture keeps its position
    between all pictures. A line that is at another place in another picture counts for neither.
    """
    if not any(lines):
        return 0.0, 0.0
    edges = [_edges(picture) for picture in pictures]
    lettering = [_lettering(frame_lines, frame.shape) for frame_lines, frame in zip(lines, edges, strict=True)]
    moved = {
        (i, j): standing_share(edges[i], edges[j], lettering[i] | lettering[j]) <= STANDING
        for i, j in itertools.combinations(range(len(edges)), 2)
    }
    area, subtitled = 0.0, 0
    for i, frame_lines in enumerate(lines):
        others = [j for j in range(len(edges)) if j != i]
        across = [j for j in others if moved[min(i, j), max(i, j)]]
        low = [line for line in frame_lines if is_subtitle(line, pictures[i])]
        stays = [
            line
            for line in frame_lines
            if any(_stays(line, edges[i], edges[j], lettering[i] | lettering[j]) for j in across)
        ]
        shifts = [line for line in {*low, *stays} if any(_shifts(line, edges[i], edges[j]) for j in others)]
        area += math.fsum(line.area for line in stays if line not in shifts)
        subtitled += any(line not in shifts for line in low)
    return area / len(pictures) if any(moved.values()) else None, subtitled / len(pictures)


def standing_share(edges: np.ndarray, other: np.ndarray, lettering: np.ndarray) -> float:
    """Return the share of blocks whose edges keep their position in two frames, (h, w) float32 each.

    Blocks with `lettering`, (h, w) bool, of either frame are not compared; 1 if fewer than LEAST_BLOCKS have texture.
    """
    rows, columns = (side // BLOCK for side in edges.shape)

    def blocks(values: np.ndarray) -> np.ndarray:
        cut = values[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
        return cut.transpose(0, 2, 1, 3).reshape(rows * columns, BLOCK * BLOCK)

    bare = ~blocks(lettering).any(axis=1)
    a, b = blocks(edges)[bare], blocks(other)[bare]
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    deviations = np.sqrt((a * a).mean(axis=1)), np.sqrt((b * b).mean(axis=1))
    textured = np.maximum(*deviations) > TEXTURED
    if textured.sum() < LEAST_BLOCKS:
        return 1.0
    stands = (a * b).mean(axis=1) > STANDS * deviations[0] * deviations[1]
    return float(stands[textured].mean())


def _lettering(lines: Sequence[Line], shape: tuple[int, ...]) -> np.ndarray:
    """Return where a frame has text, with the background plates behind it: (h, w) bool."""
    mask = np.zeros(shape, bool)
    for line in lines:
        mask[_window(line, (line.y1 - line.y0) // 2, shape)] = True
    return mask


def _stays(line: Line, edges: np.ndarray, other: np.ndarray, lettering: np.ndarray) -> bool:
    """Return whether the line keeps its position in the other frame, and the edges around it, without `lettering` of
    both frames, (h, w) bool, do not. Flat surroundings cannot show that."""
    outside = np.zeros(edges.shape, bool)
    outside[_window(line, max(16, 2 * (line.y1 - line.y0)), edges.shape)] = True
    outside &= ~lettering
    around = _correlation(edges[outside], other[outside])
    if around is None or around > MOVES:
        return False
    box = _window(line, 0, edges.shape)
    inside = _correlation(edges[box].ravel(), other[box].ravel())
    return inside is not None and inside > STAYS


def _shifts(line: Line, edges: np.ndarray, other: np.ndarray) -> bool:
    """Return whether the line is at another place in the other frame, as lettering is that somebody holds or that the
    camera passes."""
    box, wider = _window(line, 0, edges.shape), _window(line, SEARCH, edges.shape)
    match = cv2.matchTemplate(other[wider], edges[box], cv2.TM_CCOEFF_NORMED)
    row, column = (inner.start - outer.start for inner, outer in zip(box, wider, strict=True))
    here = float(match[row, column])
    match[max(0, row - SHIFTED + 1) : row + SHIFTED, max(0, column - SHIFTED + 1) : column + SHIFTED] = -1
    return float(match.max()) > max(MOVES, here + BETTER)


def _window(line: Line, margin: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the rows and columns of a line with a margin, within the picture."""
    rows = slice(max(0, line.y0 - margin), min(shape[0], line.y1 + margin))
    return rows, slice(max(0, line.x0 - margin), min(shape[1], line.x1 + margin))


def _edges(picture: np.ndarray) -> np.ndarray:
    """Return the gradient magnitude of luma, (h, w) float32."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Pearson's correlation; None if one is flat."""
    if not a.size:
        return None
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 1e-3 * a.size else None
