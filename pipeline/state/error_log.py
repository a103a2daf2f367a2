"""Errors of single sources and clips: tracebacks kept in the dataset, and the limit at which a build stops."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pipeline.media.faults import Failure, failure
from pipeline.storage.store import Store

FOLDER = "state/errors"
FEWEST = 10  # sources that one unforeseen exception must hit before a build stops
SHARE = 0.1  # of the build's sources that the exception must hit as well


@dataclass(frozen=True)
class LoggedError:
    """An error of a source, or of one of its clips."""

    source: str  # URI or source_id
    failure: Failure
    clip: str = ""  # clip_id
    step: str = ""  # the filter, captioner or encoder


def logged_error(source: str, error: BaseException, clip: str = "", step: str = "") -> LoggedError:
    return LoggedError(source, failure(error), clip, step)


def write_errors(store: Store, name: str, unit: str, errors: Sequence[LoggedError]) -> None:
    """Write the errors of a unit of the pass `name` as JSON lines; a unit that runs again overwrites them. Raises
    OSError."""
    if not errors:
        return
    rows = ({**asdict(error), **asdict(error.failure)} for error in errors)
    lines = [json.dumps({k: v for k, v in row.items() if k != "failure"}, sort_keys=True) for row in rows]
    store.write(f"{FOLDER}/{name}/{unit}.jsonl", "".join(f"{line}\n" for line in lines).encode())


def unforeseen(errors: Sequence[LoggedError]) -> dict[str, tuple[str, ...]]:
    """Return the sources that each unforeseen exception hit, by its place in the code."""
    sources: dict[str, set[str]] = defaultdict(set)
    for error in errors:
        if error.failure.place:
            sources[error.failure.place].add(error.source)
    return {place: tuple(sorted(hit)) for place, hit in sorted(sources.items())}


def why_stop(hits: Mapping[str, int], sources: int) -> str:
    """Return why a build of `sources` sources should stop, given how many of them each unforeseen exception hit; "" if
    it should continue."""
    place, count = max(hits.items(), key=lambda item: item[1], default=("", 0))
    if count < FEWEST or count <= SHARE * sources:
        return ""
    return (
        f"{place} hit {count:,} of {sources:,} sources: this is an error in the program, not in so many files. "
        f"Tracebacks are in {FOLDER}; finished work is kept."
    )
