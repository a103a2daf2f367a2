"""What a build's passes do on a cluster whose autoscaler can bring nodes: one of two cores, and one with a GPU.

    python tests/benchmarks/builds/autoscale.py [--units 150] [--seconds 0.5]

Starts a Ray head of two cores with Ray's real autoscaler, which starts its nodes on this machine. The nodes declare
cores and GPUs that do not exist, and units only sleep. Takes two minutes on any number of cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray._private.services import get_node_ip_address

sys.path.insert(0, str(Path(__file__).parents[3]))
from pipeline.engine.base import Stage
from pipeline.engine.ray_engine import RayEngine
from pipeline.state.units import Handoff, UnitResult

NODES = {
    "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
    "cores": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
}
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


@dataclass(frozen=True)
class Scanned:
    """Unit of the first stage, with the node that processed it."""

    node: str = ""


@dataclass(frozen=True)
class Embedded(Scanned):
    """Unit of the second stage, with the node that processed it."""


class Asleep:
    """A worker that sleeps and reports its node. With `hand_on` it hands its unit to the second stage."""

    def __init__(self, seconds: float, hand_on: bool) -> None:
        self._seconds, self._hand_on = seconds, hand_on
        own = ray.get_runtime_context().get_node_id()
        has = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == own)
        self._node = "gpu" if "GPU" in has else "head" if "node:__internal_head__" in has else "cores"

    def __call__(self, unit: Scanned) -> Handoff | UnitResult:
        time.sleep(self._seconds)
        if self._hand_on:
            return Handoff(Embedded(self._node))
        return UnitResult(f"{unit.node} {self._node}", 1.0)


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """The address of a head with an autoscaler."""
    ports = []
    for _ in range(4):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    address = f"{get_node_ip_address()}:{ports[0]}"
    with tempfile.TemporaryDirectory(prefix="cm", ignore_cleanup_errors=True) as folder:
        provider = {"type": "fake_multinode", "gcs_address": address, "disable_node_updaters": True}
        provider |= {"disable_launch_config_check": True, "foreground_node_launch": True}
        config = {"cluster_name": "local", "max_workers": 2, "idle_timeout_minutes": 5, "upscaling_speed": 1.0}
        config |= {"provider": provider, "available_node_types": NODES, "head_node_type": "ray.head.default"}
        config |= {"auth": {"ssh_user": "nobody"}, "docker": {}, "file_mounts": {}, "cluster_synced_files": []}
        config |= {"file_mounts_sync_continuously": False, **{f"{name}_commands": [] for name in COMMANDS}}
        Path(folder, "config.json").write_text(json.dumps(config))
        words = [shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray", "start", "--head", "--block"]
        words += ["--num-cpus=2", "--num-gpus=0", "--include-dashboard=false", "--disable-usage-stats"]
        words += [f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}", f"--metrics-export-port={ports[2]}"]
        words += [f"--dashboard-agent-listen-port={ports[3]}", f"--temp-dir={folder}"]
        words += [f"--autoscaling-config={folder}/config.json"]
        environment = os.environ | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        environment |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": sys.path[0]}
        with open(f"{folder}/log", "w") as log:
            head = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
        try:
            while "--block" not in Path(folder, "log").read_text():
                time.sleep(0.5)
            yield address
        finally:
            started = [p for p in psutil.process_iter(["cmdline"]) if folder in " ".join(p.info["cmdline"] or ())]
            for process in {*psutil.Process(head.pid).children(recursive=True), *started}:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            head.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=0.5, help="that a worker sleeps over a unit")
    args = parser.parse_args()

    def passed(engine: RayEngine, name: str, graph: dict[str, Stage]) -> None:
        begun = time.monotonic()
        results = engine.run([Scanned()] * args.units, list(graph.values()))
        nodes_of_units = [result.of.split() for result in results]
        seconds = time.monotonic() - begun
        for worker, nodes in zip(graph, zip(*nodes_of_units, strict=True), strict=True):
            count = Counter(nodes)
            where = " | ".join(str(count[node]) for node in ("head", "cores", "gpu"))
            print(f"| {name} | {worker} | {seconds:.0f} | {where} |")
        sys.stdout.flush()

    def stages(gpu: bool) -> dict[str, Stage]:
        """As the passes scan and embed have them."""
        scan = Stage(Asleep, (args.seconds, True), Scanned, cpus=1.0 if gpu else 0.5)
        embed = {"cpus": 0.0, "gpus": 1.0} if gpu else {"cpus": 0.7}
        return {"scan": scan, "embed": Stage(Asleep, (args.seconds, False), Embedded, **embed)}

    with cluster() as address:
        print(f"| {args.units} units | stage | seconds | on the head | on the other cores | on the GPU node |")
        print(6 * "|---" + "|")
        engine = RayEngine(address)
        try:
            passed(engine, "no GPU yet", stages(gpu=False))
            passed(engine, "--gpus", stages(gpu=True))
            caption = Stage(Asleep, (args.seconds, False), Scanned, cpus=1.0, gpus=1.0)
            passed(engine, "the pass after", {"caption": caption})
        finally:
            engine.close()


if __name__ == "__main__":
    main()
