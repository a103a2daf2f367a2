"""The local engine: runs units in threads of this process, without starting other services.

Each thread runs one unit through all stages. Decoding happens in child processes and in libraries that release the
interpreter lock, so one thread per core uses all cores. Additional threads wait for units that are on a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import cv2

from pipeline.engine.base import Machine, Stage, start_worker
from pipeline.media.faults import ChildTraceback, OverLimit, portable
from pipeline.media.isolation.sandbox import Sandbox, SandboxError
from pipeline.state.units import BuildStopped, Handoff, UnitResult

CHILD_MB = 8000  # memory limit of a worker in its own process: models of several filters and one unit's frames
CHILD_SECONDS = 3600.0  # time limit of such a worker for one unit


class LocalEngine:
    """Runs units in `cores` threads (default: one per core that this process may use).

    `gpu` states whether a model of the recipe runs on a GPU; the first GPU is used then. Raises BuildStopped with
    `wait_for_gpu` if the machine has no GPU.
    """

    name = "local"

    def __init__(self, cores: int | None = None, gpu: bool = False, wait_for_gpu: bool = False) -> None:
        self._cores = cores or len(os.sched_getaffinity(0))
        self._gpu = gpu and _has_gpu()
        if wait_for_gpu and not self._gpu:
            raise BuildStopped("--gpus: this machine has no GPU")

    def machine(self) -> Machine:
        return Machine(self._cores, self._cores, self._gpu)

    def run(self, units: Iterable[Any], stages: Sequence[Stage]) -> Generator[UnitResult]:
        pools = [_Workers(stage, self._size(stage)) for stage in stages]
        cores = threading.Semaphore(self._cores)
        count = self._cores + sum(pool.capacity for pool in pools if pool.stage.gpus)
        running: set[Future[list[UnitResult]]] = set()
        with _own_threads(), ThreadPoolExecutor(count) as threads:
            try:
                for unit in units:
                    running.add(threads.submit(_carry, unit, pools, cores))
                    if len(running) >= 2 * count:
                        yield from _completed(running)
                while running:
                    yield from _completed(running)
            finally:
                threads.shutdown(cancel_futures=True)

    def publish(self, result: UnitResult, pending: float) -> None:
        """Do nothing: the local engine exports no metrics."""

    def close(self) -> None:
        """Do nothing: this engine started no service."""

    def _size(self, stage: Stage) -> int:
        """Return the number of workers of a stage; each may hold a model."""
        shares = [self._cores / stage.cpus] if stage.cpus else []
        if stage.gpus:
            shares.append(1 / stage.gpus)
        return max(1, int(min(shares)))


class _Workers:
    """The workers of a stage, started on first use; each is used by up to `at_once` threads at a time."""

    def __init__(self, stage: Stage, size: int) -> None:
        self.stage, self.capacity = stage, size * stage.at_once
        self._free, self._starting = threading.Semaphore(self.capacity), threading.Lock()
        self._idle: list[Any] = []

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Any]:
        with self._free:
            worker = self._take()
            yield worker
            self._idle.append(worker)

    def _take(self) -> Any:
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        with self._starting:  # only one thread loads models at a time
            with contextlib.suppress(IndexError):
                return self._idle.pop()
            worker = _ChildWorker(self.stage) if self.stage.own_process else start_worker(self.stage)
            self._idle += [worker] * (self.stage.at_once - 1)
            return worker


class _ChildWorker:
    """A worker in a child process, which is started with the first unit."""

    def __init__(self, stage: Stage) -> None:
        self._name, self._stage, self._child = stage.worker.__name__, pickle.dumps(stage), Sandbox(CHILD_MB)

    def __call__(self, unit: Any) -> Any:
        try:
            # This child reads only files that earlier passes wrote, no sources, so unpickling its answer is safe.
            answer = self._child.call(_in_child, self._stage, unit, deadline=CHILD_SECONDS)
        except (SandboxError, OverLimit) as error:
            raise BuildStopped(f"a process of {self._name}: {error}") from error
        value, trace = pickle.loads(answer)
        if trace is not None:
            raise value from ChildTraceback(*trace)
        return value


def _in_child(stage: bytes, unit: Any) -> bytes:
    """Return a pickled pair: a worker's result and None, or its `portable` exception and the traceback. Raises
    MemoryError, which the sandbox reports."""
    try:
        return pickle.dumps((_worker_of_child(stage)(unit), None))
    except MemoryError:
        raise
    except Exception as error:
        return pickle.dumps(portable(error))


@functools.cache
def _worker_of_child(stage: bytes) -> Any:
    return start_worker(pickle.loads(stage))


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


def _carry(unit: Any, pools: Sequence[_Workers], cores: threading.Semaphore) -> list[UnitResult]:
    """Run a unit, and the units that stages hand off, through the stages; return the workers' results."""
    results: list[UnitResult] = []
    for pool in pools:
        if not isinstance(unit, pool.stage.takes):
            continue
        with pool.borrowed() as worker, contextlib.nullcontext() if pool.stage.gpus else cores:
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


def _has_gpu() -> bool:
    import torch  # takes seconds to import

    return torch.cuda.is_available()
