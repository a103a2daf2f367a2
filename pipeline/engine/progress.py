"""Progress output: a line for each pass at its end; on a terminal one line that is updated."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping


class Progress:
    """Prints the finished work of passes that run at the same time.

    `measures` are their names and units of work (sources, video or clips). `total` is the work of the first one; that
    of the others follows from its results.
    """

    def __init__(self, measures: Mapping[str, str], total: float) -> None:
        self._measures, self._total, self._out = measures, total, sys.stdout
        self._first = next(iter(measures))
        self._started = time.monotonic()
        self._amounts = dict.fromkeys(measures, 0.0)
        self._counts: dict[str, dict[str, int]] = {name: {} for name in measures}

    def add(self, name: str, amount: float, counts: Mapping[str, int]) -> None:
        self._amounts[name] += amount
        for key, value in counts.items():
            self._counts[name][key] = self._counts[name].get(key, 0) + value
        if self._out.isatty():
            later = "".join(f"; {other} {self._amount(other)}" for other in self._names()[1:])
            self._out.write(f"\r\033[2K{self._line(self._first)}{self._time_left()}{later}")
            self._out.flush()

    def close(self) -> float:
        """Print the final lines, one a pass, and return the wall-clock seconds of all."""
        start = "\r\033[2K" if self._out.isatty() else ""
        for name in self._names():
            self._out.write(f"{start}{self._line(name)}  {self.seconds:.1f} s\n")
        self._out.flush()
        return self.seconds

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def amount(self) -> float:
        """Finished work of the first pass."""
        return self._amounts[self._first]

    def _names(self) -> list[str]:
        """Return the first pass and the others that have results."""
        return [name for name in self._measures if name == self._first or self._amounts[name]]

    def _amount(self, name: str) -> str:
        amount, measure = self._amounts[name], self._measures[name]
        return clock(amount) + " video" if measure == "video" else counted(round(amount), measure)

    def _line(self, name: str) -> str:
        amount = self._amount(name)
        shown = {key: value for key, value in self._counts[name].items() if value or key not in ("failed", "skipped")}
        counts = ", ".join(text for key, value in shown.items() if (text := counted(value, key)) != amount)
        rate = RATES[self._measures[name]](self._amounts[name] / max(self.seconds, 1e-6))
        return f"{name:<9} {amount:>12}  {counts}{'  ' if counts else ''}({rate})"

    def _time_left(self) -> str:
        if not self.amount:
            return ""
        remaining = self.seconds * (self._total - self.amount) / self.amount
        return f"  {100 * self.amount / max(self._total, 1e-9):.0f}%, {clock(max(remaining, 0))} left"


RATES: dict[str, Callable[[float], str]] = {
    "video": lambda rate: f"{rate:.1f} x real time",
    "clips": lambda rate: f"{rate:.1f} clips/s",
    "sources": lambda rate: f"{rate:.1f} sources/s",
}


def counted(number: int, noun: str) -> str:
    """Format a number with its noun, given in plural: (1, "clips") -> "1 clip"."""
    return f"{number:,} {noun.removesuffix('s') if number == 1 else noun}"


def clock(seconds: float) -> str:
    """Format a duration as 1:02:03, or 2:03 under an hour."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
