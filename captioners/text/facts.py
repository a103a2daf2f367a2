"""Comparison of a caption's claims with the clip's measurements."""

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
# Labels that are treated as equal: moving forward looks like zooming in until parallax shows.
ALSO = {"dolly_in": "zoom_in", "dolly_out": "zoom_out"}
SURE = 0.6  # confidence of the camera label under which it contradicts nothing
PAUSE = 0.5  # seconds without motion that count as a stop
CLEAR = 0.1  # picture heights a second: faster motion contradicts stillness
MOVES, STIRS = 0.4, 0.2  # "still" and "completely still" are wrong if something moves for more than this share
ALTOGETHER = re.compile(r"completely|perfectly|entirely|motionless|\bno\b|nothing", re.IGNORECASE)
MOVED = 0.4  # a caption that says only "static" is wrong if the camera moves for at least this share of the time


@dataclass(frozen=True)
class Facts:
    """Measurements of a clip; None if missing."""

    duration: float
    camera: tuple[tuple[str, float, float], ...] | None  # label, start, end
    phases: tuple[Phase, ...] | None


def facts_of(scores: Mapping[str, Any], duration: float) -> Facts:
    phases = motion_phases(scores, duration)
    camera = [(ALSO.get(label, label), a, b) for label, a, b in camera_spans(scores, duration, SURE)]
    return Facts(duration, tuple(camera) or None, None if phases is None else tuple(phases))


def contradiction(claim: Claim, facts: Facts, start: float = 0.0, end: float | None = None) -> str | None:
    """Return why `claim` about the time from `start` to `end` cannot be true; None if it can or is not measured."""
    end = facts.duration if end is None else end
    if claim.topic == "scenes":
        return f"{claim.words!r}, but the clip is one shot"
    if claim.topic == "camera":
        return _camera(claim, [label for label, a, b in facts.camera or () if a < end and b > start])
    if facts.phases is None:
        return None
    phases = [phase for phase in facts.phases if phase.start < end and phase.end > start]
    if claim.topic == "direction":
        ways = {phase.direction for phase in phases} - {""}
        if OPPOSITE[claim.value] in ways and claim.value not in ways:
            return f"{claim.words!r}, but the moving region goes {OPPOSITE[claim.value]}"
    if claim.topic == "still":
        moving = sum(min(p.end, end) - max(p.start, start) for p in phases if p.speed > CLEAR)
        if moving > (STIRS if ALTOGETHER.search(claim.words) else MOVES) * (end - start):
            return f"{claim.words!r}, but part of the picture moves for {moving:.1f} s"
    if claim.topic == "motion" and not phases:
        return f"{claim.words!r}, but nothing moves"
    return None


def only_still(text_claims: Sequence[Claim], facts: Facts) -> tuple[Claim, str] | None:
    """Return the claim that the camera is still, and why it is wrong, if a text claims nothing else about a camera that
    moves for a share of MOVED or more."""
    stated = [claim for claim in text_claims if claim.topic == "camera"]
    moved = sum(b - a for label, a, b in facts.camera or () if label != "static")
    if not stated or any(claim.value != "static" for claim in stated) or moved < MOVED * facts.duration:
        return None
    return stated[0], f"{stated[0].words!r}, but the camera moves for {moved:.1f} of {facts.duration:.1f} s"


def order_error(text_claims: Sequence[Claim], facts: Facts) -> tuple[Claim, str] | None:
    """Return the first claim that follows a claim measured to happen later, and why it is wrong."""
    camera = [(label, a, b) for label, a, b in facts.camera or ()]
    stated = [claim for claim in text_claims if claim.topic == "camera"]
    if len(stated) == len(camera) > 1 and [claim.value for claim in stated] != [label for label, _, _ in camera]:
        measured = ", then ".join(label.replace("_", " ") for label, _, _ in camera)
        return stated[
            0
        ], f"{' and '.join(repr(claim.words) for claim in stated)}, but the camera was measured: {measured}"
    motion: list[tuple[str, float, float]] = []
    for i, phase in enumerate(facts.phases or ()):
        motion.append((phase.direction, phase.start, phase.end))
        until = facts.phases[i + 1].start if facts.phases and i + 1 < len(facts.phases) else facts.duration
        if until - phase.end >= PAUSE:
            motion.append(("stop", phase.end, until))
    for topics, events in ((("camera",), camera), (("direction", "stop"), motion)):
        before: tuple[Claim, float] | None = None
        for claim in text_claims:
            spans = [(a, b) for value, a, b in events if value == claim.value] if claim.topic in topics else []
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
