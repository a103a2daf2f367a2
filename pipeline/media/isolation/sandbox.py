"""A child process for decoders, which may hang, crash or exhaust memory. It is killed and restarted on failure."""

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

from pipeline.media.faults import MachineFault, OverLimit
from pipeline.media.isolation.answers import RaisedInChild, SandboxError, decode, encode_error, encode_value
from pipeline.media.isolation.confinement import confine

Result = TypeVar("Result")

TRIES = 3  # attempts at a call whose child is killed from outside
DEADLINE = ("deadline_seconds", "deadline_factor")  # options of `scan` that determine deadlines
POLL = 0.1  # seconds between checks of the child's memory
PR_SET_PDEATHSIG = 1  # linux/prctl.h

# PR_SET_PDEATHSIG fires when the thread that started the child ends, so one thread of the process starts all children.
_starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox")


class SandboxKilled(SandboxError):
    """The child was killed from outside: by an operator or by the kernel's OOM killer."""


class Sandbox:
    """A child process, started at the first call and reused for later calls. Not thread-safe.

    `memory_mb` limits the child's resident set. A `confined` child has no network access and cannot write files, if the
    system supports that. Functions are pickled by name, so they must be importable in a new process. They return data
    of the type in their return annotation (see answers.py). Their standard output is redirected to standard error.
    """

    def __init__(self, memory_mb: int = 3000, confined: bool = False):
        self.memory_mb, self.confined = memory_mb, confined
        self._child: subprocess.Popen[bytes] | None = None

    def call(self, function: Callable[..., Result], *args: object, deadline: float) -> Result:
        """Run `function(*args)` in the child within `deadline` seconds; retry up to `TRIES` times if it is killed from
        outside.

        Raises the function's exception, converted by `RaisedInChild.exception`; OverLimit if it exceeds time or memory;
        SandboxError if the child crashes or sends a malformed answer; MachineFault if no child can be started.
        """
        request = pickle.dumps((function, args))
        for _ in range(TRIES - 1):
            with contextlib.suppress(SandboxKilled):
                return self._call(function, request, deadline)
        return self._call(function, request, deadline)

    def _call(self, function: Callable[..., Result], request: bytes, deadline: float) -> Result:
        child = self._start()
        try:
            _write(child.stdin, request)
            answer = decode(self._wait(child, time.monotonic() + deadline, deadline), function)
        except BaseException:
            self.close()
            raise
        if not isinstance(answer, RaisedInChild):
            return answer
        if answer.is_out_of_memory:
            self.close()  # release the memory that the child still holds
            raise OverLimit(f"needed more than the {self.memory_mb} MB of memory that it may have", "memory_mb")
        raise answer.exception()

    def close(self) -> None:
        """Kill the child, if there is one."""
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
        command = [sys.executable, "-m", "pipeline.media.isolation.sandbox", str(os.getpid()), str(self.memory_mb)]
        command += ["confined"] if self.confined else []
        pipe = subprocess.PIPE
        start = _starter.submit(subprocess.Popen, command, stdin=pipe, stdout=pipe, env=environment, bufsize=0)
        try:
            self._child = start.result()
        except OSError as error:
            raise MachineFault(error.errno, f"no process can be started: {error.strerror}") from error
        return self._child

    def _wait(self, child: subprocess.Popen[bytes], until: float, deadline: float) -> bytes:
        """Return the next complete message of the child."""
        assert child.stdout is not None
        process, message = psutil.Process(child.pid), bytearray()
        while True:
            remaining = until - time.monotonic()
            if remaining <= 0:
                raise OverLimit(f"took longer than {deadline:.0f} s", *DEADLINE)
            with contextlib.suppress(psutil.Error):
                used = process.memory_info().rss / 2**20
                if used > self.memory_mb:
                    raise OverLimit(f"used more than {self.memory_mb} MB of memory", "memory_mb")
            ready, _, _ = select.select([child.stdout], [], [], min(POLL, remaining))
            if not ready:
                continue
            chunk = os.read(child.stdout.fileno(), 1 << 20)
            if not chunk:
                code = child.wait()
                raise (SandboxKilled if code == -signal.SIGKILL else SandboxError)(_death(code))
            message += chunk
            size = int.from_bytes(message[:8], "little")
            if len(message) > self.memory_mb << 20:
                raise SandboxError("the process sent more than it may hold in memory")
            if len(message) >= 8 and len(message) >= 8 + size:
                if len(message) > 8 + size:
                    raise SandboxError("the process sent more than an answer")
                return bytes(message[8:])


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
    data = b""
    while len(data) < size:
        chunk = pipe.read(size - len(data))
        if not chunk:
            sys.exit(0)  # the parent has closed its end
        data += chunk
    return data


def _answer(message: bytes) -> bytes:
    """Run a pickled call; return the answer with its value or its exception."""
    try:
        function, args = pickle.loads(message)
        return encode_value(function(*args))
    except Exception as error:
        return encode_error(error)


def _serve(parent: int, memory_mb: int, confined: bool) -> None:
    """Serve calls in the child until the parent exits."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)  # the parent died before the line above
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    # The parent checks memory periodically; this limit stops a huge allocation between two checks. It applies to
    # writable private memory, not to mapped files or reserved address space.
    with contextlib.suppress(ValueError, OSError):
        limit = (memory_mb + 2048) << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        tempfile.gettempdir()  # cache the folder: libraries need it at import, and selecting it writes a file
    except FileNotFoundError:
        tempfile.tempdir = "/tmp"  # the disk is full; later writes raise the error
    if confined:
        confine()
    calls = os.fdopen(os.dup(0), "rb", buffering=0)
    answers: Any = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # redirect prints, which would corrupt the stream of answers
    while True:
        _write(answers, _answer(_read(calls, int.from_bytes(_read(calls, 8), "little"))))


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), "confined" in sys.argv[3:])
