"""What one worker of each pass does with one unit of work. Nothing here knows of Ray.

Every worker commits its own rows: a fragment whose name is a function of what it was asked for, so that doing a unit
twice writes the same bytes to the same place.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipeline.config.recipe import Recipe, SourceOptions
from pipeline.media.faults import is_machine_fault, one_line
from pipeline.media.video import Probe, probe
from pipeline.scan.scan import Scanned, scan
from pipeline.sources.content import HEAD, not_media
from pipeline.sources.discover import DiscoveredFile, content_id, open_file, open_media
from pipeline.sources.source_sandbox import SourceSandbox
from pipeline.state import fingerprints
from pipeline.state.committed import UNREACHABLE
from pipeline.state.error_log import LoggedError, logged_error, unforeseen, write_errors
from pipeline.state.units import Handoff, IdentifyUnit, Part, ScanUnit, UnitClips, UnitResult, stopped
from pipeline.storage.store import Store, Unreachable
from pipeline.tables.fragments import FRAMES, fingerprint, table_from, write_fragment, write_frames

LEAST_RATE = 8.0  # bytes a second of any real video
SLOWEST = 2e6  # bytes a second at which a source is read at least, to know its content


class Identify:
    """Sources -> rows of state/sources: content id, what the container says, or why it cannot be used."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._options, self._limits = store, recipe.sources, recipe.scan
        self._sandbox = SourceSandbox(recipe.scan.memory_mb)

    def __call__(self, unit: IdentifyUnit) -> UnitResult:
        try:
            return self._unit(unit)
        except (OSError, MemoryError) as error:
            return stopped("sources", error)

    def _unit(self, unit: IdentifyUnit) -> UnitResult:
        started = time.perf_counter()
        errors: list[LoggedError] = []
        rows = [self._row(file, errors) for file in unit.files]
        name = fingerprint([(f.uri, f.size, f.revision) for f in unit.files])
        fragment = f"state/sources/{name}.parquet"
        write_errors(self._store, "sources", name, errors)
        write_fragment(self._store, fragment, pa.Table.from_pylist(rows, schema=fingerprints.IDENTIFIED), {})
        return UnitResult(
            of="sources",
            amount=len(rows),
            counts={"sources": len(rows), "failed": sum(row["status"] != "ok" for row in rows)},
            seconds={"total": time.perf_counter() - started},
            fragment=fragment,
            unforeseen=unforeseen(errors),
        )

    def _row(self, found: DiscoveredFile, errors: list[LoggedError]) -> dict[str, Any]:
        """A row of IDENTIFIED; where the file cannot be read, what happened is added to `errors`."""
        row: dict[str, Any] = {"uri": found.uri, "size": found.size, "stamp": found.revision}
        if not found.worth_opening and (reason := self._not_media(found)):
            return row | {"status": "skipped", "error": f"not a video ({reason})"}
        if found.problem:
            return row | {"status": "failed", "error": found.problem}
        if found.size == 0:
            return row | {"status": "failed", "error": "empty file"}
        size = found.size or 0
        if size > self._limits.max_gb * 1e9:
            error = f"{size / 1e9:.1f} GB, more than scan.max_gb allows ({self._limits.max_gb:g})"
            return row | {"status": UNREACHABLE, "error": error}  # the next build may allow more
        try:
            facts, row["source_id"] = self._sandbox.call(
                found.uri,
                identify,
                found.uri,
                self._options,
                size,
                deadline=self._limits.deadline_seconds + size / SLOWEST,
            )
            row |= {
                "status": "ok",
                "duration": facts.duration,
                "fps": facts.fps,
                "width": facts.width,
                "height": facts.height,
                "start": facts.start,
                "codec": facts.codec,
                **facts.stated_colour,
            }
            pa.Table.from_pylist([row], schema=fingerprints.IDENTIFIED)  # a header may hold what no column takes
            return row
        except Exception as raised:
            if is_machine_fault(raised):
                raise
            errors.append(entry := logged_error(found.uri, raised))
            row = {name: row[name] for name in ("uri", "size", "stamp")}
            status = "failed" if found.worth_opening else "skipped"
            return row | {"status": retry_or(raised, entry, status), "error": entry.failure.reason}

    def _not_media(self, found: DiscoveredFile) -> str | None:
        """What a file with an ending that says little is, by its first bytes; None where it may be a video."""
        if found.problem:
            return found.problem
        try:
            with open_file(found.uri, self._options) as file:
                return not_media(file.read(HEAD))
        except Unreachable:
            return None  # the decoder cannot reach it either, and says so
        except OSError as error:
            if is_machine_fault(error):
                raise
            return one_line(error)


class Scan:
    """Parts of sources -> a fragment of clips with their scan scores, and one of sampled frames."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._recipe = store, recipe
        self._sandbox = SourceSandbox(recipe.scan.memory_mb)
        self._schema = fingerprints.scan_schema(recipe)
        self._fingerprint = fingerprints.scan_fingerprint(recipe)

    def __call__(self, unit: ScanUnit) -> Handoff | UnitResult:
        """Hand the clips on to the embed pass."""
        try:
            done = self._unit(unit.parts)
        except (OSError, MemoryError) as error:
            return stopped("scan", error)
        name = done.fragment.rpartition("/")[2].removesuffix(".parquet")
        return Handoff(UnitClips(name, done.fragment), (done,))

    def _unit(self, unit: Sequence[Part]) -> UnitResult:
        clips: list[dict[str, Any]] = []
        frames: list[dict[str, Any]] = []
        parts = []
        errors: list[LoggedError] = []
        name = fingerprint(self._fingerprint, [part.key for part in unit])
        limits = fingerprint(fingerprints.limits(self._recipe))
        seconds: dict[str, float] = defaultdict(float)
        for part in unit:
            started = time.perf_counter()
            scanned, error = self._scan(part)
            clips += scanned.clips
            frames += scanned.frames
            errors += scanned.errors
            for step, value in scanned.stats.items():
                seconds[step] += value
            done_part: dict[str, Any] = {"key": part.key, "unit": name}
            if error:  # why nothing of it could be used
                errors.append(entry := logged_error(part.source.uri, error))
                done_part |= {"error": entry.failure.reason, "limits": retry_or(error, entry, limits)}
            elif note := scanned.source.get("error"):  # what of it could not
                done_part["note"] = note
            parts.append(done_part)
            seconds["total"] += time.perf_counter() - started
        write_errors(self._store, "scan", name, errors)
        size = write_frames(self._store, name, table_from(frames, FRAMES))
        rows = table_from([{**clip, "unit": name} for clip in clips], self._schema).sort_by("clip_id")
        done = {"fingerprint": self._fingerprint, "parts": [{**part, "frames_bytes": size} for part in parts]}
        write_fragment(self._store, f"state/scan/{name}.parquet", rows, done)
        failed = sum("error" in part for part in parts)
        filters = {
            key.removeprefix("filter:"): {"seconds": value, "clips": len(clips)}
            for key, value in seconds.items()
            if key.startswith("filter:")
        }
        return UnitResult(
            of="scan",
            amount=sum(part.seconds for part in unit),
            counts={"clips": len(clips), "failed": failed},
            seconds={key: value for key, value in seconds.items() if not key.startswith("filter:")},
            filters=filters,
            fragment=f"state/scan/{name}.parquet",
            unforeseen=unforeseen(errors),
        )

    def _scan(self, part: Part) -> tuple[Scanned, Exception | None]:
        options = self._recipe.scan
        deadline = options.deadline_seconds + options.deadline_factor * part.seconds
        try:
            uri = part.source.uri
            scanned = self._sandbox.call(uri, scan, part.source, self._recipe, part.segment, deadline=deadline)
            table_from(scanned.clips, self._schema.remove(self._schema.get_field_index("unit")))  # do the numbers fit?
            return scanned, None
        except Exception as error:
            if is_machine_fault(error):
                raise
            return Scanned(source={}, clips=[], frames=[], stats={}), error


def identify(uri: str, options: SourceOptions, size: int) -> tuple[Probe, str]:
    """What a container of `size` bytes (0: not known) says, and its content id; runs in the sandbox. A duration for
    which the file is too small is 0, as one that it does not state: a damaged header must not make a million parts."""
    facts = probe(open_media(uri, options))
    if size and facts.duration * LEAST_RATE > size:
        facts = replace(facts, duration=0.0)
    return facts, content_id(uri, options)


def retry_or(error: BaseException, entry: LoggedError, otherwise: str) -> str:
    """What stands for a failure in `status` or `limits`: UNREACHABLE where the next build should try again, after a
    failure of the network or an exception that another version of this code may not raise."""
    return UNREACHABLE if isinstance(error, Unreachable) or entry.failure.place else otherwise
