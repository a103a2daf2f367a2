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
PROMPTED = frozenset({"vlm", "server", "ray_llm"})  # those that ask a model, in words that a recipe may change


def load_captioner(name: str, options: Mapping[str, object] | None = None) -> Captioner:
    """The captioner called `name`, made with `options`. Raises KeyError for an unknown name, TypeError for an option
    that the captioner does not have."""
    return _kind(name)(**(options or {}))


def check_captioner(name: str, options: Mapping[str, object]) -> None:
    """Raises what `load_captioner` raises for the name or an option, but loads nothing."""
    inspect.signature(_kind(name)).bind(**options)


def captioner_version(name: str) -> int:
    """`VERSION` of the captioner's file: part of the fingerprint. Raises KeyError for an unknown name."""
    return int(importlib.import_module(CAPTIONERS[name].partition(":")[0]).VERSION)


def captioner_uses_gpu(name: str) -> bool:
    """Whether the captioner's class says `gpu = True`: its model runs on a GPU where there is one."""
    return bool(getattr(_kind(name), "gpu", False))


def _kind(name: str) -> Callable[..., Captioner]:
    module, _, attribute = CAPTIONERS[name].partition(":")
    kind: Callable[..., Captioner] = getattr(importlib.import_module(module), attribute)
    return kind
