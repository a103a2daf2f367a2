"""The recipe `standard` end to end on a GPU, each pass beside the rate of its own parts alone, in one run.

    python tests/benchmarks/builds/gpu_build.py VIDEOS --work FOLDER [--hours 1] [--engine local] [--tiny] [--only STEP]

Steps, in this order; each leaves its files in FOLDER, so that they can be run one by one:

- weights: random ones of full geometry in the hub's formats: OpenCLIP ViT-L/14, an aesthetics head, Qwen2.5-VL-7B.
- videos: `hours` of real video: the files of VIDEOS, as often as it takes.
- build: `clipmill build --recipe standard`. Random weights produce nonsense, so answers have 96 tokens, whatever they
  say, and are not audited (`fixed_answers`, an option of the captioner for this benchmark alone).
- embed: on the same scan the embed pass alone, its filters alone on all cores, and the encoder alone.
- caption: the captioner alone on as many clips of the same size.
- train: `encode`, `train` and `sample` on the dataset with the preset `cuda`.

A table at the end of each step has the rates and the use of cores and GPU (nvidia-smi, every half second). --tiny does
the same with toy models on a CPU.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "benchmarks" / "captions")]

import psutil

ANSWER = 96  # tokens
ENCODER = {"full": "ViT-L-14", "tiny": "ViT-S-32-alt"}
SMALL_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "fullatt_block_indexes": [1]}


@dataclass
class Usage:
    """Use of the cores and the GPU while a step ran."""

    seconds: float = 0.0
    cpu: list[float] = field(default_factory=list)  # of all cores, per cent
    gpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # of the GPU, GB

    def __str__(self) -> str:
        cores = f"{statistics.mean(self.cpu) * (os.cpu_count() or 1) / 100:.1f} cores" if self.cpu else "-"
        gpu = f"GPU {statistics.mean(self.gpu):.0f}%, {max(self.memory):.0f} GB" if self.gpu else "no GPU"
        return f"{self.seconds:.1f} s, {cores}, {gpu}"


@contextmanager
def measured() -> Iterator[Usage]:
    """The use of the machine within the block."""
    usage, stop = Usage(), threading.Event()

    def watch() -> None:
        psutil.cpu_percent()
        while not stop.wait(0.5):
            usage.cpu.append(psutil.cpu_percent())
            if shutil.which("nvidia-smi"):
                query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
                first = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()[0].split(",")
                usage.gpu.append(float(first[0]))
                usage.memory.append(float(first[1]) / 1024)

    thread, start = threading.Thread(target=watch, daemon=True), time.perf_counter()
    thread.start()
    try:
        yield usage
    finally:
        usage.seconds = time.perf_counter() - start
        stop.set()
        thread.join()


def say(name: str, text: object) -> None:
    print(f"{name:34} {text}", flush=True)


def write_weights(work: Path, tiny: bool) -> None:
    """Random weights: `clip.pt`, `head.pth` and the folder `vlm`."""
    import torch

    from filters.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    import caption_speed
    import open_clip
    from tiny_models import caption_models

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = open_clip.create_model(ENCODER["tiny" if tiny else "full"], device=device)
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, work / "clip.pt")
    width = model.text_projection.shape[1]
    torch.save({"weight": torch.randn(1, width) / 100, "bias": torch.full((1,), 5.0)}, work / "head.pth")
    del model
    vlm, processor = caption_speed.build(tiny, device)
    if tiny:
        vlm.config.vision_config.update({"depth": 2})
    caption_models.save(vlm, processor, work / "vlm")


def copy(source: Path, target: Path, number: int) -> float:
    """Write the packets of `source` with `number` as a title, so that no two files are the same; seconds of video."""
    import av

    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        video = reader.streams.video[0]
        stream = writer.add_stream_from_template(video)
        writer.metadata["title"] = str(number)
        for packet in reader.demux(video):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)
        return float(reader.duration or 0) / av.time_base


def write_videos(work: Path, videos: Path, hours: float) -> None:
    """Copy the files of `videos` to FOLDER/videos, repeatedly, until their total duration is `hours`."""
    folder = work / "videos"
    folder.mkdir(exist_ok=True)
    sources = sorted(p for p in videos.rglob("*") if p.suffix.lower() in (".mp4", ".webm", ".mkv", ".mov", ".avi"))
    seconds, number = 0.0, 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        while seconds < 3600 * hours and number < 64:
            jobs = [
                pool.submit(copy, source, folder / f"{i:03d}-{number:02d}{source.suffix}", number)
                for i, source in enumerate(sources)
            ]
            for job in jobs:
                seconds += job.result()
            number += 1
    say("real video", f"{seconds / 60:.1f} minutes, {len(list(folder.iterdir()))} files, each {number} times")


def options(work: Path, tiny: bool) -> list[str]:
    """The recipe's options: weights of FOLDER, answers of fixed length."""
    rows = ["rows: 8, prefill: 4"] if tiny else []
    vlm = ", ".join([f"model: {work / 'vlm'}", f"fixed_answers: {ANSWER}", *rows])
    return [
        f"encoder.model={ENCODER['tiny' if tiny else 'full']}",
        f"encoder.pretrained={work / 'clip.pt'}",
        f"filters.aesthetics={{head: {work / 'head.pth'}}}",
        f"caption.options={{{vlm}}}",
        "caption.audit=false",
        "select.duplicates=false",  # embeddings of random weights say nothing
        *(["caption.batch=8"] if tiny else []),
    ]


def build(work: Path, tiny: bool, engine: Any) -> None:
    """Build the dataset; print each chain of passes with its rate."""
    import pipeline.build
    from pipeline.config.recipe import load_recipe

    out, run_passes = work / "dataset", pipeline.build.run_passes

    def timed(passes: Any, *rest: Any) -> bool:
        names = " and ".join(each.name for each in passes)
        with measured() as usage, progress(out) as done:
            ran: bool = run_passes(passes, *rest)
        say(f"build: {names}", usage)
        for name, (start, end) in done.items():
            say(f"  {name}", f"results written from {start:.1f} s to {end:.1f} s")
        return ran

    pipeline.build.run_passes = timed  # the build's own function, between two readings of the clock
    with measured() as usage:
        built = pipeline.build.build(
            [str(work / "videos")], str(out), load_recipe("standard", options(work, tiny)), engine=engine
        )
    say("build", usage)
    for name, spent in built.info["passes"].items():
        rate = spent["amount"] / max(1e-9, spent["seconds"])
        say(f"  {name}", f"{spent['amount']:.0f} in {spent['seconds']:.1f} s: {rate:.1f}/s {spent['results']}")
        costs = {key: round(value["seconds"] / max(1, value["clips"]), 4) for key, value in spent["filters"].items()}
        say(f"  {name}, worker seconds a clip", costs)


@contextmanager
def progress(out: Path) -> Iterator[dict[str, tuple[float, float]]]:
    """Seconds at which the first and the last file of each pass were written within the block."""
    start, done = time.time(), dict[str, tuple[float, float]]()
    yield done
    for name in ("scan", "embed", "caption"):
        times = [p.stat().st_mtime - start for p in (out / "state" / name).glob("*") if p.stat().st_mtime > start]
        if times:
            done[name] = (min(times), max(times))


def embed_alone(work: Path, tiny: bool, cores: int) -> None:
    """Measure the embed pass on the finished scan, and its parts alone."""
    import numpy as np
    import torch

    from filters.encoders.base import load_encoder
    from pipeline.config.recipe import load_recipe
    from pipeline.engine.base import Machine
    from pipeline.engine.local import LocalEngine
    from pipeline.passes.embed import EMBED
    from pipeline.passes.run import run_passes
    from pipeline.passes.snapshot import Snapshot
    from pipeline.sources.discover import discover
    from pipeline.storage.store import Store

    again = work / "embedded_again"
    shutil.rmtree(again, ignore_errors=True)
    shutil.copytree(work / "dataset", again, ignore=shutil.ignore_patterns("embed", "caption", "shards", "clips"))
    recipe, store = load_recipe("standard", options(work, tiny)), Store(str(again))
    files = discover([str(work / "videos")], recipe.sources)
    snapshot, engine = Snapshot(store, recipe, files), LocalEngine(cores, gpu=True)
    units = list(EMBED.pending(snapshot, cores))
    clips = sum(unit.amount for unit in units) or snapshot.clip_count
    machine = Machine(cores, cores, gpu=True)  # two stages, also where a CPU plays the GPU
    first = EMBED.stages(snapshot, machine)[0]
    with measured() as usage:
        list(engine.run(iter(units), [first]))
    alone = clips / usage.seconds
    say("filters alone, clips/s", f"{alone:.1f}; {usage}")
    encoder = load_encoder(recipe.encoder.name, recipe.encoder.model, recipe.encoder.pretrained)
    pictures = list(np.random.default_rng(0).integers(0, 255, (256, 288, 512, 3), np.uint8))
    encoder.look(pictures[:64])
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 5:
        encoder.look(pictures)
        count += len(pictures)
    encoded = count / (time.perf_counter() - start) / 8
    say("encoder alone, clips/s", f"{encoded:.1f} of 8 pictures")
    del encoder
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with measured() as usage:
        run_passes((EMBED,), snapshot, engine, {})
    rate = clips / usage.seconds
    share = rate / min(alone, encoded)
    say("embed pass alone, clips/s", f"{rate:.1f} of {clips:.0f} clips: {share:.0%} of the slower part; {usage}")


def captions_alone(work: Path, tiny: bool) -> None:
    """Measure the captioner alone on as many synthetic clips as the dataset has."""
    import caption_speed

    from captioners.vlm.vlm import Vlm
    from pipeline.config.recipe import load_recipe

    recipe = load_recipe("standard", options(work, tiny))
    start = time.perf_counter()
    captioner = Vlm(**recipe.caption.options)
    say("captioner loaded", f"{time.perf_counter() - start:.1f} s")
    info = json.loads((work / "dataset" / "dataset.json").read_text())
    count = max(8, int(info["passes"]["caption"]["amount"]))
    clips = caption_speed.make_clips(count)
    start = time.perf_counter()
    captioner.caption(clips[:4])
    say("first captions", f"{time.perf_counter() - start:.1f} s")
    with measured() as usage:
        captioner.caption(clips)
    rate = count / usage.seconds
    spent = info["passes"]["caption"]
    say("captioner alone, clips/s", f"{rate:.1f}, {rate * ANSWER:.0f} tokens/s; {usage}")
    say("caption pass in the build", f"{spent['amount'] / spent['seconds'] / rate:.0%} of that, start-up included")


def train(work: Path, tiny: bool) -> None:
    """Run `encode`, `train` and `sample` on the dataset; print the last lines of each."""
    text = work / "text"
    write_text_encoder(text)
    common = ["steps=60", "save_every=60", "log_every=20", f"text=hf:{text}", "text_tokens=77", "warmup=10"]
    common += ["resolutions=32", "frame_counts=1,5"] if tiny else []
    dataset, latents, run = (str(work / name) for name in ("dataset", "latents", "run"))
    for name, words in (
        ("train on the dataset", ["train", dataset, "--out", run, *common]),
        ("encode", ["encode", dataset, "--out", latents, *common]),
        ("train on latents", ["train", latents, "--out", f"{run}2", *common]),
        ("sample", ["sample", run, "--prompt", "A dog runs.", "--out", str(work / "sample.mp4")]),
    ):
        with measured() as usage:
            done = subprocess.run(
                [sys.executable, "-m", "pipeline.cli", *words], capture_output=True, text=True, cwd=ROOT
            )
        lines = re.sub(r"\n+", "\n", done.stdout + done.stderr).strip().splitlines()
        say(name, f"status {done.returncode}; {usage}")
        print("\n".join(f"    {line[:160]}" for line in lines[-6:]), flush=True)


def write_text_encoder(folder: Path) -> None:
    """A text encoder of CLIP ViT-L/14's geometry, random weights, in the hub's format."""
    from filters.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    import transformers
    from tiny_models import caption_models

    words = caption_models.tokenizer()
    words.save_pretrained(folder)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=768, intermediate_size=3072, num_attention_heads=12
    )
    transformers.CLIPTextModel(config).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("videos", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--engine", default="local", choices=["local", "ray"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP")
    args = parser.parse_args()
    work: Path = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    steps: dict[str, Callable[[], None]] = {
        "weights": lambda: write_weights(work, args.tiny),
        "videos": lambda: write_videos(work, args.videos, args.hours),
        "build": lambda: build(work, args.tiny, args.engine),
        "embed": lambda: embed_alone(work, args.tiny, cores),
        "caption": lambda: captions_alone(work, args.tiny),
        "train": lambda: train(work, args.tiny),
    }
    if not args.only:  # each in a process of its own: what one leaves on the GPU does not count against the next
        for name in steps:
            subprocess.run([sys.executable, *sys.argv, "--only", name], check=False)
        return
    for name in args.only:
        start = time.perf_counter()
        steps[name]()
        say(f"step {name}", f"{time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
