"""The Ray Data stages: what a worker of each pass does with one unit, and how stages are wired. Only this file and
ray_llm.py touch ray.data.

Work goes in as small pickled records and comes out as small ones; what a pass makes it writes to the dataset itself, so
that a unit is there or it is not, whatever happens to the worker, and nothing large crosses the object store.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
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

from pipeline.state.units import BuildStopped

AHEAD = 16  # finished blocks of units that may wait for the next stage
BLOCK = 4  # units that go through Ray together, at most: a block costs the driver some milliseconds
MANY = 256  # blocks, at least, before there is more than one unit in a block
QUIET = 30.0  # seconds after which a pass that has lost a node and is stuck is given up


@dataclass(frozen=True)
class Stage:
    """A pool of workers, as many as there is work and room for, also on nodes that join later. `worker(*args)` is made
    once per process, then called with a record for each unit. A worker takes `cpus` and `gpus` of what Ray has."""

    worker: Callable[..., Any]
    args: tuple[Any, ...]
    cpus: float
    gpus: float = 0.0

    def through(self, data: ray.data.Dataset, blocks: int) -> ray.data.Dataset:
        """`data` sent through the pool."""
        return data.map(
            _Worker,  # type: ignore[arg-type]
            fn_constructor_args=(self.worker, self.args),
            num_cpus=self.cpus,
            num_gpus=self.gpus or None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=blocks, max_tasks_in_flight_per_actor=2),
        )

    def explain(self, error: Exception) -> None:
        """A failed task of a worker is a bug: Ray's report says it best."""


class NodesLost(Exception):
    """A pass has lost nodes and then come to a stop. What it has done is kept; begun again, it goes on."""


class AnyStage(Protocol):
    """What Ray Data does with units; `explain` raises BuildStopped where a failed task is no bug."""

    def through(self, data: ray.data.Dataset, blocks: int) -> ray.data.Dataset: ...
    def explain(self, error: Exception) -> None: ...


def run(units: Sequence[bytes], stages: Sequence[AnyStage]) -> Generator[Any]:
    """Sends every unit (pickled) through the stages and yields what the last says of it, in the order of completion.

    The units of a block whose worker dies are done again. Raises NodesLost where that needs the pass to begin again,
    BuildStopped where a worker could not load its models, OSError where it could not read or write the dataset;
    anything else that a worker raises is a bug and comes out as Ray's report of it.
    """
    blocks = -(-len(units) // max(1, min(BLOCK, len(units) // MANY)))
    data: ray.data.Dataset = ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=blocks)
    for stage in stages:
        data = stage.through(data, blocks)
    try:
        for row in data.iter_rows():
            answer = pickle.loads(row["unit"])
            if isinstance(answer, (OSError, BuildStopped)):
                raise answer
            yield answer
    except ray.exceptions.RayError as error:
        for stage in stages:
            stage.explain(error)
        raise


class _Worker:
    """What Ray Data makes in an actor: unpacks the unit, calls the pass's worker, packs its answer.

    A model that cannot be loaded and a file that cannot be written (disk full, no permission) are answers, not failed
    tasks: they would fail again elsewhere, and the person who can mend it should read one line.
    """

    def __init__(self, worker: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._problem: Exception | None = None
        try:
            self._work = worker(*args)
        except (OSError, RuntimeError, ValueError) as error:
            self._problem = BuildStopped(f"{worker.__name__} cannot start: {' '.join(str(error).split())[:500]}")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        answer = pickle.loads(row["unit"])
        if not isinstance(answer, (OSError, BuildStopped)):
            try:
                answer = self._problem or self._work(answer)
            except OSError as error:
                answer = error
        return {"unit": pickle.dumps(answer)}


class _NotFarAhead(BackpressurePolicy):
    """A stage waits while AHEAD blocks that it has finished lie before the next one. Ray's own limits are of bytes in
    the object store, of which our records take next to none, whatever a unit holds on disk."""

    def can_add_input(self, op: PhysicalOperator) -> bool:
        waiting = (self._topology[later].total_enqueued_input_blocks() for later in op.output_dependencies)
        return all(count < AHEAD for count in waiting)


class _GivenUp(ExecutionCallback):
    """Ends a pass that has lost nodes and is then stuck for QUIET seconds.

    The workers of a lost node start again with the units they had, once there is room. On a cluster that has become
    small there may never be: idle workers that Ray Data keeps, one to a stage, hold it.
    """

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        self._gone_before, self._taken, self._since = _gone(), -1, 0.0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        ops = executor._topology or ()
        now, taken = time.monotonic(), sum(op.metrics.num_outputs_taken for op in ops)
        if taken != self._taken or not _stuck(ops):
            self._taken, self._since = taken, now
        elif now - self._since > QUIET:
            self._since = now
            if lost := len(_gone() - self._gone_before):
                raise NodesLost(f"{lost} of the cluster's nodes are gone, and the others wait for what was on them")


def _stuck(ops: Iterable[PhysicalOperator]) -> bool:
    """Whether there are units in hand, all of them of workers that wait to be started again."""
    waiting = sum(
        worker.num_tasks_in_flight
        for op in ops
        for pool in op.get_autoscaling_actor_pools()
        for worker in pool._running_actors.values()  # type: ignore[attr-defined]
        if worker.is_restarting
    )
    return 0 < waiting >= sum(op.num_active_tasks() for op in ops)


def _gone() -> set[str]:
    """Ids of the nodes that the cluster has lost since it was started."""
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


@dataclass(frozen=True)
class Machine:
    """What Ray has to give, of this machine or of a whole cluster, when a pass begins; and what a worker takes of it.

    Each stage of a pass may use an even share of the cores, Ray Data's allocator sees to that.
    """

    cpus: int
    widest: int  # cores of the largest node
    gpus: frozenset[str]  # the passes that run on one

    def scan(self) -> dict[str, float]:
        return {"cpus": 1.0 if "embed" in self.gpus else 0.5}

    def embed(self) -> dict[str, float]:
        """On a GPU two workers to each, whatever the cores of its node do; else beside the scan on the same cores: with
        two of them one, as loading models takes as long as a small build, with more nearly as many as the scan has."""
        return {"cpus": 0.0, "gpus": 0.5} if "embed" in self.gpus else {"cpus": min(0.7, self.widest / 2)}

    def caption(self) -> dict[str, float]:
        """Without a GPU two cores: one captions while the other reads frames and audits."""
        return {"cpus": 1.0, "gpus": 1.0} if "caption" in self.gpus else {"cpus": min(2.0, self.widest)}

    def other(self) -> dict[str, float]:
        return {"cpus": 1.0}


def machine(
    address: str | None = None,
    cores: int | None = None,
    able: frozenset[str] = frozenset({"embed", "caption"}),
    wait: bool = False,
) -> Machine:
    """What there is now: a cluster may have grown since the last pass. Starts or joins Ray where this process has not.

    The passes `able` run on GPUs if there is one, with `wait` even if a cluster has yet to start its node. Raises
    BuildStopped where there is to be a GPU on this machine and is none.
    """
    joined = ray.is_initialized()
    if not joined:
        start(address, cores)
    found = ray.cluster_resources()
    there = found.get("GPU", 0) >= 1
    if wait and not there and not joined:
        if address is None:
            raise BuildStopped("--gpus, and this machine has no GPU that Ray sees")
        print(f"the cluster has no GPU yet: {' and '.join(sorted(able))} wait until there is one", file=sys.stderr)
    widest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    return Machine(
        cpus=max(1, math.floor(found.get("CPU", 1))),
        widest=max(1, math.floor(widest)),
        gpus=able if wait or there else frozenset(),
    )


def start(address: str | None = None, cores: int | None = None) -> None:
    """Starts Ray on this machine with `cores` (default: all), or joins the cluster at `address` ("auto": the one that
    this process belongs to). Ray's own chatter goes to its log files."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"include_dashboard": False, "address": "local", "num_cpus": cores}
    else:
        options |= {"address": address}
    with _without_stderr():
        ray.init(**options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.op_resource_reservation_ratio = 1.0  # a half that is not reserved would go to who asks first
    context.execution_no_progress_timeout_s = -1  # a unit has a deadline of its own, a node may take long to come
    policies = [*ENABLED_BACKPRESSURE_POLICIES, _NotFarAhead]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    context.custom_execution_callback_classes = [_GivenUp]
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Ray's core is told to keep warnings about its own actors to its log files, and says so on descriptor 2: not while
    this lasts."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def stop() -> None:
    ray.shutdown()
