"""Requests to stop a run between two steps: signals, a time limit, or an error of the data."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any

import torch
import torch.distributed as dist

from model.errors import DataError
from model.training.parallel import RankContext


class StopRequest:
    """SIGTERM and SIGINT, which end the run after the current step; or a `reason`, raised after the state is saved."""

    def __init__(self) -> None:
        self.requested = False
        self.reason: DataError | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):  # not the main thread, as under Ray Train, which handles signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True

    def agreed(self, context: RankContext, max_seconds: float, started: float) -> bool:
        """Return whether any process was asked to stop or is out of time; every process calls it."""
        stop = self.requested or self.reason is not None or 0 < max_seconds < time.monotonic() - started
        if context.world > 1:
            flag = torch.tensor(float(stop))
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            stop = bool(flag)
        return stop
