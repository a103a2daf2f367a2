"""A child process for code that may hang, crash or eat all memory: decoders. It is killed and started again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, TypeVar

import psutil

from pipeline.media.confinement import confine
from pipeline.media.faults import ChildTraceback, MachineFault, is_out_of_memory, place_of, trace_of

Result = TypeVar("Result")

TRIES = 3
POLL = 0.1  # seconds between two looks at the child's memory
PR_SET_PDEATHSIG = 1  # linux/prctl.h

# The kernel ties a child to the thread that started it, so all are started from one that lives as long as the process.
_starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox")


class SandboxError(Exception):
    """The child did not finish: it took too long, used too much memory, or crashed. The message says which."""


class SandboxKilled(SandboxError):
    """Somebody else ended the child (an operator, the kernel short of memory): that says nothing of what it did."""


class Sandbox:
    """One child process, started at the first call and kept for the next ones. Not for use by several threads at once.

    `memory_mb` bounds the child's resident set. A `confined` child has no network and cannot write files, where the
    system allows to take that away. Functions are sent by name: they must be importable in a fresh process. What a
    function prints goes to standard error.
    """

    def __init__(self, memory_mb: int = 3000, confined: bool = False):
        self.memory_mb, self.confined = memory_mb, confined
        self._child: subprocess.Popen[bytes] | None = None

    def call(self, function: Callable[..., Result], *args: object, deadline: float) -> Result:
        """`function(*args)` in the child, within `deadline` seconds, up to `TRIES` times where others end the child.
        Raises what it raises, with the child's traceback as a ChildTraceback in its cause; SandboxError, also where the
        child runs out of its memory; MachineFault where no child can be started."""
        request = pickle.dumps((function, args))
        for _ in range(TRIES - 1):
            with contextlib.suppress(SandboxKilled):
                return self._call(request, deadline)
        return self._call(request, deadline)

    def _call(self, request: bytes, deadline: float) -> Any:
        child = self._start()
        try:
            _write(child.stdin, request)
            answer = self._wait(child, time.monotonic() + deadline, deadline)
        except BaseException:
            self.close()
            raise
        value, trace = pickle.loads(answer)
        if trace is None:
            return value
        if is_out_of_memory(value):
            self.close()  # what it holds is of no use to the next call
            value = SandboxError(f"needed more than the {self.memory_mb} MB of memory that it may have")
        raise value from ChildTraceback(*trace)

    def close(self) -> None:
        """Ends the child, if there is one."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self.close()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = "1"  # as many sandboxes as cores, one thread each
        command = [sys.executable, "-m", "pipeline.media.sandbox", str(os.getpid()), str(self.memory_mb)]
        command += ["confined"] if self.confined else []
        pipe = subprocess.PIPE
        start = _starter.submit(subprocess.Popen, command, stdin=pipe, stdout=pipe, env=environment, bufsize=0)
        try:
            self._child = start.result()
        except OSError as error:
            raise MachineFault(error.errno, f"no process can be started: {error.strerror}") from error
        return self._child

    def _wait(self, child: subprocess.Popen[bytes], until: float, deadline: float) -> bytes:
        """The next message of the child, as soon as it is whole."""
        assert child.stdout is not None
        process, got = psutil.Process(child.pid), bytearray()
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise SandboxError(f"took longer than {deadline:.0f} s")
            with contextlib.suppress(psutil.Error):
                used = process.memory_info().rss / 2**20
                if used > self.memory_mb:
                    raise SandboxError(f"used more than {self.memory_mb} MB of memory")
            ready, _, _ = select.select([child.stdout], [], [], min(POLL, left))
            if not ready:
                continue
            chunk = os.read(child.stdout.fileno(), 1 << 20)
            if not chunk:
                code = child.wait()
                raise (SandboxKilled if code == -signal.SIGKILL else SandboxError)(_death(code))
            got += chunk
            if len(got) >= 8 and len(got) >= 8 + int.from_bytes(got[:8], "little"):
                return bytes(got[8:])


def _death(code: int) -> str:
    if code >= 0:
        return f"the process ended early (status {code})"
    with contextlib.suppress(ValueError):
        return f"the process crashed ({signal.Signals(-code).name})"
    return f"the process crashed (signal {-code})"


def _write(pipe: IO[bytes] | None, message: bytes) -> None:
    assert pipe is not None
    try:
        view = memoryview(len(message).to_bytes(8, "little") + message)
        while view:
            view = view[pipe.write(view) or 0 :]
    except BrokenPipeError as error:
        raise SandboxKilled("the process ended before it was given its work") from error


def _read(pipe: IO[bytes], size: int) -> bytes:
    got = b""
    while len(got) < size:
        chunk = pipe.read(size - len(got))
        if not chunk:
            sys.exit(0)  # the parent has closed its end
        got += chunk
    return got


def _answer(message: bytes) -> bytes:
    """What a call gives, pickled: its value and None, or its exception and the arguments of ChildTraceback."""
    try:
        function, args = pickle.loads(message)
        return pickle.dumps((function(*args), None))
    except Exception as error:
        trace = (trace_of(error), place_of(error))
        try:
            answer = pickle.dumps((error, trace))
            pickle.loads(answer)
        except Exception:
            answer = pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), trace))
        return answer


def _serve(parent: int, memory_mb: int, confined: bool) -> None:
    """The child's life: a call in, an answer out, until the parent goes away."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)  # it died before the line above
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # Backstop for one huge allocation between two looks of the parent; writable private memory, so mapped files and
    # reserved address space do not count.
    with contextlib.suppress(ValueError, OSError):
        limit = (memory_mb + 2048) << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        tempfile.gettempdir()  # kept: libraries ask for it when they are imported, and it is looked for by writing
    except FileNotFoundError:
        tempfile.tempdir = "/tmp"  # full: who writes there is told so
    if confined:
        confine()
    calls = os.fdopen(os.dup(0), "rb", buffering=0)
    answers: Any = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # prints must not end up between answers
    while True:
        _write(answers, _answer(_read(calls, int.from_bytes(_read(calls, 8), "little"))))


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), "confined" in sys.argv[3:])
