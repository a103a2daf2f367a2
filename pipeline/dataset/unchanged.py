"""Whether a build would reproduce the existing dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import captioners
import filters
import pipeline
from pipeline.config.recipe import Recipe, to_dict
from pipeline.config.versions import versions
from pipeline.sources.discover import DiscoveredFile
from pipeline.storage.lease import FOLDER as LOCK
from pipeline.storage.store import Store
from pipeline.tables.decisions import FOLDER as DECISIONS

UNCHANGED = "state/unchanged"  # digest of the last build's inputs and outputs


def is_unchanged(files: Sequence[DiscoveredFile], store: Store, recipe: Recipe, decisions: str = "") -> bool:
    """Return whether the last build was finished and would be the same: sources, recipe, code and packages, decisions
    (by their digest), and every file of the dataset."""
    return store.exists(UNCHANGED) and store.read(UNCHANGED) == _digest(files, store, recipe, decisions)


def note_unchanged(files: Sequence[DiscoveredFile], store: Store, recipe: Recipe, decisions: str = "") -> None:
    store.write(UNCHANGED, _digest(files, store, recipe, decisions))


def _digest(files: Sequence[DiscoveredFile], store: Store, recipe: Recipe, decisions: str) -> bytes:
    digest = hashlib.sha256(repr([to_dict(recipe), versions(), decisions]).encode())
    for package in (pipeline, filters, captioners):
        for path in sorted(Path(package.__path__[0]).rglob("*")):
            if "__pycache__" not in path.parts and path.is_file():
                digest.update(path.read_bytes())
    for file in files:
        digest.update(repr(file).encode())
    for name, size, stamp in store.stat():
        if name != UNCHANGED and not name.startswith((LOCK, DECISIONS)):
            digest.update(f"{name} {size} {stamp}\n".encode())
    return digest.hexdigest().encode()
