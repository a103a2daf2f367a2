"""Makes `import torchvision` work beside a torch that its compiled operators were not built for.

The registry's torchvision is built for CUDA; beside a CPU-only torch its library cannot load, and the import stops at
`operator torchvision::nms does not exist`. OpenCLIP and transformers import torchvision for its image transforms,
which are plain Python: declaring the schemas of the two operators that the import registers shapes for is enough.
Calling such an operator still fails, as it should.

transformers and diffusers also import torchao where it is installed, which warns of kernels that it cannot load beside
this torch and of types that torch has come to support. Nothing here uses those, and a failed import is an exception.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_TORCHAO_LOGGERS = ("torchao", "diffusers.quantizers.torchao.torchao_quantizer")
_declared: list[torch.library.Library] = []  # a schema lives as long as its Library object


def ensure_torchvision() -> None:
    """Import torchvision, with the missing schemas declared only if its compiled library did not load. Call it before
    the first import of open_clip or of a transformers model. Does nothing where torchvision is not installed."""
    for name in _TORCHAO_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").addFilter(_is_not_of_enums)
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


def _is_not_of_enums(record: logging.LogRecord) -> bool:
    return "is an Enum subclass" not in record.getMessage()
