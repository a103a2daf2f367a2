"""The local engine: threads of this process take units through the stages, without starting other services.

Each thread takes one unit through all stages. Decoding happens in child processes and in libraries that release the
interpreter lock, so a thread a core keeps the cores busy.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import cv2

from pipeline.engine.base import Machine, Stage, start_worker
from pipeline.state.units import BuildStopped, Handoff, UnitResult


class LocalEngine:
    """Runs units in `cores` threads (default: the cores that this process may use). GPUs are used if `gpu` says that a
    model runs on one. With `wait_for_gpu` it raises BuildStopped where the machine has none."""

    name = "local"

    def __init__(self, cores: int | None = None, gpu: bool = False, wait_for_gpu: bool = False) -> None:
        self._cores = cores or len(os.sched_getaffinity(0))
        self._gpus = _gpus() if gpu else 0
        if wait_for_gpu and not self._gpus:
            raise BuildStopped("--gpus, and this machine has no GPU")

    def machine(self) -> Machine:
        return Machine(self._cores, self._cores, self._gpus > 0)

    def run(self, units: Iterable[Any], stages: Sequence[Stage]) -> Generator[UnitResult]:
        if any(not isinstance(stage, Stage) for stage in stages):
            raise BuildStopped("the captioner ray_llm runs on Ray: build with --engine ray")
        pools = [_Workers(stage, self._size(stage)) for stage in stages]
        running: set[Future[list[UnitResult]]] = set()
        with _own_threads(), ThreadPoolExecutor(self._cores) as threads:
            try:
                for unit in units:
                    running.add(threads.submit(_carry, unit, pools))
                    if len(running) >= 2 * self._cores:
                        yield from _completed(running)
                while running:
                    yield from _completed(running)
            finally:
                threads.shutdown(cancel_futures=True)

    def publish(self, result: UnitResult, pending: float) -> None:
        """Do nothing: progress of this process is not exported."""

    def close(self) -> None:
        """Do nothing: this engine started no service."""

    def _size(self, stage: Stage) -> int:
        """Return the number of workers of a stage; each may hold a model."""
        shares = [self._cores / stage.cpus] if stage.cpus else []
        if stage.gpus:
            shares.append(max(1, self._gpus) / stage.gpus)
        return max(1, int(min(shares)))


class _Workers:
    """The workers of a stage, started on first use; each is used by one thread at a time."""

    def __init__(self, stage: Stage, size: int) -> None:
        self.stage = stage
        self._room, self._starting = threading.Semaphore(size), threading.Lock()
        self._idle: list[Any] = []

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Any]:
        with self._room:
            try:
                worker = self._idle.pop()
            except IndexError:
                with self._starting:  # models are loaded by one thread at a time
                    worker = start_worker(self.stage)
            yield worker
            self._idle.append(worker)


@contextlib.contextmanager
def _own_threads() -> Iterator[None]:
    """Restore the thread counts of OpenCV and torch, which workers set to one."""
    cv2_threads = cv2.getNumThreads()
    torch_threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    try:
        yield
    finally:
        cv2.setNumThreads(cv2_threads)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(torch_threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))


def _carry(unit: Any, pools: Sequence[_Workers]) -> list[UnitResult]:
    """Take a unit, and the units that stages hand off, through the stages; return the workers' results."""
    results: list[UnitResult] = []
    for pool in pools:
        if not isinstance(unit, pool.stage.takes):
            continue
        with pool.borrowed() as worker:
            answer = worker(unit)
        if isinstance(answer, UnitResult):
            return [*results, answer]
        assert isinstance(answer, Handoff)
        results += answer.results
        unit = answer.unit
    return results


def _completed(running: set[Future[list[UnitResult]]]) -> Iterator[UnitResult]:
    """Wait for at least one unit; remove finished units from `running` and yield their results. Raises what a worker
    raised."""
    finished, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in finished:
        running.discard(future)
        yield from future.result()


def _gpus() -> int:
    import torch  # takes seconds to import

    return torch.cuda.device_count()
