"""What a whole default build costs: CPU seconds for a second of video, beside public tools that do the same steps.

    python tests/benchmarks/builds/build_cost.py FOOTAGE... [--recipe embedded] [--work FOLDER]

FOOTAGE is videos or folders; a minute is enough. The passes run one unit at a time in one process, with the child
processes in which sources are decoded. Loading models and other work at a worker's start is a row of its own; so is
what the driver does: plans, selection, tables and the report. With --work the dataset and each measurement are kept in
FOLDER: a run that was stopped goes on there. Every tool runs in a process of its own, on one thread, without its
imports and model loading:

- scan: PySceneDetect's adaptive detector, which finds cuts and nothing else;
- embed: RapidOCR as installed (detection, direction, recognition) on four of a clip's sampled frames, and OpenCLIP
  ViT-B/32 on all of them; its weights are random, which cost the same as trained ones. Reading frames is not counted;
- pack: the kept clips by `ffmpeg` with x264's defaults, a command a clip.

Needs the ffmpeg program, of the system or of the wheel imageio-ffmpeg.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np
import psutil

from filters.base import evenly
from pipeline.build import _build as build_passes
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.engine.base import Machine, Stage, start_worker
from pipeline.passes.embed_worker import chunks, wanted_rows
from pipeline.passes.snapshot import Snapshot
from pipeline.sources.discover import discover
from pipeline.state.units import Handoff, UnitClips, UnitResult
from pipeline.storage.store import Store

START = "start of"
DRIVER = "driver"
TOOLS: dict[str, tuple[str, ...]] = {
    "sources": (),
    "scan": ("PySceneDetect",),
    "embed": ("RapidOCR", "OpenCLIP ViT-B/32"),
    "caption": (),
    "pack": ("ffmpeg, x264",),
    DRIVER: (),
}
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


class Costs:
    """CPU seconds by step, and the units that the scan handed on, written to a file after each measurement."""

    def __init__(self, path: Path) -> None:
        self._path = path
        state = json.loads(path.read_text()) if path.exists() else {"seconds": {}, "units": []}
        self.seconds: dict[str, float] = state["seconds"]
        self.units: list[tuple[str, str]] = state["units"]

    def add(self, step: str, seconds: float) -> None:
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds
        self._path.write_text(json.dumps({"seconds": self.seconds, "units": self.units}))

    def of_tool(self, name: str, function: Callable[..., float], *arguments: object) -> float:
        """Return the CPU seconds of a tool, which runs unless an earlier run measured it."""
        if name not in self.seconds:
            self.add(name, apart(function, *arguments))
        return self.seconds[name]


class SerialEngine:
    """Carries one unit at a time through the stages and adds up CPU seconds by worker."""

    name = "serial"

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self.spent = 0.0  # CPU seconds of all workers of this process

    def machine(self) -> Machine:
        return Machine(1, 1, False)

    def run(self, units: Iterable[Any], stages: Sequence[Stage]) -> Iterator[UnitResult]:
        workers: dict[int, Any] = {}
        for unit in units:
            for index, stage in enumerate(stages):
                if not isinstance(unit, stage.takes):
                    continue
                if index not in workers:
                    step = f"{START} {stage.worker.__name__}"
                    self._costs.seconds.pop(step, None)  # a run that goes on starts its workers again
                    workers[index] = self._measured(step, functools.partial(start_worker, stage))
                answer = self._measured(PASS_OF[stage.worker.__name__], functools.partial(workers[index], unit))
                if isinstance(answer, UnitResult):
                    yield answer
                    break
                assert isinstance(answer, Handoff)
                yield from answer.results
                unit = answer.unit
                if isinstance(unit, UnitClips):
                    self._costs.units.append((unit.unit, unit.fragment))

    def publish(self, result: UnitResult, pending: float) -> None:
        """Do nothing: a benchmark exports no metrics."""

    def close(self) -> None:
        """Do nothing: this engine started no service."""

    def _measured(self, step: str, work: Callable[[], Any]) -> Any:
        before = cpu_seconds()
        answer = work()
        seconds = cpu_seconds() - before
        self.spent += seconds
        self._costs.add(step, seconds)
        return answer


def build(footage: Sequence[str], out: str, recipe: Recipe, costs: Costs) -> Snapshot:
    """Build the dataset `out`; return its state."""
    store, before = Store(out), cpu_seconds()
    engine, snapshot = SerialEngine(costs), Snapshot(store, recipe, discover(footage, recipe.sources))
    build_passes(snapshot, engine, lambda: None)
    costs.add(DRIVER, cpu_seconds() - before - engine.spent)
    return snapshot


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


def program() -> str:
    """Return the path of the ffmpeg program."""
    import imageio_ffmpeg

    return shutil.which("ffmpeg") or str(imageio_ffmpeg.get_ffmpeg_exe())


def ffmpeg(spans: Sequence[tuple[str, float, float]]) -> float:
    before = cpu_seconds()
    for uri, start, seconds in spans:
        cut = ["-ss", f"{start:.4f}", "-i", uri, "-t", f"{seconds:.4f}", "-an"]
        encode = ["-c:v", "libx264", "-threads", "1", "-pix_fmt", "yuv420p", "-f", "mp4", "-movflags", "frag_keyframe"]
        subprocess.run([program(), "-v", "error", "-threads", "1", *cut, *encode, "-y", os.devnull], check=True)
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
    parser.add_argument("--work", help="folder to keep the dataset and the measurements in")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    recipe = load_recipe(options.recipe)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(options.work or temporary)
        work.mkdir(exist_ok=True)
        out, costs = str(work / "dataset"), Costs(work / "costs.json")
        if DRIVER in costs.seconds:
            snapshot = Snapshot(Store(out), recipe, discover(options.footage, recipe.sources))
        else:
            snapshot = build(options.footage, out, recipe, costs)
        sources = [row for row in snapshot.sources.to_pylist() if row["status"] == "ok"]
        kept = [row for row in snapshot.selected.to_pylist() if row["keep"]]
        spans = [(row["source_uri"], row["start"], row["end"] - row["start"]) for row in kept]
        uris = [row["source_uri"] for row in sources]
        costs.of_tool("PySceneDetect", scenedetect, uris)
        costs.of_tool("RapidOCR", rapidocr, out, costs.units, options.recipe)
        costs.of_tool("OpenCLIP ViT-B/32", openclip, out, costs.units, options.recipe)
        costs.of_tool("ffmpeg, x264", ffmpeg, spans)
    seconds = sum(row["duration"] for row in sources)
    print(f"{len(sources)} sources, {seconds:.0f} s; {len(kept)} clips kept, {sum(span[2] for span in spans):.0f} s")
    print_table({step: spent / seconds for step, spent in costs.seconds.items()})
    for step, spent in costs.seconds.items():
        if step.startswith(START) and spent >= 0.05:
            print(f"{step}, once: {spent:.1f} CPU s")


def print_table(costs: Mapping[str, float]) -> None:
    """Print CPU seconds for a second of video: the build's passes, and the tools beside them."""
    print(f"\n{'CPU seconds a second of video':32}{'build':>10}{'tools':>10}")
    own = theirs = 0.0
    for step, tools in TOOLS.items():
        beside = sum(costs[tool] for tool in tools)
        named = ", ".join(f"{tool} {costs[tool]:.3f}" for tool in tools)
        print(f"{step:32}{costs.get(step, 0.0):10.3f}{f'{beside:10.3f}' if tools else '         -'}  {named}")
        own, theirs = own + costs.get(step, 0.0), theirs + beside
    print(f"{'all':32}{own:10.3f}{theirs:10.3f}\n")


if __name__ == "__main__":
    main()
