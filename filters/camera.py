"""Camera: what the camera does (pan, tilt, zoom, dolly, roll, handheld, nothing), when, how sure, its shake and jerks.

A camera that travels forward is told from a zoom by parallax, where there is any. One that circles its subject is not
named: what it shows is what a camera shows that pans along with a subject that moves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown, why_null
from filters.global_motion import GlobalMotion, aspect, global_motion, grid, why_unseen

SMOOTH = 0.75  # seconds: half width of the triangle that parts a move from shake
STILL = 0.01  # picture heights per second: a slower move is none
STEADY = 0.01  # shake below which a camera that goes nowhere stands on something
SHAKY = 0.02  # shake above which it is held by hand; between the two nothing is said
PURE = 0.85  # share of a move that must be of one kind to be called by its name
MOVED = 0.03  # picture heights that a named move covers at least
SHORTEST = 0.5  # seconds of a span
SUPPORT = 0.6  # share of the picture that must move along, or it is not known whether the camera moves
COVER = 0.6  # share of the time that the clip's label must hold for
TRAVEL = 1.0  # seconds of a zoom, from which on it is asked whether it is a dolly
PARTS = (8, 5)  # of the picture, across and down, whose growth is compared; less the middle, where nothing grows
MIDDLE = 0.22  # picture heights
PARALLAX = 0.1  # of the mean growth: how much growth must differ between parts ...
TURNING = (0.6, 0.1)  # ... and the most that they may turn instead, of that spread and of the mean growth

# Content motion -> what the camera does: the content of a pan to the left moves to the right.
LABELS = (("pan_right", "pan_left"), ("tilt_down", "tilt_up"), ("zoom_out", "zoom_in"), ("roll_right", "roll_left"))


class Camera:
    name = "camera"
    version = 2
    needs = frozenset({Track.LUMA, Track.FLOW})
    columns: Mapping[str, pa.DataType] = {
        "camera_label": pa.string(),  # of most of the clip: static, pan_left ... handheld; null when unsure
        "camera_confidence": pa.float32(),  # 0 to 1: share of the time it holds for, times how purely
        "camera_spans": pa.string(),  # JSON [{"label", "start", "end", "confidence"}], seconds from the clip's start
        "camera_shake": pa.float32(),  # median unsteady speed, picture heights/s
        "camera_jerk": pa.float32(),  # 95th percentile of how fast its motion changes, picture heights/s^2
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        whole = global_motion(clip)
        if whole is None:
            return unknown(self, why_unseen(clip))
        clear = whole.valid & (whole.support >= SUPPORT)
        radius = float(np.sqrt((aspect(clip) ** 2 + 1) / 12))  # root mean square distance from the centre, in heights
        speeds = np.stack([whole.pan, whole.tilt, whole.zoom * radius, whole.roll * radius], axis=1).astype(np.float64)
        move, shake = _move_and_shake(whole, clear, speeds)
        spans = [(a, b, _travels(clip, whole, a, b, name)) for a, b, name in _spans(whole, clear, move, shake)]
        known = float(whole.seconds[whole.valid].sum())
        held: dict[str, float] = {}
        for first, last, name in spans:
            held[name] = held.get(name, 0.0) + float(whole.seconds[first : last + 1].sum())
        label = max(held, key=lambda name: held[name], default=None)
        if label is not None and held[label] < COVER * known:
            label = None
        jerk = _jerk(whole, clear, speeds)
        why = "too few moments" if jerk is None else "" if label else "no one move for most of the clip"
        times = whole.times - clip.start
        listed = [
            {
                "label": name,
                "start": round(times[a, 0].item(), 3),
                "end": round(times[b, 1].item(), 3),
                "confidence": round(_confidence(name, [(a, b, name)], move, shake), 3),
            }
            for a, b, name in spans
        ]
        return {
            "camera_label": label,
            "camera_confidence": None
            if label is None
            else _confidence(label, spans, move, shake) * held[label] / known,
            "camera_spans": json.dumps(listed),
            "camera_shake": float(np.median(shake[clear])) if clear.any() else None,
            "camera_jerk": jerk,
            **({why_null(self.name): why} if why else {}),
        }


def _jerk(whole: GlobalMotion, clear: np.ndarray, speeds: np.ndarray) -> float | None:
    """Of (m, 4) `speeds`: pan, tilt, zoom and roll of the content, all in picture heights per second. None where no
    two neighbouring intervals are clear."""
    both = clear[1:] & clear[:-1]
    if not both.any():
        return None
    changes = np.linalg.norm(np.diff(speeds, axis=0), axis=1) / np.diff(whole.times.mean(axis=1)).clip(1e-3)
    return float(np.quantile(changes[both], 0.95))


def _move_and_shake(whole: GlobalMotion, clear: np.ndarray, speeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, 4) `speeds` smoothed over time, and (m,) how fast the picture moves around that, itself smoothed."""
    middle = whole.times.mean(axis=1)
    kernel = np.maximum(0, 1 - np.abs(middle[:, None] - middle) / SMOOTH) * (whole.seconds * clear)
    kernel /= np.maximum(kernel.sum(axis=1, keepdims=True), 1e-9)
    move = kernel @ speeds
    unsteady = np.sqrt(((speeds - move) ** 2).sum(axis=1))
    return move, kernel @ unsteady


def _spans(whole: GlobalMotion, clear: np.ndarray, move: np.ndarray, shake: np.ndarray) -> list[tuple[int, int, str]]:
    """(first interval, last interval, label), in order; what has no label is left out."""
    labels = [_label(v, s) if ok else None for v, s, ok in zip(move, shake, clear, strict=True)]
    spans: list[tuple[int, int, str]] = []
    for k, label in enumerate(labels):
        if label is None:
            continue
        if spans and spans[-1][2] == label and whole.times[k, 0] - whole.times[spans[-1][1], 1] < SHORTEST:
            spans[-1] = (spans[-1][0], k, label)
        else:
            spans.append((k, k, label))
    return [span for span in spans if _real(whole, move, span)]


def _travels(clip: ClipView, whole: GlobalMotion, first: int, last: int, label: str) -> str:
    """`label`, or dolly_in or dolly_out for a zoom in which the parts of the picture keep growing at rates of their
    own, as near and far things do. Things that move by themselves would also turn parts, or shrink some."""
    part = slice(first, last + 1)
    if not label.startswith("zoom") or whole.seconds[part].sum() < TRAVEL:
        return label
    x, y = grid(whole.belief.shape[1], whole.belief.shape[2], aspect(clip))
    zoom, roll = whole.zoom[part, None, None], whole.roll[part, None, None]
    right, down = whole.residual[part, ..., 0] + zoom * x - roll * y, whole.residual[part, ..., 1] + zoom * y + roll * x
    weight = whole.belief[part] * (whole.seconds * whole.valid)[part, None, None]
    sums = ((right * x + down * y) * weight, (down * x - right * y) * weight, (x * x + y * y) * weight)
    grown, turned, size = (
        cv2.resize(one.sum(axis=0).astype(np.float32), PARTS, interpolation=cv2.INTER_AREA) for one in sums
    )
    share = size * (cv2.resize(x * x + y * y, PARTS, interpolation=cv2.INTER_AREA) > MIDDLE**2)
    share /= max(float(share.sum()), 1e-9)
    growth, turn = grown / np.maximum(size, 1e-9), turned / np.maximum(size, 1e-9)
    mean = float((share * growth).sum())
    spread = float(np.sqrt((share * (growth - mean) ** 2).sum()))
    turning = float(np.sqrt((share * (turn - (share * turn).sum()) ** 2).sum()))
    alike = float(share[growth * mean > 0].sum()) > 0.999
    travels = spread > PARALLAX * abs(mean) and turning < min(TURNING[0] * spread, TURNING[1] * abs(mean))
    return label.replace("zoom", "dolly") if alike and travels else label


def _real(whole: GlobalMotion, move: np.ndarray, span: tuple[int, int, str]) -> bool:
    first, last, label = span
    seconds = whole.seconds[first : last + 1, None]
    if seconds.sum() < SHORTEST:
        return False
    return label in ("static", "handheld") or bool(
        np.abs((move[first : last + 1] * seconds).sum(axis=0)).max() >= MOVED
    )


def _label(move: np.ndarray, shake: float) -> str | None:
    speed = float(np.linalg.norm(move))
    if speed < STILL and shake < STEADY:
        return "static"
    if shake > SHAKY and speed < 1.5 * shake:
        return "handheld"
    kind = int(np.abs(move).argmax())
    if speed >= STILL and abs(move[kind]) >= PURE * speed:
        return LABELS[kind][int(move[kind] > 0)]
    return None


def _confidence(label: str, spans: list[tuple[int, int, str]], move: np.ndarray, shake: np.ndarray) -> float:
    """0.5 to 1: how far the label's intervals lie from where they would be called something else."""
    inside = np.concatenate([np.arange(a, b + 1) for a, b, name in spans if name == label])
    speed, unsteady = np.linalg.norm(move[inside], axis=1), shake[inside]
    if label == "static":
        far = 1 - np.maximum(speed / STILL, unsteady / STEADY)
    elif label == "handheld":
        far = 1 - np.maximum(SHAKY / unsteady, speed / (1.5 * unsteady))
    else:
        far = (np.abs(move[inside]).max(axis=1) / speed - PURE) / (1 - PURE)
    return float(0.5 + 0.5 * np.clip(far, 0, 1).mean())
