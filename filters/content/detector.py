"""YOLOv3-tiny, a detector of COCO's eighty classes, as an ONNX graph on one CPU thread.

J. Redmon and A. Farhadi, "YOLOv3: An Incremental Improvement", 2018. Their weights, trained on COCO, are in the public
domain ("Darknet is public domain": the licence of github.com/pjreddie/darknet). detector.npz holds them with batch
normalisation folded into the convolutions, rounded to seven bits a weight with one scale a filter; it is written by
tests/benchmarks/filters/pack_detector.py, which measures what the rounding changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnx

from filters.onnx_graph import Graph
from filters.weights import onnx_session

WEIGHTS = Path(__file__).parent / "detector.npz"
SIDE, STRIDE = 416, 32  # pixels: longer side of the input; both sides are multiples of STRIDE
INPUT, COARSE, FINE = "picture", "coarse", "fine"
# Widths and heights in pixels of the boxes that the predictions of the two grids scale.
ANCHORS = {COARSE: [(81, 82), (135, 169), (344, 319)], FINE: [(10, 14), (23, 27), (37, 58)]}
OVERLAP = 0.45  # intersection over union from which a box of the same class is a copy
# fmt: off
COCO = [
    "person", "bicycle", "car", "motorcycle", "aeroplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "doughnut", "cake", "chair", "couch", "potted plant", "bed", "dining table",
    "toilet", "television", "laptop", "mouse", "remote control", "keyboard", "mobile phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair dryer", "toothbrush",
]
# fmt: on


class Detection(NamedTuple):
    """An object in a picture; corners as fractions of its width and height."""

    label: str
    probability: float
    x0: float
    y0: float
    x1: float
    y1: float


class Detector:
    """The network on one CPU thread."""

    def __init__(self) -> None:
        self.session = onnx_session(_graph().SerializeToString())

    def __call__(self, rgb: np.ndarray, least: float) -> list[Detection]:
        """Return the objects in (h, w, 3) uint8 RGB with at least the probability `least`, likeliest first. Raises
        FloatingPointError if the output of the network is not finite."""
        height, width = rgb.shape[:2]
        scale = SIDE / max(height, width)
        size = [max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in (width, height)]
        resized = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        planes = np.ascontiguousarray(resized.transpose(2, 0, 1)[None], np.float32) / 255
        grids = self.session.run([COARSE, FINE], {INPUT: planes})
        rows = np.concatenate(
            [_boxes(grid, ANCHORS[name], size, least) for name, grid in zip(ANCHORS, grids, strict=True)]
        )
        return [
            Detection(COCO[int(row[5])], *(float(value) for value in row[[4, 0, 1, 2, 3]])) for row in _distinct(rows)
        ]


def _boxes(grid: np.ndarray, anchors: list[tuple[int, int]], size: list[int], least: float) -> np.ndarray:
    """Decode (1, 255, gh, gw) of a grid: (n, 6) float64 of x0, y0, x1, y1, probability and class."""
    if not np.isfinite(grid).all():
        raise FloatingPointError
    values = grid[0].reshape(len(anchors), -1, *grid.shape[2:]).astype(np.float64)
    chance = _sigmoid(values[:, 4:5]) * _sigmoid(values[:, 5:])
    anchor, row, column = np.nonzero(chance.max(axis=1) >= least)
    cells, classes = values[anchor, :, row, column], chance[anchor, :, row, column]
    centre = (_sigmoid(cells[:, :2]) + np.stack([column, row], 1)) / [grid.shape[3], grid.shape[2]]
    half = np.exp(np.minimum(cells[:, 2:4], 5.0)) * np.asarray(anchors, float).reshape(-1, 2)[anchor] / size / 2
    corners = np.hstack([centre - half, centre + half]).clip(0, 1)
    return np.column_stack([corners, classes.max(axis=1, initial=0.0), classes.argmax(axis=1)])


def _sigmoid(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-values.clip(-60, 60)))
    return result


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Return the rows, likeliest first, without boxes that overlap a likelier one of their class."""
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    rectangles = np.column_stack([rows[:, :2], rows[:, 2:4] - rows[:, :2]])
    if not len(rows):
        return rows
    kept = cv2.dnn.NMSBoxesBatched(
        rectangles.tolist(), rows[:, 4].tolist(), rows[:, 5].astype(int).tolist(), 0.0, OVERLAP
    )
    return rows[np.sort(np.asarray(kept, int).ravel())]


def _graph() -> onnx.ModelProto:
    """Return the network."""
    with np.load(WEIGHTS) as stored:
        layers = iter(range(len(stored.files) // 3))
        graph = Graph()

        def convolution(x: str, output: str = "") -> str:
            layer = next(layers)
            weight, scale, bias = (stored[f"{name}{layer}"] for name in ("weight", "scale", "bias"))
            kernel = graph.constant(weight * scale[:, None, None, None])
            side = weight.shape[2]
            shape = {"kernel_shape": [side, side], "pads": [side // 2] * 4}
            y = graph.node("Conv", x, kernel, graph.constant(bias), output=output, **shape)
            return y if output else graph.node("LeakyRelu", y, alpha=0.1)

        x = INPUT
        for _ in range(4):
            x = graph.node("MaxPool", convolution(x), kernel_shape=[2, 2], strides=[2, 2])
        detail = convolution(x)
        x = convolution(graph.node("MaxPool", detail, kernel_shape=[2, 2], strides=[2, 2]))
        x = graph.node("MaxPool", x, kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1])
        neck = convolution(convolution(x))
        convolution(convolution(neck), COARSE)
        factors = graph.constant(np.array([1, 1, 2, 2], np.float32))
        x = graph.node("Resize", convolution(neck), "", factors, mode="nearest", nearest_mode="floor",
                       coordinate_transformation_mode="asymmetric")  # fmt: skip
        convolution(convolution(graph.node("Concat", x, detail, axis=1)), FINE)
    outputs = {name: [1, 255, f"{name} rows", f"{name} columns"] for name in (COARSE, FINE)}
    return graph.model("yolov3-tiny", {INPUT: [1, 3, "height", "width"]}, outputs)
