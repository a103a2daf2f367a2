"""What one worker of each pass does with one unit of work. Nothing here knows of Ray.

Every worker commits its own rows: a fragment whose name is a function of what it was asked for, so that doing a unit
twice writes the same bytes to the same place.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.config.recipe import Recipe, SourceOptions
from pipeline.media.sandbox import Sandbox, SandboxError
from pipeline.media.video import MediaError, Probe, probe
from pipeline.scan.scan import Scanned, scan
from pipeline.sources.discover import DiscoveredFile, content_id, open_media, suffix
from pipeline.state import fingerprints
from pipeline.state.committed import UNREACHABLE
from pipeline.state.units import IdentifyUnit, Part, ScanUnit, UnitClips, UnitResult
from pipeline.storage.store import Store, Unreachable
from pipeline.tables.fragments import FRAMES, fingerprint, table_from, write_fragment, write_frames

SLOWEST = 2e6  # bytes a second at which a source is read at least, to know its content


class Identify:
    """Sources -> rows of state/sources: content id, what the container says, or why it cannot be used."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._options, self._deadline = store, recipe.sources, recipe.scan.deadline_seconds
        self._sandbox = Sandbox(recipe.scan.memory_mb)

    def __call__(self, unit: IdentifyUnit) -> UnitResult:
        started = time.perf_counter()
        rows = [self._row(found) for found in unit.found]
        keys = [(f.uri, f.size, f.stamp) for f in unit.found]
        name = f"state/sources/{fingerprint(keys)}.parquet"
        write_fragment(self._store, name, pa.Table.from_pylist(rows, schema=fingerprints.IDENTIFIED), {})
        failed = sum(row["status"] != "ok" for row in rows)
        seconds = {"total": time.perf_counter() - started}
        return UnitResult("sources", len(rows), {"sources": len(rows), "failed": failed}, seconds, fragment=name)

    def _row(self, found: DiscoveredFile) -> dict[str, Any]:
        row: dict[str, Any] = {"uri": found.uri, "size": found.size, "stamp": found.stamp}
        if not found.worth_opening:
            return row | {"status": "skipped", "error": f"not a video by its name ({suffix(found.uri) or 'no ending'})"}
        if found.size == -1:
            return row | {"status": "failed", "error": found.stamp}
        if found.size == 0 and ":" not in found.uri:
            return row | {"status": "failed", "error": "empty file"}
        try:
            seen, row["source_id"] = self._sandbox.call(
                identify, found.uri, self._options, deadline=self._deadline + found.size / SLOWEST
            )
        except (MediaError, SandboxError, OSError) as error:
            status = UNREACHABLE if isinstance(error, Unreachable) else "failed"
            return row | {"status": status, "error": plain(error)}
        return row | {
            "status": "ok",
            "duration": seen.duration,
            "fps": seen.fps,
            "width": seen.width,
            "height": seen.height,
            "start": seen.start,
            "codec": seen.codec,
        }


class Scan:
    """Parts of sources -> a fragment of clips with their scan scores, and one of sampled frames."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._recipe = store, recipe
        self._sandbox = Sandbox(recipe.scan.memory_mb)
        self._schema = fingerprints.scan_schema(recipe)
        self._fingerprint = fingerprints.scan_fingerprint(recipe)

    def __call__(self, unit: ScanUnit | UnitClips) -> tuple[UnitResult | None, UnitClips]:
        """What the embed pass has to do next; clips that are scanned already pass through."""
        if isinstance(unit, UnitClips):
            return None, unit
        done = self._unit(unit.parts)
        return done, UnitClips(done.fragment.rpartition("/")[2].removesuffix(".parquet"), done.fragment)

    def _unit(self, unit: Sequence[Part]) -> UnitResult:
        clips: list[dict[str, Any]] = []
        frames: list[dict[str, Any]] = []
        parts = []
        name = fingerprint(self._fingerprint, [part.key for part in unit])
        seconds: dict[str, float] = defaultdict(float)
        for part in unit:
            started = time.perf_counter()
            scanned, problem = self._scan(part)
            clips += scanned.clips
            frames += scanned.frames
            for step, value in scanned.stats.items():
                seconds[step] += value
            said: dict[str, Any] = {"key": part.key, "unit": name}
            if problem:  # why nothing of it could be used
                limits = (
                    UNREACHABLE if isinstance(problem, Unreachable) else fingerprint(fingerprints.limits(self._recipe))
                )
                said |= {"error": plain(problem), "limits": limits}
            elif note := scanned.source.get("error"):  # what of it could not
                said["note"] = note
            parts.append(said)
            seconds["total"] += time.perf_counter() - started
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
        )

    def _scan(self, part: Part) -> tuple[Scanned, Exception | None]:
        options = self._recipe.scan
        deadline = options.deadline_seconds + options.deadline_factor * part.seconds
        try:
            return self._sandbox.call(scan, part.source, self._recipe, part.segment, deadline=deadline), None
        except (MediaError, SandboxError, OSError) as error:
            return Scanned(source={}, clips=[], frames=[], stats={}), error


def identify(uri: str, options: SourceOptions) -> tuple[Probe, str]:
    """What a container says, and its content id; runs in the sandbox."""
    return probe(open_media(uri, options)), content_id(uri, options)


def plain(error: Exception) -> str:
    """One line for a person: what an error says, without its type and without the file's name where it is an OS's."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split())[:300] or type(error).__name__
