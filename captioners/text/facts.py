"""Claims of a caption held against what was measured of the clip."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captioners.text.claims import Claim
from captioners.text.phases import Phase, camera_spans, motion_phases

PAIRS = [("left", "right"), ("up", "down"), ("pan_left", "pan_right"), ("tilt_up", "tilt_down")]
PAIRS += [("zoom_in", "zoom_out"), ("roll_left", "roll_right")]
OPPOSITE = {**dict(PAIRS), **{second: first for first, second in PAIRS}}
# What a measured label also answers to: moving forward looks like zooming in until parallax shows.
ALSO = {"dolly_in": "zoom_in", "dolly_out": "zoom_out"}
SURE = 0.6  # confidence of the camera label under which it contradicts nothing
PAUSE = 0.5  # seconds without motion that "stops" may mean
CLEAR = 0.1  # picture heights a second: motion above this is no stillness
MOVES, STIRS = 0.4, 0.2  # shares of the time in which something moves that "still" and "completely still" do not allow
ALTOGETHER = re.compile(r"completely|perfectly|entirely|motionless|\bno\b|nothing", re.IGNORECASE)
MOVED = 0.4  # share of the time in which the camera moves that a text may not call still and say no more of
DARK, BRIGHT = 0.12, 0.45  # mean luma of a clip, 0 to 1


@dataclass(frozen=True)
class Facts:
    """What was measured; None where it was not."""

    duration: float
    camera: tuple[tuple[str, float, float], ...] | None  # label, start, end
    phases: tuple[Phase, ...] | None
    luma: float | None  # mean, 0 to 1


def facts_of(scores: Mapping[str, Any], duration: float) -> Facts:
    phases = motion_phases(scores, duration)
    camera = [(ALSO.get(label, label), a, b) for label, a, b in camera_spans(scores, duration, SURE)]
    return Facts(
        duration, tuple(camera) or None, None if phases is None else tuple(phases), scores.get("exposure_luma")
    )


def contradiction(claim: Claim, facts: Facts, start: float = 0.0, end: float | None = None) -> str | None:
    """Why `claim`, made of the time from `start` to `end`, cannot be true; None when it can or nothing is known."""
    end = facts.duration if end is None else end
    if claim.kind == "scenes":
        return f"{claim.words!r}, but the clip is one shot"
    if claim.kind == "light":
        return _light(claim, facts)
    if claim.kind == "camera":
        return _camera(claim, [label for label, a, b in facts.camera or () if a < end and b > start])
    if facts.phases is None:
        return None
    phases = [phase for phase in facts.phases if phase.start < end and phase.end > start]
    if claim.kind == "direction":
        ways = {phase.direction for phase in phases} - {""}
        if OPPOSITE[claim.value] in ways and claim.value not in ways:
            return f"{claim.words!r}, but the moving region goes {OPPOSITE[claim.value]}"
    if claim.kind == "place" and phases:
        sides = [(phase.begin[0] + phase.finish[0]) / 2 for phase in phases]
        if claim.value == "at_left" and min(sides) > 0.6:
            return f"{claim.words!r}, but what moves is on the right"
        if claim.value == "at_right" and max(sides) < 0.4:
            return f"{claim.words!r}, but what moves is on the left"
    if claim.kind == "still":
        moving = sum(min(p.end, end) - max(p.start, start) for p in phases if p.speed > CLEAR)
        if moving > (STIRS if ALTOGETHER.search(claim.words) else MOVES) * (end - start):
            return f"{claim.words!r}, but part of the picture moves for {moving:.1f} s"
    if claim.kind == "motion" and not phases:
        return f"{claim.words!r}, but nothing moves"
    return None


def only_still(said: Sequence[Claim], facts: Facts) -> tuple[Claim, str] | None:
    """The claim that the camera is still, and why it is wrong, where a text says nothing else of a camera that moves
    for much of the clip."""
    told = [claim for claim in said if claim.kind == "camera"]
    moved = sum(b - a for label, a, b in facts.camera or () if label != "static")
    if not told or any(claim.value != "static" for claim in told) or moved < MOVED * facts.duration:
        return None
    return told[0], f"{told[0].words!r}, but the camera moves for {moved:.1f} of {facts.duration:.1f} s"


def order_error(said: Sequence[Claim], facts: Facts) -> tuple[Claim, str] | None:
    """The first claim that is told after something that was measured to come later, and why."""
    camera = [(label, a, b) for label, a, b in facts.camera or ()]
    told = [claim for claim in said if claim.kind == "camera"]
    if len(told) == len(camera) > 1 and [claim.value for claim in told] != [label for label, _, _ in camera]:
        measured = ", then ".join(label.replace("_", " ") for label, _, _ in camera)
        return told[0], f"{' and '.join(repr(claim.words) for claim in told)}, but the camera was measured: {measured}"
    motion: list[tuple[str, float, float]] = []
    for i, phase in enumerate(facts.phases or ()):
        motion.append((phase.direction, phase.start, phase.end))
        until = facts.phases[i + 1].start if facts.phases and i + 1 < len(facts.phases) else facts.duration
        if until - phase.end >= PAUSE:
            motion.append(("stop", phase.end, until))
    for kinds, events in ((("camera",), camera), (("direction", "stop"), motion)):
        before: tuple[Claim, float] | None = None
        for claim in said:
            spans = [(a, b) for value, a, b in events if value == claim.value] if claim.kind in kinds else []
            if not spans:
                continue
            later = [(a, b) for a, b in spans if before is None or b > before[1]]
            if not later:
                assert before is not None
                return claim, f"{claim.words!r} is told after {before[0].words!r}, which happens later"
            before = claim, later[0][0]
    return None


def _camera(claim: Claim, labels: Sequence[str]) -> str | None:
    if not labels or claim.value in labels:
        return None
    measured = ", then ".join(label.replace("_", " ") for label in labels)
    if claim.value in ("static", "handheld") or OPPOSITE.get(claim.value) in labels or set(labels) <= {"static"}:
        return f"{claim.words!r}, but the camera was measured: {measured}"
    return None


def _light(claim: Claim, facts: Facts) -> str | None:
    if facts.luma is None:
        return None
    if claim.value == "dark" and facts.luma > BRIGHT:
        return f"{claim.words!r}, but the picture is bright (mean luma {facts.luma:.2f})"
    if claim.value == "bright" and facts.luma < DARK:
        return f"{claim.words!r}, but the picture is dark (mean luma {facts.luma:.2f})"
    return None
