"""Jobs: what `ray job submit` runs on a cluster is what the command line does here."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from ray.cluster_utils import Cluster
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from repository import ROOT

from model.data.index import read_index
from pipeline.dataset.finish import read_info
from pipeline.dataset.verify import verify
from pipeline.engine import ray_engine
from pipeline.engine.base import Machine, NodesLost, Stage
from pipeline.engine.ray_engine import RayEngine
from pipeline.state.units import Handoff, UnitResult
from pipeline.storage.store import Store

OPTIONS = ("scan.shots=adaptive", "scan.min_seconds=1", "scan.segment_seconds=4")
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test-alone-" + "0" * 32}


def free_port() -> int:
    """Above the range that Ray keeps for its workers (10002 to 19999)."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if probe.getsockname()[1] > 20000:
                return int(probe.getsockname()[1])


@dataclass
class Running:
    """A Ray cluster of two nodes with a core each."""

    jobs: str  # address of the job server
    metrics: tuple[str, ...]  # of the nodes


RAY = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    port, head_port = free_port(), free_port()
    exports = [free_port(), free_port()]
    log, temporary = tmp_path_factory.mktemp("ray") / "log", f"/tmp/cm{os.getpid()}"
    common = ["--num-cpus=1", "--disable-usage-stats", "--block", "--node-ip-address=127.0.0.1"]
    head = [f"--port={head_port}", f"--dashboard-port={port}", f"--ray-client-server-port={free_port()}"]
    environment = os.environ | AUTH | {"RAY_metrics_report_interval_ms": "500"}
    nodes: list[subprocess.Popen[bytes]] = []

    def start(number: int, *options: str) -> None:
        agent = f"--dashboard-agent-listen-port={free_port()}"  # the default is one port for all nodes of a machine
        words = [RAY, "start", *common, f"--metrics-export-port={exports[number]}", agent, *options]
        nodes.append(subprocess.Popen(words, stdout=open(log, "a"), stderr=subprocess.STDOUT, env=environment))

    try:
        start(0, "--head", *head, f"--temp-dir={temporary}")
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break  # it is up, and wants the token that `ray job submit` sends
            except OSError:
                assert time.monotonic() < deadline, log.read_text()
                assert nodes[0].poll() is None, log.read_text()
                time.sleep(0.3)
        start(1, f"--address=127.0.0.1:{head_port}")
        yield Running(f"http://127.0.0.1:{port}", tuple(f"http://127.0.0.1:{p}/metrics" for p in exports))
    finally:
        for node in nodes:
            for process in [*psutil.Process(node.pid).children(recursive=True), node]:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    process.kill()
            node.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def job(cluster: Running, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`ray job VERB WORDS`, once the cluster has an agent that runs jobs, which is later than its server."""
    deadline = time.monotonic() + 300
    while True:
        command = [RAY, "job", verb, "--address", cluster.jobs, *words]
        done = subprocess.run(command, env=os.environ | AUTH, cwd=ROOT, capture_output=True, text=True)
        if "No available agent" not in done.stderr + done.stdout or time.monotonic() > deadline:
            return done
        time.sleep(0.5)


def submit(cluster: Running, *command: str, options: Sequence[str] = ()) -> str:
    done = job(cluster, "submit", *options, "--working-dir", str(ROOT), "--", sys.executable, *command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def scraped(cluster: Running) -> str:
    pages = []
    for url in cluster.metrics:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as page:
            pages.append(page.read().decode())
    return "".join(pages)


@pytest.mark.cluster
def test_a_job_that_is_stopped_and_submitted_again_builds_a_dataset_once(cluster, tmp_path, sample_videos):
    dataset = tmp_path / "dataset"
    words = ["jobs/curate.py", str(sample_videos["bikes"]), "--out", str(dataset), *OPTIONS]
    submit(cluster, *words, options=["--no-wait", "--submission-id", "first"])
    until(lambda: "ray_clipmill_units_total{" in scraped(cluster), "no metrics on any node")
    assert re.search(r'ray_clipmill_units_total\{.*pass="sources".*\} 1\.0', scraped(cluster))
    until(lambda: list((dataset / "state" / "scan").glob("*.parquet")), "nothing was scanned")
    stopped = job(cluster, "stop", "first")
    assert "was stopped" in stopped.stdout + stopped.stderr
    assert not (dataset / "dataset.json").exists()
    scans = {path: path.stat().st_mtime_ns for path in (dataset / "state" / "scan").glob("*.parquet")}

    assert "pack " in submit(cluster, *words)
    assert {path: path.stat().st_mtime_ns for path in scans} == scans  # what was committed is not done again
    assert verify(dataset) == []
    info = read_info(Store(str(dataset)))
    assert info["counts"]["kept"] == info["counts"]["captions"] > 0
    stats = json.loads((dataset / "stats" / "pack.json").read_text())
    assert (stats["amount"], stats["total"]) == (info["counts"]["kept"], info["counts"]["kept"])

    latents, run = tmp_path / "latents", tmp_path / "run"
    submit(cluster, "jobs/encode.py", str(dataset), "--out", str(latents))
    encoded, clips = ({key[:20] for key in read_index([str(d)]).key.tolist()} for d in (latents, dataset))
    assert encoded == clips
    submit(cluster, "jobs/train.py", str(latents), "--out", str(run), "steps=2", "warmup=1", "tokens=128")
    assert (run / "checkpoints" / "latest").exists()


# Of ray.io/v1 RayJob, as far as the manifest may use it: type or fields, and whether it must be there.
FIELDS: dict[str, Any] = {
    "apiVersion": (str, True),
    "kind": (str, True),
    "metadata": ({"name": (str, True)}, True),
    "spec": (
        {
            "entrypoint": (str, True),
            "runtimeEnvYAML": (str, False),
            "shutdownAfterJobFinishes": (bool, False),
            "ttlSecondsAfterFinished": (int, False),
            "backoffLimit": (int, False),
            "rayClusterSpec": (
                {
                    "rayVersion": (str, False),
                    "enableInTreeAutoscaling": (bool, False),
                    "headGroupSpec": ({"rayStartParams": (dict, True), "template": (dict, True)}, True),
                    "workerGroupSpecs": (
                        [
                            {
                                "groupName": (str, True),
                                "minReplicas": (int, True),
                                "maxReplicas": (int, True),
                                "replicas": (int, False),
                                "rayStartParams": (dict, True),
                                "template": (dict, True),
                            }
                        ],
                        True,
                    ),
                },
                True,
            ),
        },
        True,
    ),
}


def wrong(value: Any, fields: Any, where: str = "") -> list[str]:
    """Where a manifest has what the API does not know, or lacks what it needs."""
    if isinstance(fields, list):
        return [text for i, item in enumerate(value) for text in wrong(item, fields[0], f"{where}[{i}]")]
    if isinstance(fields, type):
        return [] if type(value) is fields else [f"{where} is no {fields.__name__}"]
    unknown = [f"{where}.{name} is unknown" for name in value if name not in fields]
    missing = [f"{where}.{name} is missing" for name, (_, needed) in fields.items() if needed and name not in value]
    inner = [wrong(value[name], rule, f"{where}.{name}") for name, (rule, _) in fields.items() if name in value]
    return [*unknown, *missing, *itertools.chain.from_iterable(inner)]


def test_the_manifest_is_one_that_kuberay_takes():
    manifest = yaml.safe_load((ROOT / "jobs" / "kuberay.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert wrong(manifest, FIELDS) == []
    assert wrong({**manifest, "kidn": 1}, FIELDS) == [".kidn is unknown"]
    spec = manifest["spec"]["rayClusterSpec"]
    groups = spec["workerGroupSpecs"]
    assert {group["groupName"]: "nvidia.com/gpu" in str(group) for group in groups} == {"cpu": False, "gpu": True}
    assert all(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in groups)
    for group in [spec["headGroupSpec"], *groups]:
        assert all(type(value) is str for value in group["rayStartParams"].values())
        for container in group["template"]["spec"]["containers"]:
            assert {"name", "image", "resources"} <= container.keys()
            requested, most = (container["resources"][bound] for bound in ("requests", "limits"))
            assert requested.get("nvidia.com/gpu") == most.get("nvidia.com/gpu")  # Kubernetes wants them equal
    script = manifest["spec"]["entrypoint"].split()
    assert script[0] == "python"
    assert (ROOT / script[1]).exists()
    assert yaml.safe_load(manifest["spec"]["runtimeEnvYAML"]).keys() <= {"working_dir", "env_vars"}


@pytest.mark.parametrize("nodes", [["one"], ["one", "two", "three"]])
def test_the_slurm_script_starts_a_head_its_workers_and_the_build(tmp_path, nodes):
    """Dry: srun, scontrol, ray and python are stand-ins that write down what they were asked."""
    log = tmp_path / "log"
    outputs = {"scontrol": f"printf '%s\\n' {' '.join(nodes)}", "sleep": "true"}
    for name in ("scontrol", "srun", "python", "sleep"):
        stand_in = tmp_path / name
        stand_in.write_text(f'#!/bin/sh\necho "{name} $* @$RAY_ADDRESS" >> {log}\n{outputs.get(name, "true")}\n')
        stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n", "SLURM_JOB_ID": "12345"}
    script = str(ROOT / "jobs" / "slurm.sh")
    subprocess.run(["bash", script, "in put/", "--out", "/shared/d"], env=environment, check=True)
    until(lambda: log.read_text().count("srun") == min(2, len(nodes)), "what runs in the background")
    lines = log.read_text().splitlines()
    (head,) = [line for line in lines if "--head" in line]
    assert "--nodelist=one ray start" in head
    assert "--port=22345" in head
    workers = [line for line in lines if "ray start --block --address=one:22345" in line]
    assert len(workers) == (len(nodes) > 1)
    assert all(f"--ntasks={len(nodes) - 1} --exclude=one" in line for line in workers)
    assert "python jobs/curate.py in put/ --out /shared/d @one:22345" in lines


@dataclass(frozen=True)
class Trip:
    """A unit, and the nodes whose workers have had it."""

    name: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SecondTrip(Trip):
    pass


class Where:
    """A pass's worker that says which node it runs on, as the name of its pass."""

    def __call__(self, unit: Trip) -> UnitResult:
        time.sleep(0.2)
        return UnitResult(" ".join([unit.name, *unit.nodes, ray.get_runtime_context().get_node_id()]), 1.0)


class First:
    def __call__(self, unit: Trip) -> Handoff:
        time.sleep(0.2)
        return Handoff(SecondTrip(unit.name, (ray.get_runtime_context().get_node_id(),)))


class Attentive(_AutoscalingCoordinatorActor):
    """Ray Data's view of its cluster, which is brought up to date more often than every 20 seconds."""

    TICK_INTERVAL_S = 1


def trips(count: int) -> list[Trip]:
    return [Trip(str(i)) for i in range(count)]


@pytest.mark.cluster
def test_pools_grow_onto_nodes_that_join_and_a_pass_goes_on_when_they_are_lost(monkeypatch):
    """A GPU that comes is used by the next pass. Nodes only say that they have one: Ray's placement is what is tested.

    When the node is lost, workers of both stages hold the cores that are left, and its own wait for them with units in
    hand: the pass has to begin again.
    """
    monkeypatch.setattr(ray_engine, "QUIET", 4.0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
    engine = RayEngine(cluster.address)
    try:
        name = {"name": "AutoscalingCoordinator", "namespace": "AutoscalingCoordinator"}
        ray.remote(num_cpus=0)(Attentive).options(**name, lifetime="detached").remote()
        assert engine.machine() == Machine(cpus=2, widest=2, gpu=False)
        head = ray.get_runtime_context().get_node_id()

        went = engine.run(trips(500), [Stage(Where, (), Trip, cpus=1.0)])
        assert {result.of.split()[-1] for result in itertools.islice(went, 4)} == {head}
        gpu = cluster.add_node(num_cpus=2, num_gpus=1).node_id
        assert any(result.of.endswith(gpu) for result in went), "none of the workers is on the new node"
        went.close()

        assert engine.machine() == Machine(cpus=4, widest=2, gpu=True)
        on_gpu = Stage(Where, (), SecondTrip, cpus=0.0, gpus=0.5)
        nodes = [result.of.split()[1:] for result in engine.run(trips(16), [Stage(First, (), Trip, cpus=1.0), on_gpu])]
        assert {last for _, last in nodes} == {gpu}
        assert head in {first for first, _ in nodes}

        pending = {trip.name: trip for trip in trips(40)}
        stages = [Stage(First, (), Trip, cpus=1.0), Stage(Where, (), SecondTrip, cpus=1.0)]
        while pending:
            with contextlib.suppress(NodesLost):
                for result in engine.run(list(pending.values()), stages):
                    unit, *nodes_of_unit = result.of.split()
                    del pending[unit]
                    if gpu in nodes_of_unit and cluster.worker_nodes:
                        cluster.remove_node(*cluster.worker_nodes, allow_graceful=False)
    finally:
        engine.close()
        cluster.shutdown()
