"""The weights of `shots: cascade`, made by tests/benchmarks/shots/train_shots.py."""

from __future__ import annotations

import importlib.resources
from functools import cache

import numpy as np


@cache
def weights() -> dict[str, np.ndarray]:
    """Arrays by name: those of the network in cascade.py, and with `limits_` before it those of refine.py's."""
    with importlib.resources.files("pipeline.shots").joinpath("shots.npz").open("rb") as file, np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}
