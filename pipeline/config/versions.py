"""Versions of installed packages."""

from __future__ import annotations

import importlib.metadata


def installed(package: str) -> str:
    """Return the version of `package`, or an empty string where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
