"""One build at a time in a dataset on an object store: a lease with heartbeats, for stores without locks.

Needs list-after-write consistency; clocks need not agree. Every build writes a claim and renews it regularly. It holds
the dataset once it sees no other claim (Lamport's bakery, with names for numbers: of claims made at once the first by
name holds). Claims that stay the same for `silent` seconds are of a dead build and are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.storage.store import Store

FOLDER = "state/lock"
BEAT = 5.0  # seconds between two heartbeats
SILENT = 60.0  # seconds without a heartbeat after which a build counts as dead


def now() -> float:
    """Seconds by a clock that also runs while the machine is suspended, as CLOCK_MONOTONIC does not on Linux."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


_claims: list[_Claim] = []  # of this process


class LeaseError(RuntimeError):
    """Another build holds the dataset; the message names it."""


@contextlib.contextmanager
def lease(store: Store, beat: float = BEAT, silent: float = SILENT) -> Iterator[Callable[[], None]]:
    """Hold `store` for as long as the context lasts; yield a function that raises LeaseError when it was lost, as
    after a sleep longer than `silent`. Raises LeaseError where another build is alive, and waits to see whether it is.
    """
    claim = _Claim(store, silent)
    stopped = threading.Event()

    def live() -> None:
        while not stopped.wait(beat):
            claim.renew()

    claim.write()
    _claims.append(claim)
    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        _wait(claim, beat, silent)
        yield claim.check
    finally:
        stopped.set()
        thread.join()
        claim.withdraw()
        _claims.remove(claim)


def give_back() -> None:
    """Withdraw this process's claims, so that other builds need not wait for them to expire."""
    for claim in _claims:
        claim.withdraw()


class _Claim:
    def __init__(self, store: Store, silent: float) -> None:
        self.store, self.name = store, f"{FOLDER}/{secrets.token_hex(8)}.json"
        self._silent, self._beats, self._last, self._lost = silent, 0, now(), False
        self._holds, self._writing = False, threading.Lock()

    def write(self, holds: bool = False) -> None:
        with self._writing:
            begun = now()
            self._holds, self._beats = self._holds or holds, self._beats + 1
            who = f"process {os.getpid()} on {socket.gethostname()}"
            content = {"who": who, "holds": self._holds, "beats": self._beats}
            self.store.write(self.name, json.dumps(content).encode())
            self._last = begun

    def renew(self) -> None:
        """Write the claim again, unless it has expired."""
        if now() - self._last > self._silent:
            self._lost = True
        if self._lost:
            return
        with contextlib.suppress(OSError):  # the next renewal may succeed
            self.write()
            self._lost = self._holds and any(other["holds"] for other in self.others().values())

    def withdraw(self) -> None:
        with contextlib.suppress(OSError):  # the claim will expire
            self.store.delete(self.name)

    def others(self) -> dict[str, dict[str, Any]]:
        """Return the claims of other builds, by name."""
        claims = {}
        for name in self.store.list(FOLDER):
            with contextlib.suppress(FileNotFoundError, ValueError):
                if name != self.name:
                    claims[name] = json.loads(self.store.read(name))
        return claims

    def check(self) -> None:
        if self._lost or now() - self._last > self._silent:
            raise LeaseError(f"this build was out of touch with {self.store.uri} for too long: another may run now")


def _wait(claim: _Claim, beat: float, silent: float) -> None:
    """Return once `claim` holds the store."""
    first_counts: dict[str, tuple[int, float]] = {}  # name -> its first counter value, and when it was read
    notified = False
    while others := claim.others():
        for name, other in others.items():
            count, since = first_counts.setdefault(name, (other["beats"], now()))
            if other["beats"] != count and (other["holds"] or name < claim.name):
                where = claim.store.path(name)
                raise LeaseError(f"another build is writing to {claim.store.uri} ({other['who']}, alive in {where})")
            if other["beats"] == count and now() - since > silent:
                claim.store.delete(name)
            elif not notified and now() - since > 2 * beat:
                notified = True
                print(f"{other['who']} was building here: wait {silent:.0f} s to see if it still is", file=sys.stderr)
        time.sleep(beat / 5)
    claim.write(holds=True)
