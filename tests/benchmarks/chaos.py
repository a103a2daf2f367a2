"""Builds under fire: random kills, worker counts and source orders; every dataset has to be the undisturbed one.

    python tests/benchmarks/chaos.py --seeds 30 VIDEOS...

Each seed draws the number of cores (1, 2 or 4), the order of the sources, one machine or a cluster of three nodes, and
up to three kills: of the driver, of a Ray worker, of a decoding child, or of a whole node. What is killed is started
again until the build ends by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parents[1]))
from datasets_compared import snapshot

OPTIONS = ("scan.min_seconds=1", "scan.segment_seconds=8")
ATTEMPTS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", help="files that are built together")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    started = time.monotonic()
    _finished(_start(args.videos, folder / "calm", []))
    usual = time.monotonic() - started
    calm = snapshot(folder / "calm")
    print(f"undisturbed: {usual:.0f} s\n\n| seed | cores | nodes | killed | builds | same |\n|---|---|---|---|---|---|")
    different = 0
    for seed in range(args.first, args.first + args.seeds):
        row, same = _disturbed(seed, args.videos, folder / str(seed), usual, calm)
        print(f"| {seed} | {row} | {'yes' if same else 'NO'} |", flush=True)
        different += not same
        if same:
            shutil.rmtree(folder / str(seed))
    print(f"\n{args.seeds - different} of {args.seeds} the same")
    return 1 if different else 0


def _disturbed(seed: int, videos: list[str], out: Path, usual: float, calm: dict[str, str]) -> tuple[str, bool]:
    rng = random.Random(seed)
    cores = rng.choice([1, 2, 4])
    clustered = rng.random() < 0.4
    order = rng.sample(videos, len(videos))
    kinds = ["driver", "worker", "child", *(["node"] if clustered else [])]
    kills = sorted((rng.uniform(0.05, 1.0) * usual, rng.choice(kinds)) for _ in range(rng.randint(1, 3)))
    said = f"{cores} | {3 if clustered else 1} | {', '.join(f'{kind} at {at:.0f} s' for at, kind in kills)}"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores}) if clustered else None
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)] if cluster else []
        where = ["--address", cluster.address] if cluster else ["--cores", str(cores)]
        for builds in range(1, ATTEMPTS + 1):
            process = _start(order, out, where)
            begun = time.monotonic()
            while process.poll() is None:
                if kills and time.monotonic() - begun > kills[0][0]:
                    _kill(kills.pop(0)[1], process, cluster, nodes, rng)
                time.sleep(0.05)
            if process.returncode == 0:
                return f"{said} | {builds}", snapshot(out) == calm
        return f"{said} | gave up", False
    finally:
        if cluster:
            cluster.shutdown()


def _start(videos: list[str], out: Path, where: list[str]) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "pipeline.cli", "build", *videos, "--out", str(out), *where, *OPTIONS]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _finished(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise SystemExit(f"the undisturbed build ended with status {process.returncode}")


def _kill(
    kind: str, driver: subprocess.Popen[bytes], cluster: Cluster | None, nodes: list[object], rng: random.Random
) -> None:
    """SIGKILL, or the loss of a node; nothing where there is no such process at the moment."""
    if kind == "driver":
        driver.kill()
    elif kind == "node":
        if cluster and nodes:
            cluster.remove_node(nodes.pop(rng.randrange(len(nodes))), allow_graceful=False)
    else:
        wanted = "ray::MapWorker" if kind == "worker" else "pipeline.sandbox"
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(wanted in word for word in process.cmdline()):
                    found.append(process)
        if found:
            with contextlib.suppress(psutil.Error):
                rng.choice(sorted(found, key=lambda p: p.pid)).kill()


if __name__ == "__main__":
    sys.exit(main())
