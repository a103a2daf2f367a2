"""What a filter computes is part of a dataset's fingerprint by its version: here its scores may not change without it.

Each filter scores one synthetic clip; scores and version are in filter_scores.json. After a change that is meant, raise
the filter's version and write the file again:

    python tests/filters/test_filter_versions.py
"""

from __future__ import annotations

import functools
import json
import math
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]

from footage.videos import pan, texture

from filters import FILTERS, load_filter
from filters.base import ClipView, Filter
from filters.encoders.base import load_encoder

GOLDEN = Path(__file__).with_name("filter_scores.json")
OWN_WEIGHTS = {"aesthetics", "nsfw", "watermark"}  # filters whose weights are no part of a package


@functools.cache
def clip() -> ClipView:
    """Twenty seconds of a texture that moves and grows lighter, under lettering, in every track that a filter reads."""
    random = np.random.default_rng(7)
    pictures = np.stack(pan(texture(3, 360, 900), 40, 3.0))
    lit = np.clip(pictures * np.linspace(0.7, 1.1, 40)[:, None, None, None], 0, 255).astype(np.uint8)
    grey = lit.mean(axis=3).astype(np.uint8)
    frames = [cv2.putText(lit[i].copy(), "THE END", (60, 200), 0, 3.0, (255, 255, 255), 8) for i in (0, 12, 24, 39)]
    times = np.arange(40) / 2
    flow = np.zeros((39, 9, 16, 2), np.float32)
    flow[..., 0] = -0.1
    flow += random.normal(0, 0.01, flow.shape).astype(np.float32)
    vectors = random.normal(size=(2, 4, 384)).astype(np.float32) + 2
    embedding, appearance = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    return ClipView(
        clip_id="0123456789abcdef0123",
        start=0.0,
        end=20.0,
        fps=25.0,
        width=640,
        height=360,
        luma=grey[:, ::4, ::4].copy(),
        luma_times=times,
        flow=flow,
        flow_times=np.stack([times[:-1], times[1:]], axis=1),
        burst=grey[:12, ::2, ::2].copy(),
        detail=[np.ascontiguousarray(grey[i, 50:250, 50:250]) for i in (0, 20)],
        frames=frames,
        frame_times=times[[0, 12, 24, 39]],
        tags=[[("beach", 0.6), ("pier", 0.2)], [("beach", 0.5)], [("pier", 0.4), ("boat", 0.1)], [("beach", 0.3)]],
        embedding=embedding,
        appearance=appearance,
        caption="A stony beach at noon. The camera pans left. A pier comes into view.",
    )


def load(name: str) -> Filter:
    options = {"prompts": {"beach": "a beach", "street": "a street"}} if name == "concepts" else {}
    return load_filter(name, options, load_encoder("conse"))


def rounded(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, (list, tuple, np.ndarray)):
        return [rounded(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def alike(now: Any, golden: Any) -> bool:
    """Whether two results are the same but for the last digits of numbers, which differ between processors."""
    if isinstance(now, dict) and isinstance(golden, dict):
        return now.keys() == golden.keys() and all(alike(value, golden[key]) for key, value in now.items())
    if isinstance(now, list) and isinstance(golden, list):
        return len(now) == len(golden) and all(map(alike, now, golden))
    if isinstance(now, float) and isinstance(golden, (int, float)):
        return math.isclose(now, golden, rel_tol=1e-3, abs_tol=1e-4)
    return bool(now == golden)


def scores(clip_filter: Filter) -> dict[str, Any]:
    return {column: rounded(value) for column, value in clip_filter.score(clip()).items()}


@pytest.mark.parametrize("name", sorted(set(FILTERS) - OWN_WEIGHTS))
def test_a_filter_whose_scores_change_has_another_version(name: str) -> None:
    golden, clip_filter = json.loads(GOLDEN.read_text()).get(name, {}), load(name)
    now = scores(clip_filter)
    same = alike(now, golden.get("scores", {}))
    hint = f"then run python tests/filters/{Path(__file__).name}"
    assert golden, f"no reference scores of {name}: run python tests/filters/{Path(__file__).name}"
    assert same or clip_filter.version != golden.get("version"), f"{name} scores otherwise: raise its version, {hint}"
    assert clip_filter.version == golden.get("version"), f"{name} has a new version, {hint}"


def main() -> None:
    filters = {name: load(name) for name in sorted(set(FILTERS) - OWN_WEIGHTS)}
    golden = {
        name: {"version": clip_filter.version, "scores": scores(clip_filter)} for name, clip_filter in filters.items()
    }
    lines = (f"{json.dumps(name)}: {json.dumps(entry, sort_keys=True)}" for name, entry in golden.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
