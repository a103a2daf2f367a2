"""What a decoder that hostile bytes have taken over may send to its parent; runs in a child of the sandbox."""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import stat
import time

MARK = "PICKLE_RAN"  # environment variable that the pickle sets where it runs


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return exec, (f"import os; os.environ[{MARK!r}] = 'ran'",)


PICKLE = pickle.dumps((_Runs(), None))


def framed(answer: bytes, size: int | None = None) -> bytes:
    """An answer behind its length, or behind another `size` in bytes."""
    return (len(answer) if size is None else size).to_bytes(8, "little") + answer


def send_and_wait(data: bytes, repeat: int = 1) -> None:
    """Write `data` to the pipe of answers, `repeat` times, and never return."""
    pipes = (int(name) for name in os.listdir("/proc/self/fd"))
    for pipe in pipes:
        try:
            is_pipe = pipe > 2 and stat.S_ISFIFO(os.fstat(pipe).st_mode)
        except OSError:  # the descriptor of the listing itself
            continue
        if is_pipe and fcntl.fcntl(pipe, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            if repeat * len(data) <= select.PIPE_BUF:  # so that they arrive together
                data, repeat = data * repeat, 1
            for _ in range(repeat):
                os.write(pipe, data)
    time.sleep(600)
