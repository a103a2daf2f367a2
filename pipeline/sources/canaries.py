"""Canaries: small synthetic clips, each with one known defect, that a build plants to see which filters catch them.

They are sources called canary://NAME, made anew from their name wherever they are opened. They are scored and judged
like any other clip, count in no total and are never captioned or shipped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.recipe import Recipe

SCHEME = "canary://"
MARK = "canary"  # the reason that keeps one out of the shards
VERSION = 1  # of the pixels
HEIGHT, WIDTH, FPS, SECONDS = 270, 480, 24, 2.5
NEUTRAL = (MARK, "caption", "balance")  # reasons that say nothing about a defect
QUALITY = 88  # of the Motion JPEG file, so that blocks are the defect's and not the file's


@dataclass(frozen=True)
class Canary:
    """`reasons`: beginnings of the reasons that catch it, any of which is right; none for a clip without a defect."""

    make: Callable[[np.ndarray], np.ndarray]  # of a video (n, h, w, 3) uint8, which is left alone; the same shape back
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Recall:
    """What became of one canary. `result` is one of: caught (by an expected reason), rejected (for other reasons only),
    missed (nothing spoke against it), kept (rightly: it has no defect), not asked (no threshold on an expected score),
    not found (no clip came of it)."""

    name: str
    expected: tuple[str, ...]
    result: str
    reasons: tuple[str, ...]


def video(name: str) -> bytes:
    """The file of the canary `name`: 2.5 s of 480x270 at 24 fps, Motion JPEG in AVI, the same bytes every time. Raises
    FileNotFoundError for an unknown name."""
    if name not in CANARIES:
        raise FileNotFoundError(f"no canary is called {name!r}: there are {', '.join(CANARIES)}")
    frames = CANARIES[name].make(scene(name))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "canary.avi"
        fourcc = cv2.VideoWriter.fourcc(*"MJPG")
        writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, fourcc, FPS, (WIDTH, HEIGHT))
        writer.set(cv2.VIDEOWRITER_PROP_QUALITY, QUALITY)
        for frame in frames:
            writer.write(frame)
        writer.release()
        return path.read_bytes()


def planted(recipe: Recipe) -> list[str]:
    """The sources that a build by `recipe` adds to those it is given."""
    return [SCHEME + name for name in CANARIES] if recipe.canaries else []


def is_canary(table: pa.Table) -> pa.ChunkedArray:
    """For each row of a table with `source_uri`, whether it is a canary's."""
    uris = table["source_uri"]
    if not pa.types.is_dictionary(uris.type):
        return pc.starts_with(uris, SCHEME)
    uris = uris.combine_chunks()
    return pa.chunked_array([pc.starts_with(uris.dictionary, SCHEME).take(uris.indices)])


def without_canaries(table: pa.Table) -> pa.Table:
    return table.filter(pc.invert(is_canary(table)))


def recall(clips: pa.Table, asked: Collection[str] | None = None) -> list[Recall]:
    """What became of each canary in a table of clips after selection; nothing where none was planted. `asked` are the
    columns with a threshold, to tell a filter that failed from one that was not asked."""
    reasons: dict[str, list[list[str]]] = {}
    spans: dict[str, list[tuple[float, float]]] = {}
    for row in clips.filter(is_canary(clips)).select(["source_uri", "start", "end", "rejected_by"]).to_pylist():
        name = row["source_uri"].removeprefix(SCHEME)
        reasons.setdefault(name, []).append([r for r in row["rejected_by"] or () if r not in NEUTRAL])
        spans.setdefault(name, []).append((row["start"], row["end"]))
    if not reasons:
        return []
    return [_recall(name, one, reasons, spans.get(name, []), asked) for name, one in CANARIES.items()]


def _recall(
    name: str,
    canary: Canary,
    reasons: dict[str, list[list[str]]],
    spans: list[tuple[float, float]],
    asked: Collection[str] | None,
) -> Recall:
    found = sorted({reason for one in reasons.get(name, []) for reason in one})
    if name == "copy":  # which of the two copies stays is the selection's to choose
        found += sorted({r for one in reasons.get("clean", []) for r in one} & {"duplicates"} - set(found))
    if name == "cut":
        caught = bool(spans) and not any(start < SECONDS / 2 - 0.1 and end > SECONDS / 2 + 0.1 for start, end in spans)
    else:
        caught = any(reason.startswith(canary.reasons) for reason in found) if canary.reasons else False
    other = [reason for reason in found if not (name == "clean" and reason == "duplicates")]
    if not spans:
        result = "not found"
    elif caught:
        result = "caught"
    elif asked is not None and canary.reasons and not _asks(asked, canary.reasons):
        result = "not asked"
    elif other:
        result = "rejected"
    else:
        result = "missed" if canary.reasons else "kept"
    return Recall(name, canary.reasons, result, tuple(found))


def _asks(asked: Collection[str], reasons: tuple[str, ...]) -> bool:
    always = ("duplicates", "shots")  # not thresholds
    return reasons[0] in always or any(column.startswith(reasons) for column in asked)


def scene(name: str) -> np.ndarray:
    """What the canary `name` shows before its defect, (n, h, w, 3) uint8 BGR: a camera that drifts over a still scene
    while two things cross it. Every canary has a scene of its own but for the copy, which has that of the clean one."""
    return _film(list(CANARIES).index("clean" if name == "copy" else name))


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


CANARIES: dict[str, Canary] = {
    "clean": Canary(lambda video: video, ()),
    "frozen": Canary(lambda video: np.repeat(video[:1], len(video), axis=0), ("frozen", "motion")),
    "repeated": Canary(lambda video: np.repeat(video[::3], 3, axis=0)[: len(video)], ("frozen",)),
    "black": Canary(_scaled(0.03), ("exposure",)),
    "overexposed": Canary(_scaled(2.0, 130), ("exposure",)),
    "blurred": Canary(_each(lambda frame, _: cv2.GaussianBlur(frame, (0, 0), 7)), ("sharpness",)),
    "letterboxed": Canary(_each(_letterboxed), ("borders",)),
    "overlay": Canary(_each(_titled), ("text",)),
    "watermark": Canary(_each(_marked), ("logo", "watermark")),
    "shaky": Canary(_each(_shaken), ("camera",)),
    "grey": Canary(
        _each(lambda frame, _: np.repeat(frame.mean(axis=2, keepdims=True), 3, 2).astype(np.uint8)), ("colour",)
    ),
    "blocky": Canary(_each(_blocky), ("blockiness",)),
    "noisy": Canary(_each(_noisy), ("noise",)),
    "flickering": Canary(_each(_flickering), ("flicker",)),
    "interlaced": Canary(_combed, ("interlacing",)),
    "cut": Canary(_cut, ("shots",)),
    "copy": Canary(_each(lambda frame, _: cv2.convertScaleAbs(frame, alpha=0.97, beta=3)), ("duplicates",)),
}
