"""ONNX graphs that are built from stored weights when a network is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 13, 8


class Graph:
    """Nodes and constants of a graph under construction; names are numbers in order."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, value: Any) -> str:
        """Add a constant of the type of `value` and return its name."""
        self._constants.append(numpy_helper.from_array(np.asarray(value), f"c{len(self._constants)}"))
        return str(self._constants[-1].name)

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add an operator on named `inputs` and return the name of its output."""
        name = output or f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def model(
        self, name: str, inputs: Mapping[str, Sequence[Any]], outputs: Mapping[str, Sequence[Any]]
    ) -> onnx.ModelProto:
        """Return the graph with float32 `inputs` and `outputs`: names with shapes, in which a string is any size."""
        ends, starts = (
            [helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, shape) for key, shape in tensors.items()]
            for tensors in (outputs, inputs)
        )
        graph = helper.make_graph(self._nodes, name, starts, ends, self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
