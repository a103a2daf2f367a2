"""A dataset's clips by key, and exports of it, for the tests of exports."""

from __future__ import annotations

import json
from pathlib import Path

import decord

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
