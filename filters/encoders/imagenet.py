"""The names and definitions of ImageNet's thousand classes, read without importing the packages that contain them."""

from __future__ import annotations

import importlib.util

from filters.weights import package_folder


def imagenet_classes() -> list[tuple[str, str]]:
    """Return the thousand ImageNet classes in order of index: the name chosen by OpenCLIP's authors, and WordNet's
    definition from timm. They are read from the packages' files because importing the packages takes seconds."""
    path = package_folder("open_clip") / "zero_shot_metadata.py"
    spec = importlib.util.spec_from_file_location("imagenet_names", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} cannot be read")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tables = package_folder("timm") / "data" / "_info"
    synsets = (tables / "imagenet_synsets.txt").read_text().split()
    lines = (tables / "imagenet_synset_to_definition.txt").read_text().splitlines()
    definitions = dict(line.split("\t", 1) for line in lines)
    names = [name.split(" / ")[0] for name in module.IMAGENET_CLASSNAMES]
    return [(name, definitions[synset]) for name, synset in zip(names, synsets, strict=True)]
