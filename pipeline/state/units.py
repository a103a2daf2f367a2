"""Units of work: the input of each pass's workers, and the result that they return."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.sources.discover import DiscoveredFile, Source
from pipeline.tables.fragments import IdRange


@dataclass(frozen=True)
class IdentifyUnit:
    """Files to identify."""

    files: tuple[DiscoveredFile, ...]

    @property
    def amount(self) -> float:
        return len(self.files)


@dataclass(frozen=True)
class Part:
    """A source, or a segment (seconds) of a long one, that is scanned as a whole."""

    source: Source
    duration: float
    segment: tuple[float, float] | None = None

    @property
    def key(self) -> str:
        return self.source.source_id + ("" if self.segment is None else f"@{self.segment[0]:g}-{self.segment[1]:g}")

    @property
    def seconds(self) -> float:
        return self.duration if self.segment is None else self.segment[1] - self.segment[0]


@dataclass(frozen=True)
class ScanUnit:
    """Parts whose rows are committed together."""

    parts: tuple[Part, ...]

    @property
    def amount(self) -> float:
        return sum(part.seconds for part in self.parts)


@dataclass(frozen=True)
class UnitClips:
    """Clips of one scan unit: those in `clip_ids`, or all if None; their sources are in `sources`. Their rows are in
    `fragment`, which may also hold rows of other units; the file of their frames is named after `unit`."""

    unit: str
    fragment: str
    clip_ids: tuple[str, ...] | None = None
    sources: IdRange | None = None

    @property
    def amount(self) -> float:
        return len(self.clip_ids or ())


def plain_columns(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return a table of the columns `names`, cast to strings."""
    return pa.table({name: rows[name].cast(pa.string()) for name in names})


def units_of(rows: pa.Table) -> Iterator[UnitClips]:
    """Group clips by the scan unit that has their frames, in order of first appearance. `rows` are `plain_columns` with
    scan_fragment, unit, source_id and clip_id."""
    clips_by_unit: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    columns = (rows[name].to_pylist() for name in ("scan_fragment", "unit", "source_id", "clip_id"))
    for fragment, unit, source, clip in zip(*columns, strict=True):
        clips_by_unit[fragment, unit].append((source, clip))
    for (fragment, unit), clips in clips_by_unit.items():
        sources = [source for source, _ in clips]
        yield UnitClips(unit, fragment, tuple(clip for _, clip in clips), IdRange(min(sources), max(sources) + "~"))


@dataclass(frozen=True)
class CaptionPart:
    """Clips of one scan unit; the fragments `embedded` hold their scores of the embed pass."""

    clips: UnitClips
    embedded: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)  # JSON by source_id, if the captioner reads it


@dataclass(frozen=True)
class CaptionUnit:
    """Clips that are captioned together, from as many fragments as are needed to fill a batch."""

    parts: tuple[CaptionPart, ...]

    @property
    def amount(self) -> float:
        return sum(part.clips.amount for part in self.parts)


@dataclass(frozen=True)
class UnitResult:
    """A worker's report on a unit: its amount, the time of each step, and errors."""

    of: str  # the pass
    amount: float  # in the pass's own measure: seconds of video, clips ...
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    filters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # name -> seconds, clips, rejected
    fragment: str = ""
    unforeseen: Mapping[str, Sequence[str]] = field(default_factory=dict)  # "IndexError at x.py:12" -> sources hit
    problem: str = ""  # stops the pass when not empty; committed work is kept


@dataclass(frozen=True)
class Handoff:
    """What a stage passes to later ones: a unit of another type, and results of what is already finished."""

    unit: Any
    results: tuple[UnitResult, ...] = ()


class BuildStopped(RuntimeError):
    """A pass cannot continue; its committed work is kept, and the message says what to do."""
