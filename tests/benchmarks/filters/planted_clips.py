"""Plant synthetic clips with one known defect each in a build, and say which filter caught each.

    python tests/benchmarks/filters/planted_clips.py [SOURCE ...] [--recipe NAME] [key=value ...]

The clips are written as files beside the given sources (none are needed) and built into a temporary dataset. The table
gives each clip's result: caught (rejected by the filter meant for its defect), rejected (by other filters only), missed
(not rejected), kept (rightly: it has no defect), not judged (no threshold on that filter), lost (no clip came of it).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

HEIGHT, WIDTH, FPS, SECONDS = 270, 480, 24, 2.5
UNRELATED = ("caption", "balance")  # reasons that are not about a defect
QUALITY = 88  # of the Motion JPEG file, so that blocks are the defect's and not the file's


@dataclass(frozen=True)
class Defect:
    """`reasons`: prefixes of the reasons that catch it, any of which is right; none for a clip without a defect."""

    apply: Callable[[np.ndarray], np.ndarray]  # (n, h, w, 3) uint8 to the same shape; the input is not changed
    reasons: tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="SOURCE | key=value")
    parser.add_argument("--recipe", default="embedded")
    args = parser.parse_intermixed_args()
    from pipeline.build import build
    from pipeline.config.recipe import load_recipe

    recipe = load_recipe(args.recipe, [word for word in args.words if "=" in word])
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder, "planted")
        planted.mkdir()
        for name in DEFECTS:
            write_clip(name, planted / f"{name}.avi")
        sources = [word for word in args.words if "=" not in word]
        clips = build([*sources, str(planted)], str(Path(folder, "dataset")), recipe).clips
        columns = clips.select(["source_uri", "start", "end", "rejected_by"]).to_pylist()
        rows = [row for row in columns if Path(row["source_uri"]).parent.name == "planted"]
    results = {name: result(name, rows, tuple(recipe.select.thresholds)) for name in DEFECTS}
    print("| clip | result | rejected by |\n|---|---|---|")
    for name, (outcome, reasons) in results.items():
        print(f"| {name} | {outcome} | {', '.join(reasons) or '-'} |")
    outcomes = [outcome for outcome, _ in results.values()]
    caught, judged = outcomes.count("caught"), sum(map(outcomes.count, ("caught", "missed", "rejected")))
    print(f"\n{caught} of {judged} defects caught by the filter meant for them")
    return 0


def write_clip(name: str, path: Path) -> None:
    """Write the clip `name`: 2.5 s of 480x270 at 24 fps, Motion JPEG in AVI, the same bytes every time."""
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, fourcc, FPS, (WIDTH, HEIGHT))
    writer.set(cv2.VIDEOWRITER_PROP_QUALITY, QUALITY)
    for frame in DEFECTS[name].apply(scene(name)):
        writer.write(frame)
    writer.release()


def result(name: str, rows: Sequence[Mapping[str, Any]], thresholds: Sequence[str]) -> tuple[str, list[str]]:
    """Return what happened to the clip `name`, and the reasons that rejected it."""
    defect = DEFECTS[name]
    clips = [row for row in rows if Path(row["source_uri"]).stem == name]
    reasons = sorted({r for row in clips for r in row["rejected_by"] or () if r not in UNRELATED})
    if name in ("clean", "copy"):  # selection may keep either of the two
        twin = [r for row in rows if Path(row["source_uri"]).stem == "clean" for r in row["rejected_by"] or ()]
        reasons = [r for r in reasons if r != "duplicates" or name == "copy"]
        reasons += ["duplicates"] if name == "copy" and "duplicates" in twin and "duplicates" not in reasons else []
    if not clips:
        return "lost", reasons
    if name == "cut":
        middle = SECONDS / 2
        crosses = any(row["start"] < middle - 0.1 and row["end"] > middle + 0.1 for row in clips)
        return "missed" if crosses else "caught", reasons
    if any(reason.startswith(defect.reasons) for reason in reasons) and defect.reasons:
        return "caught", reasons
    without_threshold = not any(column.startswith(defect.reasons) for column in thresholds) if defect.reasons else False
    if without_threshold and name != "copy":
        return "not judged", reasons
    if reasons:
        return "rejected", reasons
    return ("missed" if defect.reasons else "kept"), reasons


def scene(name: str) -> np.ndarray:
    """What the clip `name` shows before its defect, (n, h, w, 3) uint8 BGR: a camera that drifts over a still scene
    while two things cross it. Every clip has a scene of its own except the copy, which has the clean one's."""
    return _film(list(DEFECTS).index("clean" if name == "copy" else name))


def _film(seed: int) -> np.ndarray:
    scene, things = _leaves(seed, HEIGHT * 3 // 2, WIDTH * 3 // 2), _leaves(seed + 100, 150, 150)
    mask = np.zeros((90, 90), np.float32)
    cv2.circle(mask, (45, 45), 42, 1.0, -1, cv2.LINE_AA)
    frames = []
    for k in range(round(FPS * SECONDS)):
        t = k / FPS
        shift = np.array([[1, 0, -(45 + 18 * t)], [0, 1, -(60 + 5 * t)]])
        frame = cv2.warpAffine(scene, shift, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
        for x, y, part in ((30 + 120 * t, 40 + 16 * t, things[:90, :90]), (380 - 95 * t, 155, things[60:, 60:])):
            left, top = int(x), int(y)
            place = np.array([[1, 0, x - left], [0, 1, y - top]])
            alpha = cv2.warpAffine(mask, place, (91, 91))[..., None]
            moved = cv2.warpAffine(part, place, (91, 91), borderMode=cv2.BORDER_REPLICATE)
            under = frame[top : top + 91, left : left + 91]
            under[:] = under * (1 - alpha) + moved * alpha + 0.5
        frames.append(frame)
    return np.stack(frames)


def _leaves(seed: int, height: int, width: int) -> np.ndarray:
    """Ellipses of every size that cover each other, softly lit: edges at all scales, as photographs have them (the
    "dead leaves" model; Lee, Mumford and Huang, IJCV 2001). (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 120, np.uint8)
    for _ in range(height * width // 150):
        radius = min(7 * (1 - rng.random()) ** -0.5, height / 7)  # sizes fall with the third power
        centre = int(rng.integers(width)), int(rng.integers(height))
        axes = max(2, int(radius)), max(2, int(radius * rng.uniform(0.4, 1)))
        colour = np.clip(rng.normal(128, 48) + rng.normal(0, 18, 3), 8, 245).tolist()
        cv2.ellipse(picture, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    light = cv2.resize(
        rng.uniform(0.75, 1.15, (3, 4)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    grain = cv2.GaussianBlur(rng.normal(0, 5, (height, width)).astype(np.float32), (0, 0), 0.8)
    return np.clip(picture * light[..., None] + grain[..., None], 0, 255).astype(np.uint8)


def _each(change: Callable[[np.ndarray, int], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A defect of single frames: `change` gets a frame and its number."""
    return lambda video: np.stack([change(frame, k) for k, frame in enumerate(video)])


def _scaled(gain: float, offset: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    return lambda video: np.clip(video.astype(np.float32) * gain + offset, 0, 255).astype(np.uint8)


def _letterboxed(frame: np.ndarray, _: int) -> np.ndarray:
    height, width = frame.shape[:2]
    inner = round(width * 0.66) // 2 * 2, round(height * 0.68) // 2 * 2
    small = cv2.resize(frame, inner, interpolation=cv2.INTER_AREA)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    return cv2.copyMakeBorder(small, top, top, left, left, cv2.BORDER_CONSTANT)


def _titled(frame: np.ndarray, _: int) -> np.ndarray:
    frame = frame.copy()
    for text, at, size in (("BREAKING NEWS", (104, 120), 1.1), ("subscribe today", (130, 165), 0.9)):
        for colour, thick in (((0, 0, 0), 7), ((255, 255, 255), 2)):
            cv2.putText(frame, text, at, cv2.FONT_HERSHEY_DUPLEX, size, colour, thick, cv2.LINE_AA)
    return frame


def _marked(frame: np.ndarray, _: int) -> np.ndarray:
    layer, width = frame.copy(), frame.shape[1]
    cv2.circle(layer, (width - 46, 42), 26, (255, 255, 255), 4, cv2.LINE_AA)
    cv2.putText(layer, "ZX", (width - 64, 51), cv2.FONT_HERSHEY_DUPLEX, 0.9, (255, 255, 255), 3, cv2.LINE_AA)
    return cv2.addWeighted(layer, 0.85, frame, 0.15, 0)


def _shaken(frame: np.ndarray, k: int) -> np.ndarray:
    height, width = frame.shape[:2]
    x, y = np.random.default_rng(k).uniform(-0.05, 0.05, 2) * height
    return cv2.warpAffine(frame, np.array([[1, 0, x], [0, 1, y]]), (width, height), borderMode=cv2.BORDER_REFLECT_101)


def _blocky(frame: np.ndarray, _: int) -> np.ndarray:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 4])[1], cv2.IMREAD_COLOR))


def _noisy(frame: np.ndarray, k: int) -> np.ndarray:
    return np.clip(frame + np.random.default_rng(k).normal(0, 45, frame.shape), 0, 255).astype(np.uint8)


def _flickering(frame: np.ndarray, k: int) -> np.ndarray:
    return np.clip(frame * (1.3 if k % 4 < 2 else 0.75), 0, 255).astype(np.uint8)


def _combed(video: np.ndarray) -> np.ndarray:
    """Every other line is from two frames later, as when fields are woven."""
    out = video.copy()
    out[:-2, 1::2] = video[2:, 1::2]
    return out


def _cut(video: np.ndarray) -> np.ndarray:
    half = len(video) // 2
    return np.concatenate([video[:half], _film(seed=70)[half:]])


DEFECTS: dict[str, Defect] = {
    "clean": Defect(lambda video: video, ()),
    "frozen": Defect(lambda video: np.repeat(video[:1], len(video), axis=0), ("frozen", "motion")),
    "repeated": Defect(lambda video: np.repeat(video[::3], 3, axis=0)[: len(video)], ("frozen",)),
    "black": Defect(_scaled(0.03), ("exposure",)),
    "overexposed": Defect(_scaled(2.0, 130), ("exposure",)),
    "blurred": Defect(_each(lambda frame, _: cv2.GaussianBlur(frame, (0, 0), 7)), ("sharpness",)),
    "letterboxed": Defect(_each(_letterboxed), ("borders",)),
    "overlay": Defect(_each(_titled), ("text",)),
    "watermark": Defect(_each(_marked), ("logo", "watermark")),
    "shaky": Defect(_each(_shaken), ("camera",)),
    "grey": Defect(
        _each(lambda frame, _: np.repeat(frame.mean(axis=2, keepdims=True), 3, 2).astype(np.uint8)), ("colour",)
    ),
    "blocky": Defect(_each(_blocky), ("blockiness",)),
    "noisy": Defect(_each(_noisy), ("noise",)),
    "flickering": Defect(_each(_flickering), ("flicker",)),
    "interlaced": Defect(_combed, ("interlacing",)),
    "cut": Defect(_cut, ("shots",)),
    "copy": Defect(_each(lambda frame, _: cv2.convertScaleAbs(frame, alpha=0.97, beta=3)), ("duplicates",)),
}


if __name__ == "__main__":
    sys.exit(main())
