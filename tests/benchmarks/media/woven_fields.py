"""How well interlacing is found in real footage whose fields were woven, beside FFmpeg's idet over every frame.

    python tests/benchmarks/media/woven_fields.py FOLDER [--files 40] [--frames 90]

There is little interlaced footage to be had, so it is made: of filmed single shots (labels.jsonl as for
real_footage.py), the lines of two frames in a row become one frame, as interlaced cameras and tapes do it. Motion
between two fields is then that between two frames; "half size" halves it. The results go through H.264 and the scan.
Footage in which nothing moves shows no fields and counts as missed. idet calls a file interlaced where it says so of
more than a quarter of the frames, by its verdict over several frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import av
import cv2
import numpy as np

from pipeline.config.recipe import load_recipe
from pipeline.report.labels import read_file_labels
from pipeline.scan.scan import scan
from pipeline.sources.discover import Source

SCALED = "select.thresholds.interlacing_scaled={max: 0.75, missing: keep}"  # no recipe has this threshold
SHARE = 0.25  # of the frames, above which idet's verdict counts
HEIGHT = 720  # lines of the footage at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--frames", type=int, default=90)
    given = parser.parse_args()
    labels = read_file_labels(given.folder / "labels.jsonl")
    names = [name for name, label in labels.items() if label.get("kind") == "filmed" and label.get("single_shot")]
    names = names[:: max(1, len(names) // given.files)][: given.files]
    thresholds = load_recipe("embedded", [SCALED]).select.thresholds
    bounds = {name: thresholds[name] for name in ("interlacing_share", "interlacing_scaled")}
    alone = ["scan.shots=stride", "scan.max_seconds=60", "scan.min_seconds=0"]
    recipe = dataclasses.replace(load_recipe("embedded", alone), filters={"interlacing": {}})
    results: dict[str, list[tuple[bool, bool, bool]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            frames, fps = luma(given.folder / name, given.frames)
            for variant, change in VARIANTS.items():
                path = Path(folder) / "woven.mp4"
                encode(change(frames), fps, path)
                clips = scan(Source("0" * 32, str(path)), recipe).clips
                measured = [clip for clip in clips if clip["interlacing_share"] is not None]
                ours = any(not bound.admit(clip[name]) for clip in measured for name, bound in bounds.items())
                results[variant].append((ours, idet(path) > SHARE, not measured))
    print(f"{len(names)} files of {len({name.split('/')[0] for name in names})} sources")
    print(f"{'':24}{'rejected':>10}{'null':>6}{'idet':>8}")
    for variant, rows in results.items():
        ours, theirs, null = np.mean(rows, axis=0)
        print(f"{variant:24}{ours:>10.2f}{null:>6.2f}{theirs:>8.2f}")


def luma(path: Path, count: int) -> tuple[np.ndarray, float]:
    """(n, h, w) uint8 luma of up to `count` frames, sides multiples of four, and the frame rate."""
    frames: list[np.ndarray] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            plane = np.frombuffer(frame.planes[0], np.uint8).reshape(-1, frame.planes[0].line_size)
            frames.append(plane[: frame.height // 4 * 4, : frame.width // 4 * 4].copy())
            if len(frames) == count:
                break
        fps = float(stream.average_rate or 25)
    video = np.stack(frames)
    return (resized(video, HEIGHT / video.shape[1]) if video.shape[1] > HEIGHT else video), fps


def woven(frames: np.ndarray, top_first: bool = True) -> np.ndarray:
    """Frames of half the rate, whose lines are of two frames in a row."""
    earlier, later = frames[0::2], frames[1::2]
    out = (later if not top_first else earlier)[: len(later)].copy()
    rows = np.s_[1::2]
    out[:, rows] = (later if top_first else earlier[: len(later)])[:, rows]
    return out


def telecine(frames: np.ndarray) -> np.ndarray:
    """Five frames of every four, as 24 frames become 60 fields a second: the third and fourth are woven."""
    out = []
    for k in range(0, len(frames) - 3, 4):
        a, b, c, d = frames[k : k + 4]
        third, fourth = b.copy(), c.copy()
        third[1::2], fourth[1::2] = c[1::2], d[1::2]
        out += [a, b, third, fourth, d]
    return np.stack(out)


def resized(frames: np.ndarray, scale: float) -> np.ndarray:
    size = int(frames.shape[2] * scale) // 4 * 4, int(frames.shape[1] * scale) // 4 * 4
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, size, interpolation=method) for frame in frames])


def partly(frames: np.ndarray) -> np.ndarray:
    half = len(frames) // 4 * 2
    return np.concatenate([frames[:half], woven(frames[half:])])


VARIANTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda frames: frames,
    "top field first": woven,
    "bottom field first": lambda frames: woven(frames, top_first=False),
    "half size": lambda frames: woven(resized(frames, 0.5)),
    "telecine": telecine,
    "second half woven": partly,
    "scaled to 75% after": lambda frames: resized(woven(frames), 0.75),
    "scaled to 150% after": lambda frames: resized(woven(frames), 1.5),
}


def encode(frames: np.ndarray, fps: float, path: Path) -> None:
    with av.open(str(path), "w") as container:
        options = {"preset": "fast", "crf": "23"}
        stream = container.add_stream("libx264", rate=Fraction(round(fps * 1000), 1000), options=options)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            planes = np.full((frame.shape[0] * 3 // 2, frame.shape[1]), 128, np.uint8)
            planes[: len(frame)] = frame
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())


def idet(path: Path) -> float:
    """Share of the frames that FFmpeg's idet calls interlaced."""
    verdicts: list[str] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        nodes = [graph.add_buffer(template=stream), graph.add("idet"), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        for frame in [*container.decode(stream), None]:
            nodes[0].push(frame)
            while True:
                try:
                    verdicts.append(nodes[-1].pull().metadata["lavfi.idet.multiple.current_frame"])
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
    return sum(verdict in ("tff", "bff") for verdict in verdicts) / max(1, len(verdicts))


if __name__ == "__main__":
    main()
