"""How often the camera's label is given and right on live footage under a known camera motion.

    python tests/benchmarks/filters/live_camera.py FOLDER [--seconds 4] [--videos VIDEO ...] [--show]

Footage of a camera that stands, with whatever moves in it, is filmed again by a virtual camera that pans, tilts, zooms,
rolls at 0.05 to 0.4 picture heights (0.05 to 0.3 of the picture, radians) a second, shakes, or stands. FOLDER is
labelled as for real_footage.py; its filmed single shots with the camera label "static" are used, and --videos whole.

Labels by eye overlook slow drift, so there are three tables: all of that footage, the part of it in which a fifth of
the textured places show the same half a second later, which no moving camera does, and all but files whose label the
pictures contradict (disputed_labels.jsonl).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import av
import cv2
import numpy as np
from known_clips import shaken
from real_footage import disputed_files

from filters.base import ClipView
from filters.movement.camera import STANDS, Camera
from filters.movement.flow import coarse_flow
from filters.movement.global_motion import global_motion
from filters.movement.steady_motion import steady_motion
from pipeline.report.labels import read_file_labels

RATE = 8.0  # frames a second, as in the scan's luma track
SHORT_SIDE = 90  # pixels of what the virtual camera films, as in the scan
SKIPPED = 0.3  # seconds at the beginning, where fades may be
SEEN_MOVING, SEEN = 0.62, 0.8  # share of the footage's sides that a camera sees that goes somewhere, or stays


@dataclass(frozen=True)
class Move:
    """Of a virtual camera: picture heights, shares of the picture and radians per second."""

    pan: float = 0.0
    tilt: float = 0.0
    zoom: float = 0.0
    roll: float = 0.0
    shake: tuple[Callable[[float], float], ...] = field(default=())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--videos", type=Path, nargs="*", default=[])
    parser.add_argument("--show", action="store_true", help="name every wrong label")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    answers: list[tuple[str, str, str | None, bool]] = []
    for number, (name, path) in enumerate(footage(given.folder, given.videos)):
        frames, times = luma(path, given.seconds)
        if len(frames) < RATE:
            continue
        stands = standing(view(*film(frames, times, Move())))
        for move, how in moves(number, frames.shape[2] / frames.shape[1], float(times[-1] - times[0])).items():
            label = Camera().score(view(*film(frames, times, how)))["camera_label"]
            answers.append((name, move, label if isinstance(label, str) else None, stands))
    doubted = disputed_files("camera")
    for title, rows in (
        ("all footage", answers),
        ("footage that stands", [row for row in answers if row[3]]),
        ("all but footage whose label static is disputed", [row for row in answers if row[0] not in doubted]),
    ):
        print(f"{title}: {len({name for name, *_ in rows})} files")
        table([(move, label) for _, move, label, _ in rows])
    for name, move, label, _ in answers if given.show else ():
        if label not in (move, None):
            print(f"{name}: {move} called {label}")


def footage(folder: Path | None, videos: list[Path]) -> Iterator[tuple[str, Path]]:
    """(name, file) of what is filmed again."""
    labels = read_file_labels(folder / "labels.jsonl") if folder else {}
    for name, label in labels.items():
        wanted = label.get("kind") == "filmed" and label.get("camera") == "static" and not label.get("gradual")
        if folder and wanted and label.get("single_shot"):
            yield name, folder / name
    yield from ((path.name, path) for path in videos)


def luma(path: Path, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """(n, h, w) uint8 luma at `RATE` and their times in seconds, short side 480 pixels at most."""
    frames, times = [], []
    with av.open(str(path)) as container:
        first, last = None, None
        for frame in container.decode(video=0):
            time = float(frame.time or 0)
            first = time if first is None else first
            time -= first
            if time > SKIPPED + seconds:
                break
            if time >= SKIPPED and (last is None or int(time * RATE) != int(last * RATE)):
                plane = np.frombuffer(frame.planes[0], np.uint8).reshape(-1, frame.planes[0].line_size)
                picture = plane[: frame.height, : frame.width]
                scale = min(1.0, 480 / min(picture.shape))
                frames.append(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
                times.append(time)
            last = time
    return np.stack(frames) if frames else np.zeros((0, 1, 1), np.uint8), np.array(times)


def moves(seed: int, aspect: float, seconds: float) -> dict[str, Move]:
    """One of each label, at speeds that stay inside the footage."""
    rng = np.random.default_rng(seed)
    room = (1 / SEEN_MOVING - 1) / max(seconds, 0.1)
    pan, tilt = (float(np.exp(rng.uniform(np.log(0.05), np.log(max(0.051, min(0.4, room * a)))))) for a in (aspect, 1))
    zoom, roll = np.exp(rng.uniform(np.log(0.05), np.log(0.3), 2)).tolist()
    return {
        "static": Move(),
        "pan_right": Move(pan=pan),
        "pan_left": Move(pan=-pan),
        "tilt_down": Move(tilt=tilt),
        "tilt_up": Move(tilt=-tilt),
        "zoom_in": Move(zoom=zoom),
        "zoom_out": Move(zoom=-zoom),
        "roll_right": Move(roll=roll),
        "roll_left": Move(roll=-roll),
        "handheld": Move(shake=(shaken(seed), shaken(seed + 1))),
    }


def film(frames: np.ndarray, times: np.ndarray, move: Move) -> tuple[np.ndarray, np.ndarray]:
    """What the virtual camera films of (n, h, w) frames: (n, 90, w) uint8 and the times from 0 on."""
    height, width = frames.shape[1:]
    share = SEEN_MOVING if move.pan or move.tilt else SEEN
    scale = min(height, width) * share / SHORT_SIDE  # footage pixels a pixel
    size = 2 * round(width * share / scale / 2), 2 * round(height * share / scale / 2)
    out, times = np.empty((len(frames), size[1], size[0]), np.uint8), times - times[0]
    for k, time in enumerate(times):
        t = time - times[-1] / 2
        across, down = (wobble(time) for wobble in move.shake) if move.shake else (0.0, 0.0)
        zoomed, angle = scale / np.exp(move.zoom * t), move.roll * t
        matrix = zoomed * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = np.array([move.pan * t + across, move.tilt * t + down]) * share * height
        affine = np.column_stack([matrix, np.array([width / 2, height / 2]) + shift - matrix @ np.array(size) / 2])
        frame = cv2.GaussianBlur(frames[k], (0, 0), 0.45 * zoomed) if zoomed > 1.2 else frames[k]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        out[k] = cv2.warpAffine(frame, affine, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return out, times


def view(frames: np.ndarray, times: np.ndarray) -> ClipView:
    flow = [coarse_flow(a, b, dt) for a, b, dt in zip(frames[:-1], frames[1:], np.diff(times), strict=True)]
    return ClipView(
        clip_id="live",
        start=0.0,
        end=float(times[-1]) + 1 / RATE,
        fps=RATE,
        width=frames.shape[2],
        height=frames.shape[1],
        luma=frames,
        luma_times=times,
        flow=np.stack(flow),
        flow_times=np.stack([times[:-1], times[1:]], axis=1),
    )


def standing(clip: ClipView) -> bool:
    """Whether enough of the picture stands for its camera to stand."""
    whole = global_motion(clip)
    shares = steady_motion(clip, whole).standing if whole else np.zeros(0)
    return bool(np.isfinite(shares).any() and np.nanmedian(shares) >= STANDS)


def table(answers: list[tuple[str, str | None]]) -> None:
    by_move: dict[str, Counter[str | None]] = defaultdict(Counter)
    for move, label in answers:
        by_move[move][label] += 1
    print(f"{'move':12}{'clips':>6}{'right':>7}{'null':>6}  wrong")
    for move, counts in by_move.items():
        wrong = ", ".join(f"{label} {n}" for label, n in counts.items() if label not in (move, None))
        print(f"{move:12}{counts.total():>6}{counts[move]:>7}{counts[None]:>6}  {wrong}")
    right = sum(label == move for move, label in answers)
    labelled = sum(label is not None for _, label in answers)
    print(f"right when given {right / max(1, labelled):.3f}, given for {labelled / max(1, len(answers)):.3f}\n")


if __name__ == "__main__":
    main()
