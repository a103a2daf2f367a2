"""The write lock of a dataset: one build at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from typing import IO

from pipeline.dataset.finish import DatasetError
from pipeline.storage.lease import LeaseError, lease
from pipeline.storage.store import Store


@contextlib.contextmanager
def lock(store: Store) -> Iterator[Callable[[], None]]:
    """Hold a dataset's write lock: a file lock, or a lease on an object store and where the file system has no locks.
    Yields a function that raises DatasetError when the lease was lost. Raises DatasetError where another build holds
    it."""
    if store.local is None:
        with _leased(store) as check:
            yield check
        return
    store.local.mkdir(parents=True, exist_ok=True)
    with open(store.local / ".lock", "a+") as file:
        if _locked(file, store):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield lambda: None
        else:
            with _leased(store) as check:
                yield check


def _locked(file: IO[str], store: Store) -> bool:
    """Lock `file`; return False where the file system has no locks (NFS without its lock service, Lustre mounted
    without flock). Raises DatasetError where another build holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise DatasetError(f"another build is writing to {store.uri} ({file.read().strip()})") from error
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _leased(store: Store) -> Iterator[Callable[[], None]]:
    try:
        with lease(store) as check:
            yield check
    except LeaseError as error:
        raise DatasetError(str(error)) from error
