"""Camera: its moves (pan, tilt, zoom, dolly, roll, handheld, static) with times and confidence, its shake and jerk.

A dolly is distinguished from a zoom by parallax, if there is any. An orbit has no label: its pictures cannot be
distinguished from those of a camera that pans with a moving subject.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa

from filters.base import ClipView, Score, Track, unknown, why_null
from filters.gradients import gradients
from filters.movement.global_motion import GlobalMotion, aspect, global_motion, grid, why_unseen
from filters.movement.steady_motion import SteadyMotion, steady_motion

SMOOTH_SHAKE, SMOOTH_MOVE = 0.75, 0.5  # seconds: half widths of the triangles that shake and moves are smoothed by
HELD = 0.6  # seconds before and after an interval over which the median of the static share is taken
STANDS = 0.2  # share of static textured cells from which the camera is static; a title over a moving one has 0.1
STILL = 0.02  # picture heights per second: a slower move does not count; tripods and gimbals drift slower
STEADY = 0.012  # picture heights per second: shake below which a camera that does not move is static
SHAKY = 0.02  # picture heights per second: shake above which the camera is handheld; in between there is no label
AGREED = 0.55  # share of the picture that must shake alike; otherwise a subject shakes, not the camera
EDGE = 1.5  # grey levels per proxy pixel: mean gradient of an edge
KEPT = 0.9  # share of its strength that an edge at one position keeps when gradients are averaged over the clip
SETTLED = 0.25  # share of such edges from which the camera stands, where a subject's motion hides whether it does
UNSETTLED = 0.06  # share of such edges below which nothing in the picture stands, so that the camera moves ...
WILD = 0.05  # ... and picture heights per second of shake above which it is handheld, whatever subjects do
PURE = 0.8  # share of a move's speed that must be in one component for a label
MOVED = 0.03  # picture heights that a labelled move covers at least
SHORTEST = 0.5  # seconds of the shortest span
SUPPORT = 0.3  # share of the picture that must follow one motion; otherwise the camera's motion is unknown
COVER = 0.6  # share of the time that the clip's label must hold for
GROWS = 0.52  # share of the picture that a zoom must move: rings on water, smoke and what comes near grow, too
TRAVEL = 1.0  # seconds from which a zoom is tested for a dolly
PARTS = (8, 5)  # parts of the picture, across and down, whose growth is compared
MIDDLE = 0.22  # picture heights: radius of the middle, which is excluded because nothing grows there
PARALLAX = 0.1  # of the mean growth: spread of the parts' growth from which there is parallax
TURNING = (0.6, 0.1)  # largest rotation of the parts, as fractions of that spread and of the mean growth

# Content motion -> what the camera does: the content of a pan to the left moves to the right.
LABELS = (("pan_right", "pan_left"), ("tilt_down", "tilt_up"), ("zoom_out", "zoom_in"), ("roll_right", "roll_left"))


class Camera:
    name = "camera"
    version = 6
    needs = frozenset({Track.LUMA, Track.FLOW})
    columns: Mapping[str, pa.DataType] = {
        "camera_label": pa.string(),  # of most of the clip: static, pan_left ... handheld; null when unsure
        "camera_confidence": pa.float32(),  # 0 to 1: share of the time it holds for, times how purely
        "camera_spans": pa.string(),  # JSON [{"label", "start", "end", "confidence"}], seconds from the clip's start
        "camera_shake": pa.float32(),  # median unsteady speed, picture heights/s; null where only subjects shake
        "camera_jerk": pa.float32(),  # 95th percentile of how fast its motion changes, picture heights/s^2
    }

    def score(self, clip: ClipView) -> dict[str, Score]:
        whole = global_motion(clip)
        if whole is None:
            return unknown(self, why_unseen(clip))
        radius = float(np.sqrt((aspect(clip) ** 2 + 1) / 12))  # root mean square distance from the centre, in heights
        lengths = np.array([1.0, 1.0, radius, radius])  # what turns zoom and roll into picture heights per second
        moments = _moments(whole, steady_motion(clip, whole), lengths, _settled(clip))
        spans = [(a, b, _travels(clip, whole, a, b, name)) for a, b, name in _spans(whole, moments)]
        observed = float(whole.seconds[whole.valid].sum())
        held: dict[str, float] = {}
        for first, last, name in spans:
            held[name] = held.get(name, 0.0) + float(whole.seconds[first : last + 1].sum())
        label = _of_most(held, observed, moments.settled)
        clear = whole.valid & (whole.support >= SUPPORT)
        jerk = _jerk(whole, clear, whole.theta * lengths)
        shake = _shake(moments)
        reasons = [
            *["no two neighbouring intervals with clear motion"] * (jerk is None),
            *[f"no single camera motion holds for {COVER:.0%} of the time"] * (label is None),
            *["subjects shake, not the whole picture"] * (shake is None),
        ]
        times = whole.times - clip.start
        listed = [
            {
                "label": name,
                "start": round(times[a, 0].item(), 3),
                "end": round(times[b, 1].item(), 3),
                "confidence": round(_confidence(name, [(a, b, name)], moments), 3),
            }
            for a, b, name in spans
        ]
        share = min(1.0, held[label] / observed) if label else 0.0
        return {
            "camera_label": label,
            "camera_confidence": None if label is None else _confidence(label, spans, moments) * share,
            "camera_spans": json.dumps(listed),
            "camera_shake": shake,
            "camera_jerk": jerk,
            **({why_null(self.name): "; ".join(reasons)} if reasons else {}),
        }


@dataclass(frozen=True)
class Moments:
    """Measurements of the camera in each of m intervals, smoothed over time."""

    move: np.ndarray  # (m, 4) pan, tilt, zoom and roll of the content, picture heights per second
    shake: np.ndarray  # (m,) picture heights per second
    agreement: np.ndarray  # (m,) share of the picture that shakes alike
    standing: np.ndarray  # (m,) share of the textured cells that are static; NaN if unknown
    support: np.ndarray  # (m,) share of the picture that follows `move`
    clear: np.ndarray  # (m,) bool: the background follows one motion
    settled: float  # share of the clip's edges that keep their position, 0 to 1; 1 if it cannot be measured


def _of_most(held: Mapping[str, float], observed: float, settled: float) -> str | None:
    """Return the label that holds for a share COVER of the `observed` seconds; "handheld" if only all moves together
    do, shake is one of them and nothing stands: a hand also drifts and turns."""
    label = max(held, key=lambda name: held[name], default=None)
    if label is None or held[label] >= COVER * observed:
        return label
    moving = sum(seconds for name, seconds in held.items() if name != "static")
    return "handheld" if "handheld" in held and moving >= COVER * observed and settled < UNSETTLED else None


def _moments(whole: GlobalMotion, steady: SteadyMotion, lengths: np.ndarray, settled: float) -> Moments:
    middle = whole.times.mean(axis=1)
    clear = whole.valid & (steady.support >= SUPPORT)
    near = np.abs(middle[:, None] - middle) <= HELD
    standing = np.array([_median(steady.standing[row]) for row in near])
    return Moments(
        move=_smooth(whole, clear, SMOOTH_MOVE, steady.theta * lengths),
        shake=_smooth(whole, clear, SMOOTH_SHAKE, steady.shake),
        agreement=_smooth(whole, whole.valid, SMOOTH_SHAKE, steady.agreement),
        standing=standing,
        support=steady.support,
        clear=clear,
        settled=settled,
    )


def _settled(clip: ClipView) -> float:
    """Return the share of the clip's edges that keep their position over its whole length; 1 without edges."""
    edges = gradients(clip.luma)
    if edges is None:
        return 1.0
    strong = edges.strength > EDGE
    return float((edges.kept[strong] > KEPT).mean()) if strong.any() else 1.0


def _median(values: np.ndarray) -> float:
    """Return the median of the finite `values`; NaN if there are none."""
    numbers = values[np.isfinite(values)]
    return float(np.median(numbers)) if len(numbers) else float("nan")


def _smooth(whole: GlobalMotion, clear: np.ndarray, half: float, values: np.ndarray) -> np.ndarray:
    """Average `values`, (m,) or (m, n), of the clear intervals with a triangular window of `half` seconds each way."""
    middle = whole.times.mean(axis=1)
    kernel = np.maximum(0, 1 - np.abs(middle[:, None] - middle) / half) * (whole.seconds * clear)
    kernel /= np.maximum(kernel.sum(axis=1, keepdims=True), 1e-9)
    smoothed: np.ndarray = kernel @ values.astype(np.float64)
    return smoothed


def _shake(moments: Moments) -> float | None:
    """Return the median shake of the clear intervals; None if there are none, or if it is that of a handheld camera but
    less than AGREED of the picture shakes alike: then subjects shake before a camera that is steady or follows them."""
    if not moments.clear.any():
        return None
    shake = float(np.median(moments.shake[moments.clear]))
    alike = float(np.median(moments.agreement[moments.clear])) >= AGREED
    return shake if alike or shake <= SHAKY else None


def _jerk(whole: GlobalMotion, clear: np.ndarray, speeds: np.ndarray) -> float | None:
    """Return the jerk from (m, 4) `speeds`: pan, tilt, zoom and roll of the content, in picture heights per second.
    None if no two neighbouring intervals are clear."""
    both = clear[1:] & clear[:-1]
    if not both.any():
        return None
    changes = np.linalg.norm(np.diff(speeds, axis=0), axis=1) / np.diff(whole.times.mean(axis=1)).clip(1e-3)
    return float(np.quantile(changes[both], 0.95))


def _spans(whole: GlobalMotion, moments: Moments) -> list[tuple[int, int, str]]:
    """Return (first interval, last interval, label) in order, without intervals that have no label."""
    labels = [_label(moments, k) for k in range(len(whole.times))]
    spans: list[tuple[int, int, str]] = []
    for k, label in enumerate(labels):
        if label is None:
            continue
        if spans and spans[-1][2] == label and whole.times[k, 0] - whole.times[spans[-1][1], 1] < SHORTEST:
            spans[-1] = (spans[-1][0], k, label)
        else:
            spans.append((k, k, label))
    return [span for span in spans if _real(whole, moments.move, span)]


def _travels(clip: ClipView, whole: GlobalMotion, first: int, last: int, label: str) -> str:
    """Return `label`, or dolly_in or dolly_out for a zoom in which parts of the picture grow at different rates, as
    near and far objects do. Objects that move by themselves would also rotate or shrink parts."""
    part = slice(first, last + 1)
    if not label.startswith("zoom") or whole.seconds[part].sum() < TRAVEL:
        return label
    x, y = grid(whole.belief.shape[1], whole.belief.shape[2], aspect(clip))
    zoom, roll = whole.zoom[part, None, None], whole.roll[part, None, None]
    right, down = whole.residual[part, ..., 0] + zoom * x - roll * y, whole.residual[part, ..., 1] + zoom * y + roll * x
    weight = whole.belief[part] * (whole.seconds * whole.valid)[part, None, None]
    sums = ((right * x + down * y) * weight, (down * x - right * y) * weight, (x * x + y * y) * weight)
    grown, turned, size = (
        cv2.resize(total.sum(axis=0).astype(np.float32), PARTS, interpolation=cv2.INTER_AREA) for total in sums
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


def _label(moments: Moments, k: int) -> str | None:
    """Return the label of interval `k`; None if it is not clear."""
    standing, move, shake = moments.standing[k], moments.move[k], float(moments.shake[k])
    if standing >= STANDS:
        return "static"
    unsure = "static" if moments.settled >= SETTLED and moments.agreement[k] < AGREED else None
    if not moments.clear[k]:
        return unsure
    speed = float(np.linalg.norm(move))
    if speed < STILL and shake < STEADY:
        return "static"
    if shake > SHAKY and speed < 1.5 * shake:
        if moments.agreement[k] >= AGREED or (moments.settled < UNSETTLED and shake > WILD):
            return "handheld"
        return unsure
    strongest = int(np.abs(move).argmax())
    if speed < STILL or abs(move[strongest]) < PURE * speed:
        return unsure
    label = LABELS[strongest][int(move[strongest] > 0)]
    return unsure if label.startswith("zoom") and moments.support[k] < GROWS else label


def _confidence(label: str, spans: list[tuple[int, int, str]], moments: Moments) -> float:
    """Return 0.5 to 1: the distance of the label's intervals from the thresholds to other labels."""
    inside = np.concatenate([np.arange(a, b + 1) for a, b, name in spans if name == label])
    speed, shake = np.linalg.norm(moments.move[inside], axis=1), moments.shake[inside]
    if label == "static":
        far = 1 - np.maximum(speed / STILL, shake / STEADY)
        far = np.fmax(far, (moments.standing[inside] - STANDS) / STANDS)
    elif label == "handheld":
        far = 1 - np.maximum(SHAKY / np.maximum(shake, SHAKY), speed / (1.5 * np.maximum(shake, SHAKY)))
    else:
        far = (np.abs(moments.move[inside]).max(axis=1) / np.maximum(speed, 1e-9) - PURE) / (1 - PURE)
    return float(0.5 + 0.5 * np.clip(far, 0, 1).mean())
