"""The code runs where only its dependencies are installed, as on a cluster that a job's working directory is sent to."""

from __future__ import annotations

import site
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORTS = """
import importlib, importlib.metadata, pkgutil, sys
sys.path[:0] = sys.argv[1:]
try:
    importlib.metadata.version("clipmill")
    sys.exit("clipmill is installed after all")
except importlib.metadata.PackageNotFoundError:
    pass
for root in ("pipeline", "filters", "captioners"):
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, f"{root}."):
        importlib.import_module(module.name)
from pipeline.config.versions import VERSION, versions
assert versions()["clipmill"] == VERSION != "unknown"
"""


@pytest.fixture
def dependencies(tmp_path: Path) -> Path:
    """A folder with everything that is installed here but clipmill."""
    for folder in map(Path, site.getsitepackages()):
        for entry in folder.iterdir() if folder.is_dir() else ():
            if "clipmill" not in entry.name and entry.suffix != ".pth":
                (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


def test_every_module_is_imported_without_the_metadata_of_an_installation(dependencies):
    command = [sys.executable, "-I", "-S", "-c", IMPORTS, str(ROOT), str(dependencies)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=dependencies, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_version_of_the_package_is_the_constant_in_the_code():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pipeline.config.versions.VERSION"}
