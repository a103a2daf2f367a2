"""The filters by name. Adding one is a file in this folder, a line here and a line in the recipe."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from filters.base import Filter

FILTERS: dict[str, str] = {}


def load_filter(name: str, options: Mapping[str, object] | None = None) -> Filter:
    """The filter called `name`, made with `options`. Raises KeyError for an unknown name, TypeError for an option
    that the filter does not have."""
    module, _, attribute = FILTERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(**(options or {}))
