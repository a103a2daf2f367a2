"""The code runs where only its dependencies are installed, as on a cluster that is sent a job's working directory."""

from __future__ import annotations

import subprocess
import sys
import tomllib

from repository import ROOT

IMPORTS = """
import importlib, importlib.metadata, pkgutil, sys
sys.path.insert(0, sys.argv[1])
find = importlib.metadata.Distribution.from_name

def find_others(name):
    if name == "clipmill":
        raise importlib.metadata.PackageNotFoundError(name)
    return find(name)

importlib.metadata.Distribution.from_name = find_others
importlib.import_module("filters.torchvision_ops").ensure_torchvision()  # before transformers imports it
for root in ("pipeline", "filters", "captioners"):
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, f"{root}."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "triton":  # comes with torch for GPUs alone
                raise
from pipeline.config.versions import VERSION, versions
assert versions()["clipmill"] == VERSION != "unknown"
"""


def test_every_module_is_imported_without_the_metadata_of_an_installation(tmp_path):
    command = [sys.executable, "-I", "-c", IMPORTS, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_version_of_the_package_is_the_constant_in_the_code():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pipeline.config.versions.VERSION"}
