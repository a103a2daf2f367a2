"""Exceptions sorted by who has to act: the owner of the machine, the owner of a source, or the authors of this code."""

from __future__ import annotations

import errno
import os
import pickle
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pipeline.config.secrets import redact

PACKAGES = ("pipeline", "filters", "captioners")
ROOT = Path(__file__).resolve().parents[2]
MACHINE_ERRNOS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
)  # disk full, quota, limit of file size, read-only file system, too many open files, no memory
CV_NO_MEMORY = -4  # cv::Error::StsNoMem
TRACE_CHARACTERS = 20_000  # characters kept from the end of a traceback: a deep recursion has megabytes
REASON_CHARACTERS = 300  # longest reason


class MachineFault(OSError):
    """The machine cannot go on, whatever the input: the build has to stop."""


class OverLimit(Exception):
    """A source needs more than `options` of the recipe's `scan` allow. It is read again once one of them is raised."""

    def __init__(self, message: str, *options: str) -> None:
        super().__init__(message)
        self.options = options


class ChildTraceback(Exception):
    """The traceback of an exception in another process, as its cause. `place` is where it was raised."""

    def __init__(self, text: str, place: str) -> None:
        super().__init__(text)
        self.text, self.place = text, place

    def __str__(self) -> str:
        return f"in the child process:\n{self.text}"


@dataclass(frozen=True)
class Failure:
    """Why a source or a clip has no result. `place` is the type, file and line of an unexpected exception, and empty
    for an expected one: an unusable file, a limit, a server that does not answer."""

    reason: str  # one line for a person
    place: str
    traceback: str


def failure(error: BaseException) -> Failure:
    """Return the record of an exception caused by one source or clip."""
    place = "" if is_foreseen(error) else place_of(error)
    reason = f"internal error: {place}: {one_line(error)}" if place else one_line(error)
    return Failure(reason[:REASON_CHARACTERS], place, trace_of(error))


def is_foreseen(error: BaseException) -> bool:
    """Return whether bad input may raise this exception: the operating system's errors and this code's own classes."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in PACKAGES


def is_machine_fault(error: BaseException) -> bool:
    """Return whether the machine is at fault, not the input: a full or read-only disk, no file descriptors, no memory
    for this process or its GPU."""
    if isinstance(error, MachineFault) or is_out_of_memory(error):
        return True
    if getattr(error, "errno", None) in MACHINE_ERRNOS:
        return True
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)  # no later call on this device works


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed: in Python, in the operating system, in OpenCV or in PyTorch."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if type(error).__name__ == "OutOfMemoryError" or getattr(error, "code", None) == CV_NO_MEMORY:
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def one_line(error: BaseException) -> str:
    """Return an error's message without its type, and for the operating system's errors without the file's name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(redact(str(error)).split())[:REASON_CHARACTERS] or type(error).__name__


def portable(error: Exception) -> tuple[Exception, tuple[str, str]]:
    """Return what another process can raise in place of an exception: one that can be pickled, and the arguments of the
    ChildTraceback that is its cause."""
    trace = (trace_of(error), place_of(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}"), trace
    return error, trace


def place_of(error: BaseException) -> str:
    """Return the exception's type and the innermost frame of this code, or of any code without one:
    "IndexError at pipeline/scan/tracks.py:112"."""
    if isinstance(error.__cause__, ChildTraceback):
        return error.__cause__.place
    frames = list(_frames(error.__traceback__))
    own = [(file, line) for file, line in frames if file.split("/")[0] in PACKAGES]
    file, line = (own or frames or [("unknown", 0)])[-1]
    return f"{type(error).__name__} at {file}:{line}"


def trace_of(error: BaseException) -> str:
    """Return the traceback with its causes, from the child process if it was raised there; file names of this code are
    relative to its root."""
    cause = error.__cause__
    text = cause.text if isinstance(cause, ChildTraceback) else "".join(traceback.format_exception(error))
    return text.replace(f"{ROOT}{os.sep}", "")[-TRACE_CHARACTERS:]


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    """Yield each file, relative to the root of its package, and line."""
    roots = [str(ROOT), *sorted(filter(None, sys.path), key=len, reverse=True)]
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        root = next((root for root in roots if file.startswith(root + os.sep)), "")
        yield file.removeprefix(root).lstrip(os.sep) if root else file, trace.tb_lineno
        trace = trace.tb_next
