"""Metrics of the passes on Ray's Prometheus endpoint."""

from __future__ import annotations

import functools

from ray.util.metrics import Counter, Gauge

from pipeline.state.units import UnitResult


def publish(done: UnitResult) -> None:
    """Count one unit of work: ray_clipmill_units_total{pass="scan"} and the other counters."""
    units, amount, seconds, results, _ = _metrics()
    tags = {"pass": done.of}
    units.inc(1, tags)
    if done.amount > 0:
        amount.inc(done.amount, tags)
    for counter, name, values in ((seconds, "part", done.seconds), (results, "result", done.counts)):
        for key, value in values.items():
            if value > 0:
                counter.inc(value, {**tags, name: key})


def publish_pending(name: str, amount: float) -> None:
    """Set the remaining amount of a pass."""
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
