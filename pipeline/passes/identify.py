"""The pass `sources`: identify each file by its content, and probe its container."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.recipe import Recipe, ScanOptions
from pipeline.engine.base import Machine, Stage
from pipeline.passes.base import Outlook, Pass
from pipeline.passes.snapshot import Snapshot, file_table, with_key
from pipeline.scan.worker import Identify
from pipeline.sources.discover import DiscoveredFile
from pipeline.state import committed
from pipeline.state.units import IdentifyUnit
from pipeline.storage.store import Store
from pipeline.tables.fragments import fingerprint
from pipeline.tables.published import read_table

UNIT = 32  # sources


class IdentifyPass(Pass):
    name, measure = "sources", "sources"

    def fingerprint(self, recipe: Recipe) -> str:
        return fingerprint("sources", recipe.sources.identity)

    def pending(self, snapshot: Snapshot, workers: int) -> Iterator[IdentifyUnit]:
        return identify_units(snapshot.files, snapshot.store, snapshot.recipe.scan)

    def stages(self, snapshot: Snapshot, machine: Machine) -> Sequence[Stage]:
        return [Stage(Identify, (snapshot.store, snapshot.recipe), IdentifyUnit, cpus=1.0)]

    def outlook(self, snapshot: Snapshot) -> Outlook:
        pending = sum(unit.amount for unit in self.pending(snapshot, 1))
        return Outlook(pending, len(snapshot.files), "new or changed")


def identify_units(files: Sequence[DiscoveredFile], store: Store, limits: ScanOptions) -> Iterator[IdentifyUnit]:
    """Yield units of the files that no build has identified, with these `limits`, since they last changed."""
    rows = with_key(committed.identified(store, limits))
    reached_keys = rows.filter(pc.not_equal(rows["status"], committed.UNREACHABLE))["key"].combine_chunks()
    new = np.flatnonzero(pc.is_in(file_table(files)["key"], reached_keys).to_numpy() == 0)
    for first in range(0, len(new), UNIT):
        yield IdentifyUnit(tuple(files[i] for i in new[first : first + UNIT]))


def as_last_seen(files: Sequence[DiscoveredFile], store: Store) -> Sequence[DiscoveredFile]:
    """Return `files`, in which files of servers that do not answer have the size and stamp of the last build.

    Their number is printed on stderr.
    """
    silent = pa.array([file.uri for file in files if file.silent], pa.string())
    if not len(silent):
        return files
    rows = read_table(store, "tables/sources", lambda field: field.name in ("source_uri", "source_id"))
    if rows is None:
        return files
    rows = rows.filter(pc.is_in(rows["source_uri"], silent))
    used = set(zip(rows["source_uri"].to_pylist(), rows["source_id"].to_pylist(), strict=True))
    earlier_rows = committed.all_identified(store)
    earlier_rows = earlier_rows.filter(
        pc.and_(pc.is_in(earlier_rows["uri"], silent), pc.not_equal(earlier_rows["status"], committed.UNREACHABLE))
    )
    last_rows = {row["uri"]: row for row in earlier_rows.to_pylist() if (row["uri"], row["source_id"]) in used}
    if last_rows:
        print(f"{len(last_rows):,} files are used as last seen: their servers do not answer", file=sys.stderr)
    return [
        replace(file, size=last_rows[file.uri]["size"], stamp=last_rows[file.uri]["stamp"], silent=False)
        if file.uri in last_rows
        else file
        for file in files
    ]
