"""Histograms of scores, split into kept and rejected, with the recipe's thresholds on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 36
QUANTILES = 2001


@dataclass(frozen=True)
class Line:
    """A threshold. `x` is its place on the axis, 0..1, clipped to it; `outside` says that it lies beyond."""

    side: str  # min or max
    value: float
    x: float
    outside: bool


@dataclass(frozen=True)
class Histogram:
    """One score over all clips. Bar heights are fractions of the fullest bin; the axis covers the middle 99% of the
    clips, and what lies beyond is in the first and last bin."""

    name: str
    low: float
    high: float
    kept: tuple[float, ...]
    rejected: tuple[float, ...]
    lines: tuple[Line, ...]
    median: float
    missing: int
    values: np.ndarray  # the finite scores in order, or as many quantiles of them, evenly spaced

    def percentile(self, value: float) -> float:
        """Share of the clips that score lower, 0..1; half of those that score the same."""
        below, upto = (np.searchsorted(self.values, value, side) for side in ("left", "right"))
        return float((below + upto) / 2 / max(1, len(self.values)))


def histogram(name: str, values: np.ndarray, keep: np.ndarray, bounds: Mapping[str, Any] | None) -> Histogram:
    """`values` (n,) float64 with NaN where a clip has no score, `keep` (n,) bool, `bounds` the recipe's, with `min`
    and `max`."""
    is_finite = np.isfinite(values)
    finite = np.sort(values[is_finite])
    low, high = (np.percentile(finite, [0.5, 99.5]).tolist()) if len(finite) else (0.0, 1.0)
    limits = [(side, float(bounds[side])) for side in ("min", "max") if bounds and bounds.get(side) is not None]
    reach = high - low or abs(high) or 1.0
    for _, value in limits:  # a threshold near the data widens the axis, a far one would only squeeze the bars
        if low - reach / 2 <= value <= high + reach / 2:
            low, high = min(low, value), max(high, value)
    if high <= low:
        low, high = min(0.0, 2 * low), max(0.0, 2 * high) or 1.0
    edges = np.linspace(low, high, BINS + 1)
    inside = np.clip(values, low, high)
    counts = [np.histogram(inside[is_finite & which], edges)[0] for which in (keep, ~keep)]
    top = max(1, int((counts[0] + counts[1]).max()))
    lines = []
    for side, value in limits:
        x = (value - low) / (high - low)
        lines.append(Line(side, value, min(1.0, max(0.0, x)), not 0.0 <= x <= 1.0))
    return Histogram(
        name=name,
        low=low,
        high=high,
        kept=tuple((counts[0] / top).tolist()),
        rejected=tuple((counts[1] / top).tolist()),
        lines=tuple(lines),
        median=float(np.median(finite)) if len(finite) else float("nan"),
        missing=int(len(values) - len(finite)),
        values=finite if len(finite) <= QUANTILES else np.quantile(finite, np.linspace(0, 1, QUANTILES)),
    )


def number(value: float | None) -> str:
    """At most three significant digits, without exponents where they can be avoided; a dash for no number."""
    if value is None or not np.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.2g}"
    text = f"{value:,.{max(0, 2 - int(np.floor(np.log10(abs(value)))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
