"""Statistics of each pass of a build: time, amounts, results, and the cost of each filter.

They are written to stats/PASS.json while a pass runs, so that the next build continues the sums of a stopped one, and
to dataset.json when the build is finished.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pipeline.state.units import UnitResult
from pipeline.storage.store import Store

PUBLISHED = ("seconds", "amount", "units", "results", "parts", "filters", "fingerprint")


class Spent:
    """Sums over the units of a pass. `earlier` are the sums of the same pass in a build that was stopped."""

    def __init__(self, fingerprint: str, earlier: Mapping[str, Any] | None = None) -> None:
        start = earlier if earlier and earlier.get("fingerprint") == fingerprint else {}
        self.fingerprint = fingerprint
        self._seconds_before = float(start.get("seconds", 0.0))
        self.seconds = 0.0  # wall-clock seconds of this run
        self.amount, self.units = float(start.get("amount", 0.0)), int(start.get("units", 0))
        self.results: dict[str, int] = defaultdict(int, start.get("results", {}))
        self.parts: dict[str, float] = defaultdict(float, start.get("parts", {}))
        self.filters: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for name, values in start.get("filters", {}).items():
            self.filters[name].update(values)

    def add(self, result: UnitResult) -> None:
        self.amount += result.amount
        self.units += 1
        for key, count in result.counts.items():
            self.results[key] += count
        for key, value in result.seconds.items():
            self.parts[key] += value
        for name, values in result.filters.items():
            for key, value in values.items():
                self.filters[name][key] += value

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `passes` in dataset.json."""
        return {
            "seconds": round(self._seconds_before + self.seconds, 3),
            "amount": round(self.amount, 3),
            "units": self.units,
            "results": dict(self.results),
            "parts": {key: round(value, 3) for key, value in sorted(self.parts.items())},
            "filters": {name: {key: round(v, 4) for key, v in values.items()} for name, values in self.filters.items()},
            "fingerprint": self.fingerprint,
        }


def unpublished(store: Store, published: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return by pass the entries of stats/ that differ from `published`, the `passes` of dataset.json: those of a
    stopped build."""
    entries = {}
    for name in store.list("stats", ".json"):
        with contextlib.suppress(ValueError, AttributeError):
            entry = {key: value for key, value in json.loads(store.read(name)).items() if key in PUBLISHED}
            stem = name.removeprefix("stats/").removesuffix(".json")
            if entry != published.get(stem):
                entries[stem] = entry
    return entries
