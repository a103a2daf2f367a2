"""Jobs: what `ray job submit` runs on a cluster is what the command line does here."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from model.index import read_index
from pipeline.dataset import read_info
from pipeline.storage import Store

ROOT = Path(__file__).parents[1]
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test-alone-" + "0" * 32}


def free_port() -> int:
    """Above the range that Ray keeps for its workers (10002 to 19999)."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if probe.getsockname()[1] > 20000:
                return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray head's job server, with two cores to give."""
    port = free_port()
    folder = tmp_path_factory.mktemp("ray")
    options = [
        f"--port={free_port()}",
        f"--dashboard-port={port}",
        f"--ray-client-server-port={free_port()}",
        "--num-cpus=2",
    ]
    command = [shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray", "start", "--head", "--block"]
    head = subprocess.Popen(
        [
            *command,
            *options,
            "--node-ip-address=127.0.0.1",
            "--disable-usage-stats",
            f"--temp-dir=/tmp/cm{os.getpid()}",
        ],
        stdout=open(folder / "log", "w"),
        stderr=subprocess.STDOUT,
        env=os.environ | AUTH,
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break  # it is up, and wants the token that `ray job submit` sends
            except OSError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                assert head.poll() is None, (folder / "log").read_text()
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        head.wait()
        shutil.rmtree(f"/tmp/cm{os.getpid()}", ignore_errors=True)


def submit(cluster: str, *command: str) -> str:
    ray = str(Path(sys.executable).parent / "ray")
    words = [ray, "job", "submit", "--address", cluster, "--working-dir", str(ROOT), "--", sys.executable, *command]
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(words, env=os.environ | AUTH, cwd=ROOT, capture_output=True, text=True, timeout=280)
        if "No available agent" not in done.stderr + done.stdout or time.monotonic() > deadline:
            break  # the job server is up before the agent that runs the jobs
        time.sleep(0.5)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def test_a_dataset_is_built_by_a_submitted_job_and_built_again_for_nothing(cluster, tmp_path, sample_videos):
    dataset = tmp_path / "dataset"
    words = ["jobs/curate.py", str(sample_videos["bikes"]), "--out", str(dataset), "scan.min_seconds=1"]
    first = submit(cluster, *words)
    assert "scan " in first
    info = read_info(Store(str(dataset)))
    assert info["counts"]["kept"] == info["counts"]["captions"] > 0
    again = submit(cluster, *words)
    assert "x real time" not in again
    assert read_info(Store(str(dataset))) == info

    latents, run = tmp_path / "latents", tmp_path / "run"
    submit(cluster, "jobs/encode.py", str(dataset), "--out", str(latents))
    encoded, clips = ({key[:20] for key in read_index([str(d)]).key.tolist()} for d in (latents, dataset))
    assert encoded == clips
    submit(cluster, "jobs/train.py", str(latents), "--out", str(run), "steps=2", "warmup=1", "tokens=128")
    assert (run / "checkpoints" / "latest").exists()


def test_the_manifest_and_the_script_for_clusters_are_whole():
    job = yaml.safe_load((ROOT / "jobs" / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert {group["groupName"]: "nvidia.com/gpu" in str(group) for group in groups} == {"cpu": False, "gpu": True}
    assert all(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in groups)
    subprocess.run(["bash", "-n", str(ROOT / "jobs" / "slurm.sh")], check=True)
