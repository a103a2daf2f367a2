"""Two processes train what one trains, under torchrun and under Ray Train, and one goes on from two."""

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
MAIN = "import sys; from model.train import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def dataset(sample_videos, tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("dataset"), [clips_of(sample_videos["bigbuckbunny"], 3)])


def run(dataset: Path, out: Path, processes: int, *options: str) -> None:
    arguments = [str(dataset), "--out", str(out), *OPTIONS, "micro_batches=2", *options]
    if processes == 1:
        assert not main(arguments)
        return
    script = out.parent / "main.py"
    script.write_text(MAIN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*launch, str(script), *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def same(a: Path, b: Path, tolerance: float = 2e-5) -> bool:
    first, second = (checkpoint.read_weights(run, "model") for run in (a, b))
    return all(torch.allclose(first[k], second[k], atol=tolerance) for k in first)


def test_two_processes_train_what_one_does_and_one_goes_on_from_two(dataset, tmp_path):
    run(dataset, tmp_path / "one", 1, "steps=4")
    run(dataset, tmp_path / "two", 2, "steps=2", "parallel=fsdp")
    run(dataset, tmp_path / "two", 1, "steps=4")
    assert same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("options", [("lora_rank=4", "base_precision=fp32"), ("recompute=1",)], ids=["lora", "full"])
def test_two_processes_fine_tune_a_base_as_one_does(options, dataset, tmp_path):
    base = f"base=diffusers:{save_pipeline('wan', tmp_path / 'wan')}"
    options = (base, "lr=0.001", "warmup=0", "ema=0", "steps=2", *options)
    run(dataset, tmp_path / "one", 1, *options)
    run(dataset, tmp_path / "two", 2, *options, "parallel=fsdp")
    # A fifth of a step: Adam magnifies rounding where a gradient is nearly zero.
    assert same(tmp_path / "one", tmp_path / "two", tolerance=2e-4)
    exported = "pytorch_lora_weights.safetensors" if "lora_rank=4" in options else "transformer"
    assert (tmp_path / "two" / exported).exists()


def test_ray_train_trains_the_same(dataset, tmp_path, ray_cluster):
    run(dataset, tmp_path / "one", 1, "steps=2")
    arguments = ["--out", str(tmp_path / "ray_run"), "--workers", "2", *OPTIONS, "steps=2", "parallel=ddp"]
    done = subprocess.run(
        [sys.executable, "jobs/train.py", str(dataset), *arguments, "--address", ray_cluster],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert same(tmp_path / "one", tmp_path / "ray_run")
