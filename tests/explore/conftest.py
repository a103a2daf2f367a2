"""A dataset of two real videos, to be explored and decided on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.explore.explorer import Explorer
from pipeline.storage.store import Store


@pytest.fixture(autouse=True, scope="package")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def explored(golden_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the golden dataset for the tests of one file, which may write to it."""
    return shutil.copytree(golden_dataset, tmp_path_factory.mktemp("explored") / "films [2024] & 'more'")


@pytest.fixture(scope="module")
def explorer(explored: Path) -> Iterator[Explorer]:
    opened = Explorer(Store(str(explored)))
    yield opened
    opened.close()
