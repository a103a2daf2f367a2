"""Limits of the recipe that a source went over. What is committed of it is valid until one of them is raised."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config.recipe import ScanOptions


def limit_values(names: tuple[str, ...], options: ScanOptions) -> dict[str, float]:
    """Return the values of the limits `names`, to be committed beside what they cut off."""
    return {name: getattr(options, name) for name in names}


def is_raised(committed: Mapping[str, float], options: ScanOptions) -> bool:
    """Return whether `options` allow more than one of the `committed` limits did."""
    return any(getattr(options, name) > value for name, value in committed.items())
