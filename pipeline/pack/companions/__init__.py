"""Companions: further files derived from a packed clip and stored in its sample, such as control videos for training.

A new companion is a file in this folder and a line here. Start at base.py. May import media and packages below it.
"""

from __future__ import annotations

import functools
import json
import pkgutil
from collections.abc import Mapping
from typing import Any

from pipeline.config.options import OptionError, check_arguments, nearest
from pipeline.config.recipe import PackOptions
from pipeline.pack.companions.base import Companion

COMPANIONS: dict[str, str] = {
    "canny": "pipeline.pack.companions.canny:Canny",
    "depth": "pipeline.pack.companions.depth:Depth",
    "first_last": "pipeline.pack.companions.first_last:FirstLast",
}


def load_companions(options: PackOptions) -> dict[str, Companion]:
    """Return the companions of a recipe by name, ordered by name. Raises OptionError for an unknown companion or option
    and for weights that cannot be read."""
    return {name: _load(name, json.dumps(options.companions[name])) for name in sorted(options.companions)}


def identities(options: PackOptions) -> dict[str, Mapping[str, Any]]:
    """Return what determines the bytes of each companion, apart from the clip: version, options and weights."""
    return {name: companion.identity() for name, companion in load_companions(options).items()}


def endings(options: PackOptions) -> dict[str, str]:
    """Return the members that companions add to a sample, in order: column prefix in the index -> ending of the file
    name after KEY. Raises OptionError for an unknown companion."""
    return {member: end for name in sorted(options.companions) for member, end in _class(name).endings.items()}


@functools.cache
def _load(name: str, options: str) -> Companion:
    arguments = json.loads(options)
    check_arguments(_class(name), arguments, f"pack.companions.{name}")
    try:
        companion: Companion = _class(name)(**arguments)
    except (TypeError, ValueError, OSError) as error:
        raise OptionError(f"pack.companions.{name}: {error}") from error
    return companion


def _class(name: str) -> Any:
    if name not in COMPANIONS:
        raise OptionError(f"pack.companions: unknown {name!r}{nearest(name, COMPANIONS)}")
    return pkgutil.resolve_name(COMPANIONS[name])
