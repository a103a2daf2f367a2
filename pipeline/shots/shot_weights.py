"""The two networks of `shots: cascade`: their evaluation, and weights made by tests/benchmarks/shots/train_shots.py."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from functools import cache

import numpy as np


@cache
def weights() -> dict[str, np.ndarray]:
    """Arrays by name: those of the network in cascade.py, and with `limits_` before it those of refine.py's."""
    with importlib.resources.files("pipeline.shots").joinpath("shots.npz").open("rb") as file, np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


def logits(prefix: str, inputs: np.ndarray, dilations: Sequence[int]) -> np.ndarray:
    """Evaluate a residual convolutional network along time: (n, channels) float32 -> (n, outputs). Its weights are
    those whose names start with `prefix`; there is one block for each dilation, the distance between its three taps."""
    w = weights()
    x = np.maximum(inputs @ w[f"{prefix}first_weight"][:, :, 0].T + w[f"{prefix}first_bias"], 0)
    for index, dilation in enumerate(dilations):
        kernel, bias = w[f"{prefix}blocks_{index}_weight"], w[f"{prefix}blocks_{index}_bias"]
        padded = np.pad(x, ((dilation, dilation), (0, 0)))
        taps = [padded[k * dilation : k * dilation + len(x)] @ kernel[:, :, k].T for k in range(3)]
        x = x + np.maximum(taps[0] + taps[1] + taps[2] + bias, 0)
    return np.asarray(x @ w[f"{prefix}last_weight"][:, :, 0].T + w[f"{prefix}last_bias"])
