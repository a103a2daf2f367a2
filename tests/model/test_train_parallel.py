"""Two processes train what one trains, under torchrun and under Ray Train, and one goes on from two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from repository import ROOT
from shards import clips_of, write_shards
from tiny_pipelines import save_pipeline

from model.train import main
from model.training import checkpoint

OPTIONS = (
    "resolutions=48",
    "frame_counts=5",
    "fps=8",
    "latent_channels=8",
    "device=cpu",
    "tokens=24",
    "decay=constant",
)
LORA, FULL = ("lora_rank=4", "base_precision=fp32"), ("recompute=1",)
SCRIPT = """
import json, sys
from model.train import main
sys.exit(any(main(words) for words in json.loads(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def dataset(sample_videos, tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("dataset"), [clips_of(sample_videos["bigbuckbunny"], 3)])


@pytest.fixture(scope="module")
def fine_tuning(tmp_path_factory) -> tuple[str, ...]:
    base = save_pipeline("wan", tmp_path_factory.mktemp("base") / "wan")
    return (f"base=diffusers:{base}", "lr=0.001", "warmup=0", "ema=0", "steps=2")


@pytest.fixture(scope="module")
def two(dataset, fine_tuning, tmp_path_factory) -> Path:
    """A folder of runs by two processes, one after the other, because starting the processes costs most."""
    folder = tmp_path_factory.mktemp("two")
    runs = {"scratch": ("steps=2",), "lora": (*fine_tuning, *LORA), "full": (*fine_tuning, *FULL)}
    arguments = [words(dataset, folder / name, *options, "parallel=fsdp") for name, options in runs.items()]
    (folder / "main.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run_python(*launch, str(folder / "main.py"), json.dumps(arguments))
    return folder


def words(dataset: Path, out: Path, *options: str) -> list[str]:
    return [str(dataset), "--out", str(out), *OPTIONS, "micro_batches=2", *options]


def run_python(*arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def same(a: Path, b: Path, tolerance: float = 2e-5) -> bool:
    first, second = (checkpoint.read_weights(run, "model") for run in (a, b))
    return all(torch.allclose(first[k], second[k], atol=tolerance) for k in first)


def test_two_processes_train_what_one_does_and_one_goes_on_from_two(dataset, two, tmp_path):
    assert not main(words(dataset, tmp_path / "one", "steps=4"))
    assert not main(words(dataset, two / "scratch", "steps=4"))
    assert same(tmp_path / "one", two / "scratch")


@pytest.mark.parametrize(
    ("name", "options", "exported"),
    [("lora", LORA, "pytorch_lora_weights.safetensors"), ("full", FULL, "transformer")],
    ids=["lora", "full"],
)
def test_two_processes_fine_tune_a_base_as_one_does(name, options, exported, dataset, fine_tuning, two, tmp_path):
    assert not main(words(dataset, tmp_path / "one", *fine_tuning, *options))
    # A fifth of a step: Adam magnifies rounding where a gradient is nearly zero.
    assert same(tmp_path / "one", two / name, tolerance=2e-4)
    assert (two / name / exported).exists()


def test_ray_train_trains_the_same(dataset, tmp_path, ray_cluster):
    assert not main(words(dataset, tmp_path / "one", "steps=2"))
    arguments = ["--out", str(tmp_path / "ray_run"), "--workers", "2", *OPTIONS, "steps=2", "parallel=ddp"]
    run_python("jobs/train.py", str(dataset), *arguments, "--address", ray_cluster)
    assert same(tmp_path / "one", tmp_path / "ray_run")
