"""What a whole default build costs: CPU seconds for a second of video, beside public tools that do the same steps.

    python tests/benchmarks/builds/build_cost.py FOOTAGE... [--recipe embedded]

FOOTAGE is videos or folders; a few minutes are enough. The passes run one unit at a time in one process, with the child
processes in which sources are decoded; loading models and other work at a worker's start is a row of its own. Every
tool runs in a process of its own, on one thread, without its imports and model loading:

- scan: PySceneDetect's adaptive detector, which finds cuts and nothing else;
- embed: RapidOCR as installed (detection, direction, recognition) on four of a clip's sampled frames, and OpenCLIP
  ViT-B/32 on all of them; its weights are random, which cost the same as trained ones. Reading frames is not counted;
- pack: the kept clips by `ffmpeg` with x264's defaults, a command a clip.

Needs the ffmpeg program.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np
import psutil

from filters.base import evenly
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.engine.base import Machine, Stage, start_worker
from pipeline.passes.embed_worker import chunks, wanted_rows
from pipeline.passes.registry import CHAINS
from pipeline.passes.run import run_passes
from pipeline.passes.snapshot import Snapshot
from pipeline.sources.discover import discover
from pipeline.state import committed
from pipeline.state.units import Handoff, UnitClips, UnitResult
from pipeline.storage.store import Store

START = "start of workers"
PASS_OF = {
    "Identify": "sources",
    "Scan": "scan",
    "Embed": "embed",
    "CaptionClips": "caption",
    "Transcode": "pack",
    "Pack": "pack",
}


def cpu_seconds() -> float:
    """Return the CPU time of this process and its children, including children that have ended, in seconds."""
    me = psutil.Process()
    total = sum(me.cpu_times()[:4])
    for child in me.children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return float(total)


class SerialEngine:
    """Carries one unit at a time through the stages and adds up CPU seconds by worker."""

    name = "serial"

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.scanned: list[UnitClips] = []  # what the scan handed on

    def machine(self) -> Machine:
        return Machine(1, 1, False)

    def run(self, units: Iterable[Any], stages: Sequence[Stage]) -> Iterator[UnitResult]:
        workers: dict[int, Any] = {}
        for unit in units:
            for index, stage in enumerate(stages):
                if not isinstance(unit, stage.takes):
                    continue
                if index not in workers:
                    workers[index] = self._measured(START, functools.partial(start_worker, stage))
                answer = self._measured(stage.worker.__name__, functools.partial(workers[index], unit))
                if isinstance(answer, UnitResult):
                    yield answer
                    break
                assert isinstance(answer, Handoff)
                yield from answer.results
                unit = answer.unit
                self.scanned += [unit] if isinstance(unit, UnitClips) else []

    def publish(self, result: UnitResult, pending: float) -> None:
        """Do nothing: a benchmark exports no metrics."""

    def close(self) -> None:
        """Do nothing: this engine started no service."""

    def _measured(self, name: str, work: Callable[[], Any]) -> Any:
        before = cpu_seconds()
        answer = work()
        self.seconds[PASS_OF.get(name, name)] += cpu_seconds() - before
        return answer


def build(footage: Sequence[str], out: str, recipe: Recipe) -> tuple[SerialEngine, Snapshot]:
    """Run all passes of a build into the folder `out`."""
    store, engine = Store(out), SerialEngine()
    snapshot = Snapshot(store, recipe, discover(footage, recipe.sources))
    for passes in CHAINS:
        run_passes(passes, snapshot, engine, {})
        committed.merge(store, recipe)
        snapshot.refresh()
    return engine, snapshot


def scenedetect(videos: Sequence[str]) -> float:
    from scenedetect import AdaptiveDetector, detect

    started = time.process_time()
    for video in videos:
        detect(video, AdaptiveDetector())
    return time.process_time() - started


def sampled_frames(out: str, units: Sequence[tuple[str, str]], recipe_name: str) -> Iterator[list[np.ndarray]]:
    """Return the sampled frames, (h, w, 3) uint8 RGB, of each clip that the embed pass processes."""
    store, recipe = Store(out), load_recipe(recipe_name)
    for unit in (UnitClips(*names) for names in units):
        for rows, frames in chunks(store, unit.unit, wanted_rows(store, recipe, unit)):
            yield from (frames[row["clip_id"]].pictures for row in rows)


def rapidocr(out: str, units: Sequence[tuple[str, str]], recipe_name: str) -> float:
    from rapidocr import RapidOCR

    read = RapidOCR(
        params={
            "Global.log_level": "error",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
    spent = 0.0
    for pictures in sampled_frames(out, units, recipe_name):
        for index in evenly(len(pictures), 4):
            started = time.process_time()
            read(np.ascontiguousarray(pictures[index][..., ::-1]))
            spent += time.process_time() - started
    return spent


def openclip(out: str, units: Sequence[tuple[str, str]], recipe_name: str) -> float:
    import torch

    from filters.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    import open_clip
    from PIL import Image

    torch.set_num_threads(1)
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
    spent = 0.0
    with torch.inference_mode():
        for pictures in sampled_frames(out, units, recipe_name):
            started = time.process_time()
            if pictures:
                model.eval().encode_image(torch.stack([transform(Image.fromarray(p)) for p in pictures]))
            spent += time.process_time() - started
    return spent


def ffmpeg(spans: Sequence[tuple[str, float, float]]) -> float:
    before = cpu_seconds()
    for uri, start, seconds in spans:
        cut = ["-ss", f"{start:.4f}", "-i", uri, "-t", f"{seconds:.4f}", "-an"]
        encode = ["-c:v", "libx264", "-threads", "1", "-pix_fmt", "yuv420p", "-f", "mp4", "-movflags", "frag_keyframe"]
        subprocess.run(["ffmpeg", "-v", "error", "-threads", "1", *cut, *encode, "-y", os.devnull], check=True)
    return cpu_seconds() - before


def apart(function: Callable[..., float], *arguments: object) -> float:
    """Run the function in a new process; return its result."""
    code = (
        f"import sys, json; sys.path.insert(0, {str(Path(__file__).parent)!r}); import build_cost, cv2; "
        f"cv2.setNumThreads(1); print('seconds', build_cost.{function.__name__}(*json.load(sys.stdin)))"
    )
    run = subprocess.run([sys.executable, "-c", code], input=json.dumps(arguments), capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{function.__name__}: {run.stderr[-2000:]}")
    return float(run.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", nargs="+")
    parser.add_argument("--recipe", default="embedded")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    recipe = load_recipe(options.recipe)
    with tempfile.TemporaryDirectory() as out:
        engine, snapshot = build(options.footage, out, recipe)
        sources = [row for row in snapshot.sources.to_pylist() if row["status"] == "ok"]
        seconds = sum(row["duration"] for row in sources)
        kept = [row for row in snapshot.selected.to_pylist() if row["keep"]]
        spans = [(row["source_uri"], row["start"], row["end"] - row["start"]) for row in kept]
        units = [(unit.unit, unit.fragment) for unit in engine.scanned]
        tools = {
            "scan": [("PySceneDetect", apart(scenedetect, [row["source_uri"] for row in sources]))],
            "embed": [
                ("RapidOCR", apart(rapidocr, out, units, options.recipe)),
                ("OpenCLIP ViT-B/32", apart(openclip, out, units, options.recipe)),
            ],
            "pack": [("ffmpeg, x264", apart(ffmpeg, spans))],
        }
    print(f"{len(sources)} sources, {seconds:.0f} s; {len(kept)} clips kept, {sum(span[2] for span in spans):.0f} s")
    print(f"\n{'CPU seconds a second of video':32}{'build':>10}{'tools':>10}")
    for name in ("sources", "scan", "embed", "caption", "pack"):
        own, theirs = engine.seconds[name] / seconds, tools.get(name, [])
        named = ", ".join(f"{tool} {spent / seconds:.3f}" for tool, spent in theirs)
        total = f"{sum(spent for _, spent in theirs) / seconds:10.3f}" if theirs else f"{'-':>10}"
        print(f"{name:32}{own:10.3f}{total}  {named}")
    passes = sum(spent for name, spent in engine.seconds.items() if name != START) / seconds
    print(f"{'all':32}{passes:10.3f}{sum(s for rows in tools.values() for _, s in rows) / seconds:10.3f}")
    print(f"\n{START}, once each: {engine.seconds[START]:.1f} CPU s")


if __name__ == "__main__":
    main()
