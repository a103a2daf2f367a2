"""Progress output: one line for each pass, updated on a terminal, else printed once at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping


class Progress:
    """Prints the finished and total work of a pass, in the unit of its `measure` (sources, video or clips)."""

    def __init__(self, name: str, total: float, measure: str) -> None:
        self._name, self._total, self._measure, self._out = name, total, measure, sys.stdout
        self._started = time.monotonic()
        self.amount = 0.0
        self._counts: dict[str, int] = {}

    def add(self, amount: float, counts: Mapping[str, int]) -> None:
        self.amount += amount
        for key, value in counts.items():
            self._counts[key] = self._counts.get(key, 0) + value
        if self._out.isatty():
            self._out.write(f"\r\033[2K{self._line()}{self._time_left()}")
            self._out.flush()

    def close(self) -> float:
        """Print the final line of the pass and return its wall-clock seconds."""
        start = "\r\033[2K" if self._out.isatty() else ""
        self._out.write(f"{start}{self._line()}  {self.seconds:.1f} s\n")
        self._out.flush()
        return self.seconds

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def _line(self) -> str:
        amount = _amount(self.amount, self._measure)
        shown = {key: value for key, value in self._counts.items() if value or key not in ("failed", "skipped")}
        counts = ", ".join(text for key, value in shown.items() if (text := counted(value, key)) != amount)
        rate = RATES[self._measure](self.amount / max(self.seconds, 1e-6))
        return f"{self._name:<9} {amount:>12}  {counts}{'  ' if counts else ''}({rate})"

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


def _amount(amount: float, measure: str) -> str:
    return clock(amount) + " video" if measure == "video" else counted(round(amount), measure)
