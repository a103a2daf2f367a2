"""Metrics of the passes on Ray's Prometheus endpoint."""

from __future__ import annotations

import functools

from ray.util.metrics import Counter, Gauge

from pipeline.state.units import UnitResult


def publish(result: UnitResult) -> None:
    """Add a finished unit to the counters, such as ray_clipmill_units_total{pass="scan"}."""
    units, amount, seconds, results, _ = _metrics()
    tags = {"pass": result.of}
    units.inc(1, tags)
    if result.amount > 0:
        amount.inc(result.amount, tags)
    for counter, name, values in ((seconds, "part", result.seconds), (results, "result", result.counts)):
        for key, value in values.items():
            if value > 0:
                counter.inc(value, {**tags, name: key})


def publish_pending(name: str, amount: float) -> None:
    """Set the gauge of a pass's remaining amount of work."""
    _metrics()[-1].set(max(0.0, amount), {"pass": name})


@functools.cache
def _metrics() -> tuple[Counter, Counter, Counter, Counter, Gauge]:
    return (
        Counter("clipmill_units", "Units of work that were committed", ("pass",)),
        Counter("clipmill_amount", "Finished work: seconds of video (scan), sources, or clips", ("pass",)),
        Counter("clipmill_worker_seconds", "Time of workers, and of each part of their work", ("pass", "part")),
        Counter("clipmill_results", "Results: clips, failed, reused", ("pass", "result")),
        Gauge("clipmill_left", "Remaining work, in the measure of clipmill_amount", ("pass",)),
    )
