"""The Ray engine: actor pools of Ray Data, on this machine or a cluster. Only this file uses private API of Ray.

Units and results are small pickled records. Workers write their rows to the dataset themselves: a unit is committed
atomically even if its worker dies, and no large objects pass through the object store.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol

import ray
import ray.data
import ray.exceptions
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from pipeline.engine import metrics
from pipeline.engine.base import Machine, NodesLost, Stage, start_worker
from pipeline.media.faults import ChildTraceback, portable
from pipeline.state.units import BuildStopped, Handoff, UnitResult

AHEAD = 16  # largest number of finished blocks that wait for the next stage
UNITS_PER_BLOCK = 4  # largest number of units per block; each block costs the driver a few milliseconds
MIN_BLOCKS = 256  # a block holds more than one unit only if there are at least this many blocks
QUIET = 30.0  # seconds without progress after which a pass that has lost a node is ended
Message = tuple[list[UnitResult], Any]  # results so far, and the unit for a later stage or the `portable` exception


class RayStage(Protocol):
    """A stage that builds its own part of the Ray Data pipeline; rows are {"unit": bytes}, pickled messages."""

    def through(self, data: ray.data.Dataset, blocks: int) -> ray.data.Dataset: ...

    def explain(self, error: Exception) -> None:
        """Raise BuildStopped if `error`, of a failed task, has a cause that the user can fix."""
        ...


class RayEngine:
    """Joins the cluster at `address` ("auto": the cluster of this process), or starts Ray on this machine with `cores`
    (default: all).

    If the process has already called `ray.init`, that Ray is used and not shut down; raises BuildStopped if `address`
    or `cores` contradict it. With `wait_for_gpu` passes with GPU models wait until the cluster has a GPU; raises
    BuildStopped if Ray runs on this machine only and it has none.
    """

    name = "ray"

    def __init__(self, address: str | None = None, cores: int | None = None, wait_for_gpu: bool = False) -> None:
        self._wait, self._started = wait_for_gpu, not ray.is_initialized()
        if self._started:
            _start(address, cores)
        elif cores is not None or address not in (None, "auto", ray.get_runtime_context().gcs_address):
            raise BuildStopped(
                "this process has already called ray.init: build without `address` and `cores`, or call ray.shutdown"
            )
        self._settings = ray.data.DataContext.get_current().copy()
        _configure()
        if wait_for_gpu and not _has_gpu():
            if address is None and self._started:
                self.close()
                raise BuildStopped("--gpus: this machine has no GPU that Ray detects")
            print("the cluster has no GPU yet; passes with GPU models wait for one", file=sys.stderr)

    def machine(self) -> Machine:
        widest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        return Machine(
            cpus=max(1, math.floor(ray.cluster_resources().get("CPU", 1))),
            widest=max(1, math.floor(widest)),
            gpu=self._wait or _has_gpu(),
        )

    def run(self, units: Iterable[Any], stages: Sequence[Stage | RayStage]) -> Generator[UnitResult]:
        """Run the units through the stages; see `Engine.run`. If a worker dies, the units of its block run again."""
        rows = [{"unit": pickle.dumps(([], unit))} for unit in units]
        blocks = max(1, -(-len(rows) // max(1, min(UNITS_PER_BLOCK, len(rows) // MIN_BLOCKS))))
        data: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=blocks)
        for stage in stages:
            data = _pool(data, stage, blocks) if isinstance(stage, Stage) else stage.through(data, blocks)
        try:
            for row in data.iter_rows():
                results, problem = pickle.loads(row["unit"])
                if problem is not None:
                    error, trace = problem
                    raise error from ChildTraceback(*trace)
                yield from results
        except ray.exceptions.RayError as error:
            for stage in stages:
                if not isinstance(stage, Stage):
                    stage.explain(error)
            raise

    def publish(self, result: UnitResult, pending: float) -> None:
        metrics.publish(result)
        metrics.publish_pending(result.of, pending)

    def close(self) -> None:
        if self._started:
            ray.shutdown()
        else:
            ray.data.DataContext._set_current(self._settings)


def _pool(data: ray.data.Dataset, stage: Stage, blocks: int) -> ray.data.Dataset:
    """Return `data` mapped by a pool of the stage's workers."""
    return data.map(
        Worker,  # type: ignore[arg-type]
        fn_constructor_args=(stage,),
        num_cpus=stage.cpus,
        num_gpus=stage.gpus or None,
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=blocks,
            max_tasks_in_flight_per_actor=stage.at_once + 1,
            max_concurrent_calls_per_actor=stage.at_once,
            enable_true_multi_threading=stage.at_once > 1,
        ),
    )


class Worker:
    """The actor of Ray Data: unpickles a message, calls the stage's worker, and pickles its result.

    Exceptions are returned as results instead of failing the task: a retry on another node would fail too, and Ray
    would log each of them with a hundred lines.
    """

    def __init__(self, stage: Stage) -> None:
        self._takes, self._problem = stage.takes, None
        try:
            self._work = start_worker(stage)
        except Exception as error:
            self._problem = portable(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        results, unit = pickle.loads(row["unit"])
        if not isinstance(unit, self._takes):  # a unit of a later stage, None after the last one, or an exception
            return row
        return {"unit": pickle.dumps(self._message(results, unit))}

    def _message(self, results: list[UnitResult], unit: Any) -> Message:
        if self._problem:
            return results, self._problem
        try:
            answer = self._work(unit)
        except Exception as error:
            return results, portable(error)
        if isinstance(answer, Handoff):
            return [*results, *answer.results], answer.unit
        return [*results, answer], None


class _LimitQueuedBlocks(BackpressurePolicy):
    """Pauses a stage while AHEAD of its finished blocks wait for the next stage. Ray's own limits count bytes in the
    object store, where units are small records whatever their size on disk."""

    def can_add_input(self, op: PhysicalOperator) -> bool:
        waiting = (self._topology[later].total_enqueued_input_blocks() for later in op.output_dependencies)
        return all(count < AHEAD for count in waiting)


class _EndAfterLostNodes(ExecutionCallback):
    """Ends a pass that has lost nodes and then makes no progress for QUIET seconds.

    Ray restarts the workers of a lost node with their units when resources become free. On a cluster that has become
    too small this may never happen, because Ray Data keeps one idle worker per stage with its resources.
    """

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        self._lost_before, self._taken, self._since = _lost_nodes(), -1, 0.0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        ops = executor._topology or ()
        now, taken = time.monotonic(), sum(op.metrics.num_outputs_taken for op in ops)
        if taken != self._taken or not _stuck(ops):
            self._taken, self._since = taken, now
        elif now - self._since > QUIET:
            self._since = now
            if lost := len(_lost_nodes() - self._lost_before):
                raise NodesLost(f"the cluster lost {lost} of its nodes, and the others wait for their units")


def _stuck(ops: Iterable[PhysicalOperator]) -> bool:
    """Return whether units are in flight and all of them are with workers that wait for a restart."""
    waiting = sum(
        worker.num_tasks_in_flight
        for op in ops
        for pool in op.get_autoscaling_actor_pools()
        for worker in pool._running_actors.values()  # type: ignore[attr-defined]
        if worker.is_restarting
    )
    return 0 < waiting >= sum(op.num_active_tasks() for op in ops)


def _lost_nodes() -> set[str]:
    """Return the ids of the nodes that the cluster has lost since its start."""
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def _has_gpu() -> bool:
    return ray.cluster_resources().get("GPU", 0) >= 1


def _start(address: str | None, cores: int | None) -> None:
    """Start Ray on this machine or join a cluster. Ray's own messages go to its log files."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"include_dashboard": False, "address": "local", "num_cpus": cores}
    else:
        options |= {"address": address}
    handler = signal.getsignal(signal.SIGTERM)
    with _without_stderr():
        ray.init(**options)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)  # restore it: Ray's core installs one that prints a stack trace
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _configure() -> None:
    """Set the Ray Data options of this engine in this process."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Reserve all resources: by default the first operator takes the unreserved half.
    context.op_resource_reservation_ratio = 1.0
    context.execution_no_progress_timeout_s = -1  # units have their own deadlines, and a node may take long to join
    policies = [*ENABLED_BACKPRESSURE_POLICIES, _LimitQueuedBlocks]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    context.custom_execution_callback_classes = [_EndAfterLostNodes]


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Make Ray's core log to files only, and redirect descriptor 2 to /dev/null while it starts, because it prints a
    notice about that."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
