"""Clips grouped by the scan unit that has their frames."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.state.units import UnitClips
from pipeline.tables.fragments import IdRange


def plain_columns(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return a table of the columns `names`, cast to strings."""
    return pa.table({name: rows[name].cast(pa.string()) for name in names})


def units_of(rows: pa.Table) -> Iterator[UnitClips]:
    """Group `rows` (columns scan_fragment, unit, source_id, clip_id) by scan unit, in order of first appearance."""
    clips_by_unit: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    columns = (rows[name].to_pylist() for name in ("scan_fragment", "unit", "source_id", "clip_id"))
    for fragment, unit, source, clip in zip(*columns, strict=True):
        clips_by_unit[fragment, unit].append((source, clip))
    for (fragment, unit), clips in clips_by_unit.items():
        sources = [source for source, _ in clips]
        yield UnitClips(unit, fragment, tuple(clip for _, clip in clips), IdRange(min(sources), max(sources) + "~"))
