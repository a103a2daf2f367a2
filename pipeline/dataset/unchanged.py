"""Whether a build would reproduce the existing dataset, and which sources or recipe it would replace."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

import captioners
import filters
import pipeline
from pipeline.config.recipe import Recipe, to_dict
from pipeline.config.versions import versions
from pipeline.dataset.finish import read_info
from pipeline.engine.progress import counted
from pipeline.sources.discover import DiscoveredFile
from pipeline.storage.lease import FOLDER as LOCK
from pipeline.storage.store import Store
from pipeline.tables.decisions import FOLDER as DECISIONS
from pipeline.tables.published import read_table

UNCHANGED = "state/unchanged"  # digest of the last build's inputs and outputs


def is_unchanged(files: Sequence[DiscoveredFile], store: Store, recipe: Recipe, decisions: str = "") -> bool:
    """Return whether the last build was finished and would be the same: sources, recipe, code and packages, decisions
    (by their digest), and every file of the dataset."""
    return store.exists(UNCHANGED) and store.read(UNCHANGED) == _digest(files, store, recipe, decisions)


def note_unchanged(files: Sequence[DiscoveredFile], store: Store, recipe: Recipe, decisions: str = "") -> None:
    store.write(UNCHANGED, _digest(files, store, recipe, decisions))


def replaced(files: Sequence[DiscoveredFile], store: Store, recipe: Recipe) -> list[str]:
    """Return a line for each change to the existing dataset that a mistaken command may cause: sources that are missing
    now, and a recipe of another name. Raises DatasetError for a damaged dataset.json."""
    if not store.exists("dataset.json"):
        return []
    lines = []
    before = read_table(store, "tables/sources", lambda field: field.name == "source_uri")
    if before is not None:
        present = pc.is_in(before["source_uri"], pa.array([file.uri for file in files], pa.string()))
        if gone := before.num_rows - (pc.sum(present).as_py() or 0):
            lines.append(f"{counted(gone, 'files')} of the dataset, no longer among the sources: the clips go")
    name = read_info(store)["recipe"]["name"]
    if name != recipe.name:
        lines.append(f"recipe {recipe.name}; the dataset was built with {name}")
    return lines


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
