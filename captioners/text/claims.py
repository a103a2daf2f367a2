"""Measurable claims of a text: camera, direction, stillness, motion, number of scenes."""

from __future__ import annotations

import re
from dataclasses import dataclass

SIDE = r"(?P<side>left|right)"
GO = (
    r"(?:mov|run|walk|rid|driv|cross|travel|head|go|glid|drift|slid|fl[iy]|swim|race|rac|rush|roll|danc|pass|hop|jump"
    r"|cycl|skat|sail|crawl|march|stroll|sprint)(?:e|es|s|ing|ning|ming|ping)?"
)
BIG = (
    r"(?:run|jump|leap|danc|sprint|gallop|rac|ski|surf|explod|chas|fight|tumbl|cartwheel|somersault|swim|fli|fly|rid"
    r"|driv|walk|climb|kick|throw)(?:e|es|s|ing|ning|ping|ming)"
)
CAMERA = (
    ("pan_{side}", rf"\bpan(?:s|ning|ned)?\b[^.;,]{{0,30}}?\b{SIDE}(?:ward)?s?\b"),
    (
        "pan_{side}",
        rf"\bcamera\b[^.;,]{{0,25}}?\b(?:mov|slid|swing|sweep|track|truck|shift|turn|rotat)(?:e|es|s|ing)\b"
        rf"[^.;,]{{0,20}}?\b{SIDE}(?:ward)?s?\b",
    ),
    ("tilt_up", r"\btilt(?:s|ing|ed)?\s+(?:\w+\s+)?up(?:ward)?s?\b"),
    ("tilt_down", r"\btilt(?:s|ing|ed)?\s+(?:\w+\s+)?down(?:ward)?s?\b"),
    (
        "zoom_in",
        r"\bzoom(?:s|ing|ed)?\s+(?:\w+\s+)?in\b|\bcamera\b[^.;,]{0,25}?\b(?:push|doll)\w*\s+in\b"
        r"|\bcamera\b[^.;,]{0,15}?\bmov\w+\s+(?:closer|forward)",
    ),
    (
        "zoom_out",
        r"\bzoom(?:s|ing|ed)?\s+(?:\w+\s+)?out\b|\bcamera\b[^.;,]{0,25}?\b(?:pull|doll)\w*\s+(?:out|back|away)\b"
        r"|\bcamera\b[^.;,]{0,15}?\bmov\w+\s+backwards?",
    ),
    ("roll_{side}", rf"\bcamera\b[^.;,]{{0,20}}?\broll(?:s|ing)\b[^.;,]{{0,15}}?\b{SIDE}\b"),
    (
        "static",
        r"\b(?:static|stationary|fixed|locked[- ]off)\s+(?:camera|shot|view|frame|framing)\b"
        r"|\bcamera\b[^.;,]{0,25}?\b(?:still|static|fixed|stationary|motionless|does not move)\b",
    ),
    ("handheld", r"\bhand-?held\b|\bshaky\b|\bcamera\s+shakes\b"),
)
DIRECTION = (
    ("{side}", rf"\bfrom\s+(?:the\s+)?(?:far\s+)?(?:left|right)\b[^.;,]{{0,30}}?\bto(?:wards?)?\s+(?:the\s+)?{SIDE}\b"),
    ("{side}", rf"\b(?:left|right)[- ]to[- ]{SIDE}\b"),
    ("{side}", rf"\b{SIDE}wards?\b"),
    ("{side}", rf"\b{GO}\b[^.;,]{{0,40}}?\b(?:to|towards?)\s+(?:the\s+|its\s+|his\s+|her\s+)?{SIDE}\b(?!\s+of\b)"),
    ("up", rf"\b{GO}\b\s+(?:\w+ly\s+|fast\s+)?up(?:wards?)?\b"),
    ("down", rf"\b{GO}\b\s+(?:\w+ly\s+|fast\s+)?down(?:wards?)?\b(?!\s+(?:the|a)\b)"),
)
STOP = (("stop", r"\b(?:stops|comes to a (?:stop|halt|standstill)|halts|stands still|nothing moves)\b"),)
STILL = (
    (
        "still",
        r"\bnothing\s+(?:\w+\s+)?moves\b|\bno\s+(?:visible\s+)?(?:movement|motion)\b|\bmotionless\b"
        r"|\b(?:completely|perfectly|entirely|remains?|stays?|holds?|stands?|sits?|lies?)\s+(?:\w+\s+)?(?:still|frozen)\b"
        r"|\bstill (?:image|photo|photograph|picture)\b",
    ),
)
MOTION = (("motion", rf"\b{BIG}\b"),)
SCENES = (
    (
        "scenes",
        r"\b(?:scene|video|shot|footage|clip|view|it)\s+(?:then\s+|suddenly\s+|now\s+)?"
        r"(?:cuts|switches|transitions|changes|shifts|fades|dissolves)\s+(?:to|into)\b"
        r"|\b(?:next|second|third|final|last|new|another|following)\s+(?:scene|shot|clip)\b"
        r"|\b(?:multiple|several|two|three|four|various|different)\s+(?:scenes|shots|clips)\b|\bmontage\b",
    ),
)
PATTERNS = {
    "camera": CAMERA,
    "direction": DIRECTION,
    "stop": STOP,
    "still": STILL,
    "motion": MOTION,
    "scenes": SCENES,
}
COMPILED = {k: [(v, re.compile(p, re.IGNORECASE)) for v, p in patterns] for k, patterns in PATTERNS.items()}
OF_CAMERA = re.compile(r"\b(?:camera|pan(?:s|ning)?|tilt(?:s|ing)?|zoom(?:s|ing)?|handheld|shot)\b", re.IGNORECASE)
GOES_ON = re.compile(
    r"^(?:and\s+|but\s+)?(?:then\s+)?(?:\w+ly\s+)?(?=(?:holds?|stays?|remains?|stops?|pans?|tilts?|zooms?|moves?|rolls?|is)\b)",
    re.IGNORECASE,
)  # a clause without a subject, which continues the previous clause
LATER = re.compile(r"\b(?:then|finally|first|eventually|afterwards?|before|until|briefly|end)\b", re.IGNORECASE)
CLAUSE = re.compile(r"[;.!?]+\s*|,\s+|\s+(?=(?:while|as|and then|but|before|after|until)\b)")
SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(]?[A-Z0-9])")


@dataclass(frozen=True)
class Claim:
    topic: str  # camera, direction, stop, still, motion or scenes
    value: str  # pan_left, right, still ...
    sentence: int
    words: str  # as written


def sentences(text: str) -> list[str]:
    """Split `text` into sentences, with their closing marks."""
    return [part.strip() for part in SENTENCE.split(text.strip()) if part.strip()]


def as_sentence(text: str) -> str:
    """Return `text` with a capital and one full stop; empty if `text` is."""
    text = text.strip().rstrip(".")
    return text[:1].upper() + text[1:] + "." if text else ""


def claims(text: str) -> list[Claim]:
    """Return the claims of `text` that measurements can contradict, in the order of the text.

    A clause about the camera makes only camera claims: "the camera pans left" claims nothing about the subject.
    """
    result = []
    for index, sentence in enumerate(sentences(text)):
        camera = False
        for clause in CLAUSE.split(sentence):
            if camera and GOES_ON.match(clause):
                clause = "the camera " + GOES_ON.sub("", clause)
            camera = OF_CAMERA.search(clause) is not None
            for topic, patterns in COMPILED.items():
                if (topic == "camera") != camera and topic != "scenes":
                    continue
                if topic == "still" and LATER.search(clause):
                    continue  # still for a part of the clip only
                result += _in_clause(topic, patterns, index, clause)
    return result


def _in_clause(topic: str, patterns: list[tuple[str, re.Pattern[str]]], index: int, clause: str) -> list[Claim]:
    result: list[Claim] = []
    for value, pattern in patterns:
        match = pattern.search(clause)
        if match is None:
            continue
        claimed = value.format(side=match.groupdict().get("side", "").lower()) if "{" in value else value
        if all(claim.value != claimed for claim in result):
            result.append(Claim(topic, claimed, index, match.group(0)))
    return result
