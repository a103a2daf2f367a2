"""Histograms of scores, split into kept and rejected, with the recipe's thresholds on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 36
QUANTILES = 2001


@dataclass(frozen=True)
class ThresholdLine:
    """A threshold. `x` is its position on the axis, clipped to 0..1; `outside`: it was clipped."""

    side: str  # min or max
    value: float
    x: float
    outside: bool


@dataclass(frozen=True)
class Histogram:
    """One score over all clips. Bar heights are fractions of the fullest bin; the axis covers the middle 99% of the
    clips; the first and last bins also hold the clips beyond."""

    name: str
    low: float
    high: float
    kept: tuple[float, ...]
    rejected: tuple[float, ...]
    lines: tuple[ThresholdLine, ...]
    median: float
    missing: int
    values: np.ndarray  # the finite scores, sorted, or at most QUANTILES quantiles of them

    def percentile(self, value: float) -> float:
        """Return the share of clips that score lower, 0..1; equal scores count half."""
        below, upto = (np.searchsorted(self.values, value, side) for side in ("left", "right"))
        return float((below + upto) / 2 / max(1, len(self.values)))


def histogram(name: str, values: np.ndarray, keep: np.ndarray, bounds: Mapping[str, Any] | None) -> Histogram:
    """Return the histogram of `values` (n,) float64, NaN where a clip has no score, split by `keep` (n,) bool; `bounds`
    are the recipe's, with `min` and `max`."""
    is_finite = np.isfinite(values)
    finite = np.sort(values[is_finite])
    low, high = (np.percentile(finite, [0.5, 99.5]).tolist()) if len(finite) else (0.0, 1.0)
    limits = [(side, float(bounds[side])) for side in ("min", "max") if bounds and bounds.get(side) is not None]
    reach = high - low or abs(high) or 1.0
    for _, value in limits:  # include a threshold near the data; a distant one would squeeze the bars
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
        lines.append(ThresholdLine(side, value, min(1.0, max(0.0, x)), not 0.0 <= x <= 1.0))
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
    """Format with at most three significant digits, without an exponent where possible; a dash for no number."""
    if value is None or not np.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.2g}"
    text = f"{value:,.{max(0, 2 - int(np.floor(np.log10(abs(value)))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
