"""The captioners by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping

from captioners.base import Captioner

CAPTIONERS: dict[str, str] = {
    "measured": "captioners.measured.measured:Measured",
    "vlm": "captioners.vlm.vlm:Vlm",
    "server": "captioners.api.server:Server",
    "ray_llm": "captioners.api.ray_llm:RayLlm",
    "listed": "captioners.listed:Listed",
}
PROMPTED = frozenset({"vlm", "server", "ray_llm"})  # captioners with a prompt that a recipe may change


def load_captioner(name: str, options: Mapping[str, object] | None = None) -> Captioner:
    """Construct the captioner called `name` with `options`. Raises KeyError for an unknown name, TypeError for an
    option that the captioner does not have."""
    return _captioner_class(name)(**(options or {}))


def check_captioner(name: str, options: Mapping[str, object]) -> None:
    """Raise the errors of `load_captioner` for the name or an option, without loading anything."""
    inspect.signature(_captioner_class(name)).bind(**options)


def captioner_version(name: str) -> int:
    """Return `VERSION` of the captioner's file, part of the fingerprint. Raises KeyError for an unknown name."""
    return int(importlib.import_module(CAPTIONERS[name].partition(":")[0]).VERSION)


def captioner_uses_gpu(name: str) -> bool:
    """Return whether the captioner's class has `gpu = True`: its model runs on a GPU if there is one."""
    return bool(getattr(_captioner_class(name), "gpu", False))


def _captioner_class(name: str) -> Callable[..., Captioner]:
    module, _, attribute = CAPTIONERS[name].partition(":")
    captioner_class: Callable[..., Captioner] = getattr(importlib.import_module(module), attribute)
    return captioner_class
