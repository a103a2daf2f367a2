"""The thousand classes of ImageNet, which taggers know things by; without importing what the lists lie in."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def imagenet_classes() -> list[tuple[str, str]]:
    """The thousand ImageNet classes in the order of their indexes: the plain name that OpenCLIP's authors chose, and
    WordNet's definition from timm. Read from the packages' files alone: importing them takes seconds."""
    path = _package("open_clip") / "zero_shot_metadata.py"
    spec = importlib.util.spec_from_file_location("imagenet_names", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} cannot be read")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tables = _package("timm") / "data" / "_info"
    synsets = (tables / "imagenet_synsets.txt").read_text().split()
    lines = (tables / "imagenet_synset_to_definition.txt").read_text().splitlines()
    definitions = dict(line.split("\t", 1) for line in lines)
    names = [name.split(" / ")[0] for name in module.IMAGENET_CLASSNAMES]
    return [(name, definitions[synset]) for name, synset in zip(names, synsets, strict=True)]


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"the package {name} is not installed")
    return Path(spec.submodule_search_locations[0])
