"""A whole build of damaged files in this process, and what became of each of them."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil

from filters.encoders.base import EncoderOutput
from pipeline import build as builds
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.engine.base import Stage
from pipeline.engine.local import LocalEngine
from pipeline.passes import caption_worker, embed_worker
from pipeline.state.units import UnitResult

OPTIONS = (
    *("scan.min_seconds=0.2", "scan.deadline_seconds=20", "scan.memory_mb=900", "scan.max_streams=32"),
    *("scan.frames_uniform=1", "scan.frames_peaks=1"),
    *("pack.heights=48", "select.duplicates=false", "select.thresholds={}", "select.val_fraction=0"),
)
EXPENSIVE = ("text", "safety", "faces", "objects")  # filters of frames that this code wrote: damage does not reach them
ENDINGS = {  # of reasons; anything else is a file that cannot be used
    "took longer": "over the time limit",
    "memory": "over the memory limit",
    "allows (": "over another limit",
    "the process": "decoder crashed, contained",
    "internal error": "INTERNAL ERROR, contained",
}


@dataclass(frozen=True)
class Remains:
    """What this process holds: open descriptors, child processes, temporary files."""

    descriptors: int
    children: int
    temporary: int


class PlainEncoder:
    """Mean colours in place of a network, which sees no byte of a damaged file and would take most of the time."""

    id, dim = "plain:1", 4

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.full((len(texts), self.dim), 0.5, np.float32)

    def look(self, frames: Sequence[np.ndarray]) -> EncoderOutput:
        rows = np.array([[*frame.mean(axis=(0, 1)), 1.0] for frame in frames], np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return EncoderOutput(rows, rows, [[("golden retriever", 0.9)]] * len(frames))


def recipe() -> Recipe:
    """The embedded recipe for pictures of 64 x 48 pixels, without its expensive filters and without thresholds."""
    full = load_recipe("embedded", OPTIONS)
    filters = {name: options for name, options in full.filters.items() if name not in EXPENSIVE}
    return Recipe(**{**vars(full), "filters": filters})


def build_here(inputs: Sequence[str], out: Path, footage: Path) -> builds.Built:
    """Build in this process, one unit after another, and with PlainEncoder as the image encoder. Files of `footage`
    that are called vanishing and growing do so before the pass that would read them."""
    run = LocalEngine.run

    def changing(engine: LocalEngine, units: Iterable[Any], stages: Sequence[Stage]) -> Iterator[UnitResult]:
        change(footage, stages[0].worker.__name__)
        return run(engine, units, stages)

    with contextlib.ExitStack() as patches:
        patches.enter_context(patch.object(LocalEngine, "run", changing))
        for module in (embed_worker, caption_worker):
            patches.enter_context(patch.object(module, "load_encoder", lambda *_: PlainEncoder()))
        return builds.build(inputs, str(out), recipe(), cores=1, engine="local")


def change(footage: Path, worker: str) -> None:
    """What happens to the files while the build runs, before the pass of `worker`."""
    if worker == "Identify":
        (footage / "vanishing.mp4").unlink(missing_ok=True)
    if worker == "Scan":
        (footage / "vanishing-later.mp4").unlink(missing_ok=True)
        if (footage / "growing.ts").exists():
            with open(footage / "growing.ts", "ab") as file:
                file.write((footage / "growing.ts").read_bytes())


def outcomes(built: builds.Built) -> dict[str, str]:
    """What became of each source, by the name of its file. Raises AssertionError where one has not exactly one row."""
    rows = built.sources
    assert len({row["source_uri"] for row in rows}) == len(rows), "a source has two rows"
    clips = built.clips.select(["source_id", "keep"]).to_pylist()
    kept = Counter(clip["source_id"] for clip in clips if clip["keep"])
    cut = Counter(clip["source_id"] for clip in clips)
    states = {}
    for row in rows:
        error = row["error"] or ""
        if row["status"] == "ok":
            state = "kept" if kept[row["source_id"]] else "clips, none kept" if cut[row["source_id"]] else "no clips"
            state = "INTERNAL ERROR, contained" if "internal error" in error else state
        elif row["status"] == "skipped":
            state = "same content as another"
        else:
            assert error, f"{row['source_uri']} failed without a reason"
            state = next((state for part, state in ENDINGS.items() if part in error), "cannot be used, with a reason")
        states[row["source_uri"]] = state
    return states


def remains() -> Remains:
    gc.collect()
    own = psutil.Process()
    temporary = [name for name in os.listdir(tempfile.gettempdir()) if not name.startswith("torchinductor_")]
    return Remains(own.num_fds(), len(own.children(recursive=True)), len(temporary))
