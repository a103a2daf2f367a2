"""Fixtures of the tests of models of diffusers: their folders, each written once, and a small dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shards import clips_of, write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of the tiny pipelines, each written once."""
    from tiny_models.tiny_pipelines import save_pipeline

    root = tmp_path_factory.mktemp("pipelines")
    return lambda name: root / name if (root / name).exists() else save_pipeline(name, root / name)


@pytest.fixture(scope="module")
def dataset(sample_videos: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two clips."""
    return write_shards(tmp_path_factory.mktemp("clips"), [clips_of(sample_videos["bigbuckbunny"], 2)])
