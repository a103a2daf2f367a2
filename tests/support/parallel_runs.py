"""Runs of the trainer by several processes, and their comparison with a run by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from repository import ROOT

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


def words(dataset: Path, out: Path, *options: str) -> list[str]:
    """Return the arguments of a run by one process."""
    return [str(dataset), "--out", str(out), *OPTIONS, "micro_batches=2", *options]


def run_python(*arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def same(a: Path, b: Path, tolerance: float = 2e-5) -> bool:
    """Return whether the weights of two runs agree."""
    first, second = (checkpoint.read_weights(run, "model") for run in (a, b))
    return all(torch.allclose(first[k], second[k], atol=tolerance) for k in first)
