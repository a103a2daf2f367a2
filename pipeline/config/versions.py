"""Versions: clipmill's own, and those of installed packages."""

from __future__ import annotations

import importlib.metadata

VERSION = "0.1.0"  # pyproject.toml reads it here: the code may run without being installed
PACKAGES = ("av", "numpy", "opencv-python-headless", "torch", "open_clip_torch", "transformers", "scenedetect-headless")


def installed(package: str) -> str:
    """Return the version of `package`, or an empty string where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def versions() -> dict[str, str]:
    """Return the versions of clipmill and of the packages that decide what a build computes."""
    return {"clipmill": VERSION, **{name: installed(name) or "unknown" for name in PACKAGES}}
