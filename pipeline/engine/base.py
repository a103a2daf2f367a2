"""The engine interface: an engine sends units of work through stages of workers, in this process or on a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.state.units import BuildStopped, UnitResult


@dataclass(frozen=True)
class Machine:
    """The resources of this machine or of the whole cluster at the start of a pass."""

    cpus: int
    widest: int  # cores of the largest node
    gpu: bool  # whether a GPU is available, or the build waits for one


@dataclass(frozen=True)
class Stage:
    """A pool of workers, as many as pending work and resources allow, including nodes that join later.

    Each worker is constructed as `worker(*args)` and called with each unit of the type `takes`; units of other types
    are passed to the next stage. A worker returns a UnitResult, or a Handoff to a later stage. Each worker reserves
    `cpus` and `gpus` and is called with up to `at_once` units concurrently, each in a thread; with more than one it
    must be thread-safe. `own_process` marks workers that hold the interpreter lock too long to share a process.
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
        """Send every unit through the stages and yield the results in order of completion.

        Raises BuildStopped if a worker cannot load its models, NodesLost if the pass must be restarted, and what a
        worker raises: OSError if it cannot read or write the dataset, or another fault of the machine. Any other
        exception is a bug.
        """
        ...

    def publish(self, result: UnitResult, pending: float) -> None:
        """Export the progress of a pass for monitoring; `pending` is the remaining amount."""
        ...

    def close(self) -> None: ...


class NodesLost(Exception):
    """The cluster lost nodes and the pass made no progress afterwards. A restarted pass continues committed work."""


def start_worker(stage: Stage) -> Any:
    """Return a new worker of `stage`. Raises BuildStopped if it cannot load its models."""
    with naming_worker(stage.worker.__name__):
        return stage.worker(*stage.args)


@contextlib.contextmanager
def naming_worker(name: str) -> Iterator[None]:
    """Turn exceptions of loading models into BuildStopped with the worker's name."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise BuildStopped(f"{name} cannot start: {' '.join(str(error).split())[:500]}") from error
