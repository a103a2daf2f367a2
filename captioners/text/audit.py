"""The audit: check the form of captions and compare them with measurements; keep, repair or reject each."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from captioners.base import Action, Caption, ClipFrames
from captioners.text.camera_words import CAMERA
from captioners.text.claims import Claim, claims, sentences
from captioners.text.facts import Facts, contradiction, facts_of, only_still, order_error
from captioners.text.phases import motion_peaks
from captioners.text.text_quality import check_form, tells_order, unusable

VERSION = 5
AUDIT_COLUMNS: Mapping[str, pa.DataType] = {
    "audit_defects": pa.int32(),  # number of defects of form in the short and dense caption
    "audit_contradictions": pa.int32(),  # claims that measurements contradict, before repair
    "audit_missed": pa.float32(),  # share of motion peaks that no action's time covers; null without either
    "audit_faithfulness": pa.float32(),  # mean log-probability that the model confirms a statement; null without
    "audit_content": pa.float32(),  # the captioner's confidence in the content; 0: only motion, camera and colours
    "audit_repaired": pa.bool_(),
    "audit_reasons": pa.list_(pa.string()),  # all defects and contradictions, "topic: detail"
}
EARLY = 0.25  # seconds by which an action's times may miss a peak
SEPARATORS = re.compile(r"(;\s+|\s+while\s+)")


@dataclass(frozen=True)
class Audited:
    """`caption` is the caption after repair, None when it cannot be used: then `rejected` says why."""

    caption: Caption | None
    score: dict[str, Any]  # every column of AUDIT_COLUMNS
    rejected: str | None


def audit(caption: Caption, clip: ClipFrames, english: bool = True) -> Audited:
    """Checks `caption` against its own form and against `clip.scores`.

    Repairs never invent: text goes, or a measured statement of the camera takes the place of a wrong one. What is
    incomplete is only scored: thresholds are the recipe's. What a text claims is understood in `english` only:
    of other languages the form is checked, and the times of actions.
    """
    facts = facts_of(clip.scores, clip.duration)
    cut_off = bool(caption.usage.get("cut_off"))
    short, dense = (check_form(text, cut_off=cut_off, english=english) for text in (caption.short, caption.dense))
    score: dict[str, Any] = dict.fromkeys(AUDIT_COLUMNS)
    defects = list(dict.fromkeys([*short.defects, *dense.defects]))
    score["audit_content"] = caption.content
    score |= {"audit_defects": len(defects), "audit_contradictions": 0, "audit_repaired": False}
    score |= {"audit_faithfulness": caption.usage.get("faithfulness"), "audit_reasons": defects}
    rejected = dense.rejected or (short.rejected if short.rejected != "empty" else None)
    if rejected:
        return Audited(None, score, rejected)

    if not english:
        return _audit_form(caption, clip, short.text, dense.text, score)
    true_dense, reasons = _without_contradictions(dense.text, facts, whole=True)
    true_short, more = _without_contradictions(short.text, facts)
    late = order_error(claims(dense.text), facts)
    misordered = [f"order: {late[1]}"] if late else _order_of_actions(dense.text, caption.actions)
    actions, of_actions = _actions(caption.actions, facts)
    camera, of_camera = _camera(caption, facts)
    reasons = list(dict.fromkeys([*reasons, *more, *misordered, *of_actions, *of_camera]))
    phases = len(facts.phases or ())
    untold = phases > 1 and not tells_order(dense.text)
    score |= {
        "audit_contradictions": len(reasons),
        "audit_missed": _missed(caption.actions, clip),
        "audit_reasons": defects + reasons + [f"sequence: {phases} phases of motion told without order"] * untold,
    }
    unusable_reason = unusable(true_dense)
    if misordered or unusable_reason:
        return Audited(None, score, misordered[0] if misordered else reasons[0] if reasons else unusable_reason)
    repaired = dataclasses.replace(
        caption,
        short=next(text for text in (true_short, *sentences(true_dense), true_dense) if not unusable(text)),
        dense=true_dense,
        actions=actions,
        camera=camera,
        provenance={**caption.provenance, **({"camera": "measured: camera"} if of_camera else {})},
    )
    score["audit_repaired"] = repaired != caption
    return Audited(repaired, score, None)


def _audit_form(caption: Caption, clip: ClipFrames, short: str, dense: str, score: dict[str, Any]) -> Audited:
    """Audit a caption in a language other than English; `short` and `dense` are its texts after the check of form."""
    inside = [Action(a.text, max(0.0, a.start), min(clip.duration, a.end)) for a in caption.actions]
    actions = tuple(sorted((a for a in inside if a.end > a.start), key=lambda a: (a.start, a.end)))
    repaired = dataclasses.replace(caption, short=short or dense, dense=dense, actions=actions)
    score |= {"audit_missed": _missed(caption.actions, clip), "audit_repaired": repaired != caption}
    return Audited(repaired, score, None)


def _camera(caption: Caption, facts: Facts) -> tuple[str, list[str]]:
    """Return the camera field, or the measured camera if that contradicts it, and the reasons."""
    reasons = [f"camera: {why}" for claim in claims(caption.camera) if (why := contradiction(claim, facts))]
    return (_measured_camera(facts) if reasons else caption.camera), reasons


def _without_contradictions(text: str, facts: Facts, whole: bool = False) -> tuple[str, list[str]]:
    """Remove contradicted clauses (delimited by a semicolon or "while") or sentences from `text`, and replace a wrong
    statement of the camera by a measured one. Return the text and the reasons. A `whole` text is complete, so that it
    is also wrong if it says only that a moving camera is still."""
    reasons: list[str] = []
    kept: list[str] = []
    still = only_still(claims(text), facts) if whole else None
    for index, sentence in enumerate(sentences(text)):
        wrong = [(claim, why) for claim in claims(sentence) if (why := contradiction(claim, facts))]
        if still and still[0].sentence == index and all(claim.topic != "camera" for claim, _ in wrong):
            wrong.append(still)
        if not wrong:
            kept.append(sentence)
            continue
        reasons += [f"{claim.topic}: {why}" for claim, why in wrong]
        rest = _clauses_without(sentence, [claim for claim, _ in wrong])
        if rest:
            kept.append(rest)
        instead = _measured_camera(facts)
        if any(claim.topic == "camera" for claim, _ in wrong) and instead and instead not in kept:
            kept.append(instead)
    return " ".join(kept), reasons


def _clauses_without(sentence: str, wrong: list[Claim]) -> str:
    parts = SEPARATORS.split(sentence.rstrip(".!?"))
    kept = [part for part in parts[::2] if not any(claim.words in part for claim in wrong)]
    text = "; ".join(part.strip() for part in kept if part.strip())
    return text[0].upper() + text[1:] + "." if text else ""


def _measured_camera(facts: Facts) -> str:
    phrases = [CAMERA[label] for label, _, _ in facts.camera or () if label in CAMERA]
    return f"The camera {', then '.join(phrases)}." if phrases else ""


def _actions(actions: tuple[Action, ...], facts: Facts) -> tuple[tuple[Action, ...], list[str]]:
    """Return the actions that no measurement contradicts, in order, with times clamped to the clip, and the reasons for
    dropping the others."""
    kept, reasons = [], []
    for action in actions:
        start, end = max(0.0, action.start), min(facts.duration, action.end)
        if not end > start:
            reasons.append(f"action: {action.text!r} from {action.start:g} to {action.end:g} s is not inside the clip")
            continue
        why = [w for claim in claims(action.text) if (w := contradiction(claim, facts, start, end))]
        if why:
            reasons.append(f"action: {why[0]}")
        else:
            kept.append(Action(action.text, start, end))
    return tuple(sorted(kept, key=lambda a: (a.start, a.end))), reasons


def _order_of_actions(text: str, actions: tuple[Action, ...]) -> list[str]:
    """Return a reason if the text mentions two actions that do not overlap in time in the wrong order."""
    positions = [(action, _where(action.text, text)) for action in sorted(actions, key=lambda a: a.start)]
    located = [(action, position) for action, position in positions if position is not None]
    for (first, a), (second, b) in itertools.pairwise(located):
        if first.end <= second.start + EARLY and first.text != second.text and a > b:
            return [f"order: {second.text!r} is told before {first.text!r}, which happens earlier"]
    return []


def _where(action: str, text: str) -> int | None:
    """Return the index of the clause of `text` that shares the most words with `action`; None if none shares 60% of
    them or several share as many."""
    words = set(re.findall(r"\w+", action.lower())) - {"the", "a", "an", "and", "then", "is", "in", "on", "at", "of"}
    parts = [set(re.findall(r"\w+", part.lower())) for part in re.split(r"[.;]\s*|,? (?:then|while|before|and) ", text)]
    shares = [len(words & part) / max(1, len(words)) for part in parts]
    best = max(shares, default=0.0)
    return shares.index(best) if best >= 0.6 and shares.count(best) == 1 else None


def _missed(actions: tuple[Action, ...], clip: ClipFrames) -> float | None:
    peaks = motion_peaks(clip.scores, clip.duration)
    if not peaks or not actions:
        return None
    covered = [any(a.start - EARLY <= peak <= a.end + EARLY for a in actions) for peak in peaks]
    return 1.0 - sum(covered) / len(covered)
