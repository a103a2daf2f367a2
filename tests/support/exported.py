"""A dataset's clips by key, and exports of it, for the tests of exports."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import decord
import pytest

from pipeline.export.export import export
from pipeline.export.layout import MARKER
from pipeline.export.reader import Clip, read_dataset


def clips_of(dataset: Path) -> dict[str, Clip]:
    return {clip.key: clip for clip in read_dataset(str(dataset)).clips()}


def exported(dataset: Path, to: str, out: Path, model: str | None = None) -> Path:
    export(str(dataset), to, out, model)
    assert json.loads((out / MARKER).read_text())["finished"] is True
    return out


def frames_of(path: Path) -> int:
    return len(decord.VideoReader(str(path), num_threads=1))


def without_models(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets modules of `package` be imported without its __init__ files, which import every model."""
    spec = importlib.util.find_spec(package.partition(".")[0])
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"{package} is not installed")
    path = Path(spec.submodule_search_locations[0])
    for depth, name in enumerate(package.split(".")):
        module = types.ModuleType(".".join(package.split(".")[: depth + 1]))
        path = path / name if depth else path
        module.__path__ = [str(path)]
        monkeypatch.setitem(sys.modules, module.__name__, module)
