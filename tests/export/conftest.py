"""Two finished datasets that the tests of exports read and never change."""

from __future__ import annotations

from pathlib import Path

import pytest
from finished_dataset import finished, footage

from pipeline.dataset.verify import verify


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips at 16 fps under Wan's contract, and a still image."""
    out = tmp_path_factory.mktemp("dataset") / "clips"
    rows = footage(tmp_path_factory.mktemp("sources"))
    rows[0]["caption"] = 'A "red" tile, slides\nto the left: naïve.'
    finished(out, rows, model="wan2.1")
    assert verify(out, 1) == []
    return out


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips at two rates of their own, without a contract."""
    out = tmp_path_factory.mktemp("mixed") / "clips"
    finished(out, footage(tmp_path_factory.mktemp("sources"), fps=(60, 25)))
    return out
