"""A small, seeded part of tests/benchmarks/builds/fuzz.py: damaged files through a whole build."""

from __future__ import annotations

import importlib.util
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType

import pytest
from footage.mutations import MUTATIONS, originals
from repository import ROOT


@pytest.fixture
def fuzz() -> ModuleType:
    path = ROOT / "tests" / "benchmarks" / "builds" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_damaged_file_is_one_row_and_nothing_is_left_behind(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    table: dict[str, Counter[str]] = defaultdict(Counter)
    problems = fuzz.dataset(tmp_path, range(0, 434, 7), originals(tmp_path), table, ray=False, keep=None)
    assert problems == []
    assert table.keys() > MUTATIONS.keys()
    assert table["control"] == {"kept": 2}
    assert table["100 streams"] == {"over another limit": 1}
    outcomes = sum(table.values(), Counter[str]())
    assert outcomes.total() == 62 + 2 + 21
    assert outcomes["kept"] > 30
    assert not any("INTERNAL" in outcome for outcome in outcomes)
