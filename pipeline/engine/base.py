"""The engine interface: an engine sends units of work through stages of workers, in this process or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.state.units import BuildStopped, UnitResult


@dataclass(frozen=True)
class Machine:
    """The resources of this machine or of the whole cluster at the start of a pass."""

    cpus: int
    widest: int  # cores of the largest node
    gpu: bool  # whether there is a GPU, or the build waits for one


@dataclass(frozen=True)
class Stage:
    """A pool of workers, as many as work and resources allow, also on nodes that join later.

    `worker(*args)` is made once per worker, then called with each unit whose type is `takes`; units of other types go
    on to the next stage. A worker answers with a UnitResult, or with a Handoff to a later stage. Each worker reserves
    `cpus` and `gpus`, and is called with up to `at_once` units at the same time, each in a thread: with more than one
    it is thread-safe. A worker that is `own_process` holds the interpreter lock too long to share a process.
    """

    worker: Callable[..., Any]
    args: tuple[Any, ...]
    takes: type
    cpus: float
    gpus: float = 0.0
    at_once: int = 1
    own_process: bool = False


class Engine(Protocol):
    """Runs units through stages. Passes do not depend on which engine runs them."""

    name: str

    def machine(self) -> Machine:
        """Return the current resources; a cluster may have grown since the last pass."""
        ...

    def run(self, units: Iterable[Any], stages: Sequence[Any]) -> Iterator[UnitResult]:
        """Send every unit through the stages and yield the results in the order of completion.

        Raises BuildStopped where a worker could not load its models, OSError where it could not read or write the
        dataset, NodesLost where the pass must be restarted. Anything else that a worker raises is a bug.
        """
        ...

    def publish(self, result: UnitResult, pending: float) -> None:
        """Export the progress of a pass for monitoring; `pending` is the remaining amount."""
        ...

    def close(self) -> None: ...


class NodesLost(Exception):
    """A pass lost nodes and then made no progress. Committed work is kept; restarting the pass continues it."""


def start_worker(stage: Stage) -> Any:
    """Return a worker of `stage`. Raises BuildStopped where it cannot load its models."""
    try:
        return stage.worker(*stage.args)
    except (OSError, RuntimeError, ValueError) as error:
        raise BuildStopped(f"{stage.worker.__name__} cannot start: {' '.join(str(error).split())[:500]}") from error
