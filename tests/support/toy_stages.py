"""Workers of stages for tests of engines. A module apart: a worker of Ray imports this and not the tests' imports."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.state.units import Handoff, UnitResult


@dataclass(frozen=True)
class Number:
    value: int


@dataclass(frozen=True)
class Square:
    value: int


class Squares:
    def __call__(self, unit: Number) -> Handoff:
        return Handoff(Square(unit.value**2), (UnitResult("square", 1.0),))


class Sums:
    def __init__(self, add: int) -> None:
        self._add = add

    def __call__(self, unit: Square) -> UnitResult:
        return UnitResult("sum", unit.value + self._add)


class Unlucky:
    def __call__(self, unit: Number) -> UnitResult:
        if unit.value == 3:
            raise OSError(28, "No space left on device")
        return UnitResult("unlucky", unit.value)


class NoModel:
    def __init__(self) -> None:
        raise RuntimeError("the weights cannot be loaded")


class Quick:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __call__(self, unit: Number) -> Handoff:
        Path(self._folder, f"quick {unit.value}").touch()
        return Handoff(Square(unit.value))


class Slow(Quick):
    def __call__(self, unit: Square) -> UnitResult:  # type: ignore[override]
        """How far ahead the quick stage is."""
        time.sleep(0.05)
        Path(self._folder, f"slow {unit.value}").touch()
        names = os.listdir(self._folder)
        return UnitResult("slow", sum(n.startswith("quick") for n in names) - sum(n.startswith("slow") for n in names))


class Meeting:
    """Answers once three threads are in it at the same time."""

    def __init__(self) -> None:
        self._all = threading.Barrier(3, timeout=300)

    def __call__(self, unit: Number) -> UnitResult:
        self._all.wait()
        return UnitResult("meeting", unit.value)


class Mortal:
    """Is killed by its first unit of the value 3, as the kernel does where memory is short."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __call__(self, unit: Number) -> UnitResult:
        if unit.value == 3 and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return UnitResult(str(os.getpid()), unit.value)


class Hungry:
    def __call__(self, unit: Number) -> UnitResult:
        raise MemoryError


class Buggy:
    def __call__(self, unit: Number) -> UnitResult:
        return UnitResult("buggy", {1: 1.0}[unit.value])
