"""The captioners by name."""

from __future__ import annotations

import importlib
import pkgutil
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
    return captioner_class(name)(**(options or {}))


def captioner_version(name: str) -> int:
    """Return `VERSION` of the captioner's file, part of the fingerprint. Raises KeyError for an unknown name."""
    return int(importlib.import_module(CAPTIONERS[name].partition(":")[0]).VERSION)


def captioner_uses_gpu(name: str) -> bool:
    """Return whether the captioner's class has `gpu = True`: its model runs on a GPU if there is one."""
    return bool(getattr(captioner_class(name), "gpu", False))


def captioner_class(name: str) -> Callable[..., Captioner]:
    """Return the class of a captioner; importing it loads no model. Raises KeyError for an unknown name."""
    resolved: Callable[..., Captioner] = pkgutil.resolve_name(CAPTIONERS[name])
    return resolved
