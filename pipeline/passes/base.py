"""The interface of a pass: a step of a build that commits rows and determines which of its units are pending."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.config.recipe import Recipe
from pipeline.engine.base import Machine
from pipeline.passes.snapshot import Snapshot


class Outlook(NamedTuple):
    """The pending and the total work of a pass, in the unit of its `measure`."""

    pending: float
    total: float  # including finished work
    why: str  # reason, shown to the user, why work is pending


class Pass(ABC):
    """An entry of `registry.PASSES`. It has no state of its own; all state is in the recipe and the dataset."""

    name: str  # used in progress lines, stats/ and dataset.json
    measure: str  # unit of amounts of work: sources, video (seconds) or clips

    @abstractmethod
    def fingerprint(self, recipe: Recipe) -> str:
        """Return 16 hex digits: a hash of everything that can change the pass's rows."""

    def uses_gpu(self, recipe: Recipe) -> bool:
        """Return whether a model of this pass runs on a GPU if one is available."""
        return False

    @abstractmethod
    def pending(self, snapshot: Snapshot, workers: int) -> Iterator[Any]:
        """Yield the units of work that no earlier build has finished, sized for about `workers` workers. Each unit has
        an `amount`."""

    @abstractmethod
    def stages(self, snapshot: Snapshot, machine: Machine) -> Sequence[Any]:
        """Return the stages that the units pass through, in order."""

    @abstractmethod
    def outlook(self, snapshot: Snapshot) -> Outlook:
        """Return totals of the units that `pending` would yield, without writing anything."""
