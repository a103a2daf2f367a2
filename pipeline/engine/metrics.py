"""Progress for machines: what every pass has done, on Ray's own Prometheus endpoint."""

from __future__ import annotations

import functools

from ray.util.metrics import Counter, Gauge

from pipeline.state.units import UnitResult


def publish(done: UnitResult) -> None:
    """Add one unit of work: ray_clipmill_units_total{pass="scan"} and so on."""
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
    """How much a pass still has to do."""
    _metrics()[-1].set(max(0.0, amount), {"pass": name})


@functools.cache
def _metrics() -> tuple[Counter, Counter, Counter, Counter, Gauge]:
    return (
        Counter("clipmill_units", "Units of work that were committed", ("pass",)),
        Counter("clipmill_amount", "What is done: seconds of video (scan), sources, or clips", ("pass",)),
        Counter("clipmill_worker_seconds", "Time that workers took, and of it what each part took", ("pass", "part")),
        Counter("clipmill_results", "What came of it: clips, failed, reused", ("pass", "result")),
        Gauge("clipmill_left", "What is left to do, in the measure of clipmill_amount", ("pass",)),
    )
