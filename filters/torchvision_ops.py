"""Makes `import torchvision` work beside a torch that its compiled operators were not built for.

The registry's torchvision is built for CUDA; beside a CPU-only torch its library cannot load, and the import stops at
`operator torchvision::nms does not exist`. OpenCLIP and transformers import torchvision for its image transforms,
which are plain Python: declaring the schemas of the two operators that the import registers shapes for is enough.
Calling such an operator still fails, as it should.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a schema lives as long as its Library object


def ensure_torchvision() -> None:
    """Import torchvision, with the missing schemas declared only if its compiled library did not load. Call it before
    the first import of open_clip or of a transformers model. Does nothing where torchvision is not installed."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _declared.append(library)
        importlib.import_module("torchvision")
