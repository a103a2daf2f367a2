"""Run passes: send pending units through an engine, print progress, write sums to stats/, and stop on faults."""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.engine.base import Engine, NodesLost
from pipeline.engine.progress import Progress
from pipeline.media.faults import is_machine_fault, one_line, place_of, trace_of
from pipeline.passes.base import Pass
from pipeline.passes.snapshot import Snapshot
from pipeline.passes.spent import Spent
from pipeline.state.error_log import FOLDER, why_stop
from pipeline.state.units import BuildStopped, UnitResult
from pipeline.storage.store import Store

SAVE_SECONDS = 5.0  # seconds between two writes of stats/PASS.json
SHARED_SECONDS = 10.0  # delay with which a network file system may show another node's writes


def run_passes(passes: Sequence[Pass], snapshot: Snapshot, engine: Engine, totals: dict[str, Any]) -> bool:
    """Run the passes of a chain, each of which hands its units to the next; return whether any unit was pending.

    `totals` are the entries of `passes` in dataset.json for this build and are updated. Raises BuildStopped if a worker
    cannot continue or meets an error in the program, and the other exceptions of `Engine.run`.
    """
    store, recipe = snapshot.store, snapshot.recipe
    workers = engine.machine().cpus
    pending = [[pickle.dumps(unit) for unit in each.pending(snapshot, workers)] for each in passes]
    first = next((i for i, units in enumerate(pending) if units), None)
    if first is None:
        return False
    passes, pending = passes[first:], pending[first:]
    machine = engine.machine()
    stages = [stage for each in passes for stage in each.stages(snapshot, machine)]
    units = (pickle.loads(unit) for unit in itertools.chain(*pending))
    amount = sum(pickle.loads(unit).amount for unit in pending[0])
    sums = {each.name: Spent(each.fingerprint(recipe), totals.get(each.name)) for each in passes}
    progress = Progress({each.name: each.measure for each in passes}, amount)
    check_shared = _shared_check(store)

    def save() -> None:
        for name, spent in sums.items():
            if spent.units:
                spent.seconds = progress.seconds
                totals[name] = spent.to_dict()
                whole = {"total": amount, "measure": passes[0].measure} if name == passes[0].name else {}
                store.write(f"stats/{name}.json", json.dumps(totals[name] | whole, indent=2, sort_keys=True).encode())

    saved, hits = 0.0, defaultdict[str, set[str]](set)  # sources that each unforeseen exception hit
    try:
        for result in engine.run(units, stages):
            check_shared(result)
            sums[result.of].add(result)
            progress.add(result.of, result.amount, result.counts)
            engine.publish(result, amount - progress.amount if result.of == passes[0].name else 0.0)
            for place, sources in result.unforeseen.items():
                hits[place].update(sources)
            counts = {place: len(sources) for place, sources in hits.items()}
            if problem := result.problem or why_stop(counts, len(snapshot.files)):
                raise BuildStopped(problem)
            if progress.seconds - saved > SAVE_SECONDS:
                save()
                saved = progress.seconds
    except BaseException as error:
        progress.close()
        with contextlib.suppress(OSError):  # for example a full disk, which `error` already reports
            save()
            if is_machine_fault(error) and not isinstance(error, OSError):
                raise BuildStopped(one_line(error)) from error
            if isinstance(error, Exception) and not isinstance(error, (BuildStopped, OSError, NodesLost)):
                raise BuildStopped(_bug(passes[0].name, error, store)) from error
        raise
    progress.close()
    save()
    if hits:
        where = store.path(FOLDER)
        count = len(set().union(*hits.values()))
        print(
            f"{passes[0].name}: {count:,} sources met an error in the program; tracebacks are in {where}",
            file=sys.stderr,
        )
    return True


def _bug(name: str, error: Exception, store: Store) -> str:
    """Write the traceback of an error in the program to the dataset, and return a one-line message about it."""
    log = f"{FOLDER}/{name}.txt"
    store.write(log, trace_of(error).encode())
    return f"{name}: {place_of(error)}: {one_line(error)}. The traceback is in {store.path(log)}"


def _shared_check(store: Store) -> Callable[[UnitResult], None]:
    """Return a function that raises BuildStopped for a result whose fragment is not visible on this machine."""
    if store.local is None:
        return lambda result: None
    folder = store.local

    def check(result: UnitResult) -> None:
        path = folder / result.fragment
        until = time.monotonic() + SHARED_SECONDS
        while result.fragment and not path.exists():
            if time.monotonic() > until:
                raise BuildStopped(
                    f"OUT is not shared by all nodes: a worker wrote {path}, which does not exist on the node of the "
                    "build. Use a folder on a file system that all nodes share, or the URL of an object store"
                )
            time.sleep(0.2)

    return check
