"""Ctrl-C and SIGTERM while a build runs."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from pipeline.storage.lease import give_back


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """End the process at once on Ctrl-C and SIGTERM.

    An exception could be raised at any line, often inside Ray, which may swallow it or leave a lock held. Nothing has
    to be cleaned up: committed work is complete at any moment, and Ray's processes end with this one.
    """
    leaving = (signal.SIGINT, signal.SIGTERM)
    numbers, write = os.pipe()
    stderr = os.dup(2)  # descriptor 2 is hidden while Ray starts

    def leave() -> None:
        while (number := os.read(numbers, 1)[0]) not in leaving:
            if number == 0:
                return
        os.write(stderr, b"\nstopped; finished work is kept: run the same command again to continue\n")
        give_back()
        os._exit(130)

    os.set_blocking(write, False)
    descriptor_before = signal.set_wakeup_fd(write)
    handlers_before = {number: signal.signal(number, lambda *_: None) for number in leaving}
    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor_before)
        for number, handler in handlers_before.items():
            signal.signal(number, handler)
        os.write(write, b"\0")
        thread.join()
        for descriptor in (numbers, write, stderr):
            os.close(descriptor)
