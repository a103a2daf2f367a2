"""The workers of the sources and scan passes: each processes one unit of work. Nothing here depends on Ray.

Every worker commits its own rows as a fragment whose name is a function of the unit, so that repeating a unit writes
the same bytes to the same place.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipeline.config.recipe import Recipe, SourceOptions
from pipeline.media.faults import OverLimit, is_machine_fault, one_line
from pipeline.media.isolation.answers import SandboxError
from pipeline.media.video import Probe, probe
from pipeline.scan.scan import Scanned, scan
from pipeline.sources.content import HEAD, ContentId, content_id, not_media
from pipeline.sources.discover import DiscoveredFile, open_file, open_media
from pipeline.sources.source_sandbox import SourceSandbox
from pipeline.state import fingerprints
from pipeline.state.committed import UNREACHABLE
from pipeline.state.error_log import LoggedError, logged_error, unforeseen, write_errors
from pipeline.state.limits import limit_values
from pipeline.state.units import Handoff, IdentifyUnit, Part, ScanUnit, UnitClips, UnitResult
from pipeline.storage.store import Store, Unreachable
from pipeline.tables.fragments import FRAMES, clip_id, fingerprint, table_from, write_fragment, write_frames

LEAST_RATE = 8.0  # bytes a second that any real video has at least
SLOWEST = 2e6  # bytes a second: slowest read of a source that the deadline of its content hash allows


class Identify:
    """Sources -> rows of state/sources: content id and the container's metadata, or why it cannot be used."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._options, self._limits = store, recipe.sources, recipe.scan
        self._sandbox = SourceSandbox(recipe.scan.memory_mb)

    def __call__(self, unit: IdentifyUnit) -> UnitResult:
        started = time.perf_counter()
        errors: list[LoggedError] = []
        rows = [self._row(file, errors) for file in unit.files]
        name = fingerprint([(f.uri, f.size, f.revision) for f in unit.files])
        fragment = f"state/sources/{name}.parquet"
        used, skipped = (sum(row["status"] == status for row in rows) for status in ("ok", "skipped"))
        write_errors(self._store, "sources", name, errors)
        write_fragment(self._store, fragment, pa.Table.from_pylist(rows, schema=fingerprints.IDENTIFIED), {})
        return UnitResult(
            of="sources",
            amount=len(rows),
            counts={"sources": len(rows), "failed": len(rows) - used - skipped, "skipped": skipped},
            seconds={"total": time.perf_counter() - started},
            fragment=fragment,
            unforeseen=unforeseen(errors),
        )

    def _row(self, file: DiscoveredFile, errors: list[LoggedError]) -> dict[str, Any]:
        """Return a row of IDENTIFIED; if the file cannot be read, append the failure to `errors`."""
        row: dict[str, Any] = {"uri": file.uri, "size": file.size, "stamp": file.revision}
        if not file.worth_opening and (reason := self._not_media(file)):
            return row | {"status": "skipped", "error": f"not a video ({reason})"}
        if file.problem:
            return row | {"status": "failed", "error": file.problem}
        if file.size == 0:
            return row | {"status": "failed", "error": "empty file"}
        size = file.size or 0
        if size > self._limits.max_gb * 1e9:
            error = f"{size / 1e9:.1f} GB, more than scan.max_gb allows ({self._limits.max_gb:g})"
            return row | {"status": "failed", "error": error, "limits": self._over("max_gb")}
        try:
            facts, row["source_id"] = self._sandbox.call(
                file.uri,
                identify,
                file.uri,
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
            pa.Table.from_pylist([row], schema=fingerprints.IDENTIFIED)  # raises for header values out of range
            return row
        except Exception as raised:
            if is_machine_fault(raised):
                raise
            errors.append(entry := logged_error(file.uri, raised))
            row = {name: row[name] for name in ("uri", "size", "stamp")}
            if isinstance(raised, OverLimit):
                row["limits"] = self._over(*raised.options)
            status = UNREACHABLE if may_pass(raised, entry) else "failed" if file.worth_opening else "skipped"
            return row | {"status": status, "error": entry.failure.reason}

    def _over(self, *names: str) -> str:
        return json.dumps(limit_values(names, self._limits), sort_keys=True)

    def _not_media(self, file: DiscoveredFile) -> str | None:
        """Return what a file with an ambiguous ending is, by its first bytes; None if it may be a video."""
        if file.problem:
            return file.problem
        try:
            with open_file(file.uri, self._options) as opened:
                return not_media(opened.read(HEAD))
        except Unreachable:
            return None  # the decoder fails on it too, and reports that
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

    def __call__(self, unit: ScanUnit) -> Handoff:
        """Scan the unit and hand its clips on to the embed pass."""
        done = self._scanned(unit.parts)
        name = done.fragment.rpartition("/")[2].removesuffix(".parquet")
        return Handoff(UnitClips(name, done.fragment), (done,))

    def _scanned(self, unit: Sequence[Part]) -> UnitResult:
        clips: list[dict[str, Any]] = []
        frames: list[dict[str, Any]] = []
        parts = []
        errors: list[LoggedError] = []
        name = fingerprint(self._fingerprint, [part.key for part in unit])
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
            if error:  # nothing of the part could be used
                errors.append(entry := logged_error(part.source.uri, error))
                done_part |= {"error": entry.failure.reason, "unreachable": may_pass(error, entry)}
                if isinstance(error, OverLimit):
                    done_part["limits"] = limit_values(error.options, self._recipe.scan)
            elif scanned.missing:
                done_part["note"] = scanned.missing
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
            _check_ids(scanned, part.source.source_id)
            table_from(scanned.clips, self._schema.remove(self._schema.get_field_index("unit")))  # checks value ranges
            table_from(scanned.frames, FRAMES)
            return scanned, None
        except Exception as error:
            if is_machine_fault(error):
                raise
            return Scanned(clips=[], frames=[], stats={}), error


def _check_ids(scanned: Scanned, source_id: str) -> None:
    """Raise SandboxError for rows of other sources, or ids that are not those of their clips: ids become the names of
    files, and the process that sent them has decoded untrusted bytes."""
    names = {clip_id(source_id, row["start_pts"], row["end_pts"], row["time_base"]) for row in scanned.clips}
    clips_match = all(row["source_id"] == source_id and row["clip_id"] in names for row in scanned.clips)
    if not clips_match or any(row["clip_id"] not in names for row in scanned.frames):
        raise SandboxError("the process sent rows of other clips than its own")


def identify(uri: str, options: SourceOptions, size: int) -> tuple[Probe, ContentId]:
    """Return the probe and content id of a container of `size` bytes (0: unknown); runs in the sandbox. A duration for
    which the file is too small becomes 0, like a missing one: a damaged header must not create a million parts."""
    facts = probe(open_media(uri, options))
    if size and facts.duration * LEAST_RATE > size:
        facts = replace(facts, duration=0.0)
    return facts, content_id(uri, options)


def may_pass(error: BaseException, entry: LoggedError) -> bool:
    """Return whether the next build should try again, because the network failed or the exception is a bug that
    another version may not have."""
    return isinstance(error, Unreachable) or bool(entry.failure.place)
