"""How right found transitions are on films where every one is known: one row of figures, and what errors consist of.

F1: one-to-one matches of found and true transitions that overlap within 2 frames. Gradual: recall of dissolves, fades
and wipes. Purity: share of clips (spans between found transitions, of a second or more) without a single frame of a
transition, however faint, and without a cut. Kept: share of the frames of true shots (their span between transitions,
of a second or more) that are in such clips. False alarms: found transitions of which nothing is true, by what was
there instead.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from joined_films import Film

Spans = list[tuple[int, int]]  # of frames; equal numbers are a hard cut before that frame
Join = tuple[str, int, int]
GRADUAL = ("dissolve", "black", "white", "wipe")
LENGTHS = {"1-10": 10, "11-25": 25, "26-": 10**9}  # frames of gradual transitions
HEADER = "    F1  prec. recall  gradual  purity   kept  joins  clips    CPU s  false alarms on"


class Match(NamedTuple):
    """A true transition, and how many frames outside its first and last frames the match begins and ends: negative
    where frames of the transition stay in clips; None if it is missed."""

    join: Join
    outside: tuple[int, int] | None


class Score:
    """Counts over films."""

    def __init__(self) -> None:
        self.count: collections.Counter[str] = collections.Counter()
        self.seconds = 0.0
        self.misses: list[str] = []
        self.matches: list[Match] = []
        self.impure: collections.Counter[str] = collections.Counter()  # clips by what is wrong
        self.lost: collections.Counter[str] = collections.Counter()  # frames by why they are not kept
        self._films: list[tuple[list[Join], int, int]] = []  # true transitions, frames, frames of a second

    def add(self, film: Film, predicted: Spans) -> None:
        truth, total, least = film.joins, len(film.frames), round(film.fps)
        free = list(range(len(truth)))
        match: dict[int, tuple[int, int]] = {}
        for first, last in predicted:
            hit = [i for i in free if truth[i][1] - 2 <= last and first <= truth[i][2] + 2]
            if hit:
                best = min(hit, key=lambda i: abs(truth[i][1] - first))
                free.remove(best)
                match[best] = (truth[best][1] - first, last - truth[best][2])
                self.count["hit"] += 1
                self.count[f"hit {truth[best][0]}"] += 1
            elif not any(a - 2 <= last and first <= b + 2 for _, a, b in truth):
                what = [k for k, a, b in film.events if a - 3 <= last and first <= b + 3] or ["nothing"]
                self.count[f"false {what[0]}"] += 1
                self.misses.append(f"false {what[0]} {first}-{last}")
        self.misses += [f"missed {truth[i][0]} {truth[i][1]}-{truth[i][2]}" for i in free]
        self.matches += [Match(join, match.get(i)) for i, join in enumerate(truth)]
        self.count["true"] += len(truth)
        self.count["found"] += len(predicted)
        for effect, _, _ in truth:
            self.count[f"true {effect}"] += 1
        clips = [span for span in _between(predicted, total) if span[1] - span[0] >= least]
        for first, last in clips:
            inside = [i for i, (_, a, b) in enumerate(truth) if first < b and a < last and (a < b or first < a)]
            self.count["clips"] += 1
            self.count["pure"] += not inside
            if inside:
                effect, a, b = truth[inside[0]]
                self.misses.append(f"impure {first}-{last} by {effect} {a}-{b}")
                self.impure[self._why(truth, inside, match, first, last)] += 1
        self._count_frames(truth, total, least, predicted, clips)
        self._films.append((truth, total, least))

    def _why(self, truth: Sequence[Join], inside: list[int], match: dict[int, tuple[int, int]], *clip: int) -> str:
        missed = [truth[i][0] for i in inside if i not in match]
        if missed:
            return f"missed {missed[0]}"
        frames, effect = max((min(truth[i][2], clip[1]) - max(truth[i][1], clip[0]), truth[i][0]) for i in inside)
        return f"{effect} found {'1-2' if frames <= 2 else '3 or more'} frames too short"

    def _count_frames(self, truth: list[Join], total: int, least: int, predicted: Spans, clips: Spans) -> None:
        """Count what becomes of the frames of true shots of a second or more."""
        why = np.full(total, "clip under 1 s", dtype=object)
        for first, last in predicted:
            near = [k for k, a, b in truth if a - 2 <= last and first <= b + 2]
            why[first:last] = f"beside {near[0]}" if near else "false transition"
        for first, last in clips:
            why[first:last] = ""
        for first, last in _between([(a, b) for _, a, b in truth], total):
            if last - first >= least:
                self.lost.update(why[first:last].tolist())
        self.count["kept"], self.count["footage"] = self.lost[""], self.lost.total()

    def row(self) -> str:
        c = self.count
        recall, precision = c["hit"] / max(1, c["true"]), c["hit"] / max(1, c["found"])
        soft = sum(c[f"hit {k}"] for k in GRADUAL) / max(1, sum(c[f"true {k}"] for k in GRADUAL))
        wrong = ", ".join(f"{k[6:]} {v}" for k, v in sorted(c.items()) if k.startswith("false"))
        return (
            f"{2 * precision * recall / max(1e-9, precision + recall):6.3f} {precision:6.3f} {recall:6.3f} {soft:8.3f}"
            f" {c['pure'] / max(1, c['clips']):7.3f} {c['kept'] / max(1, c['footage']):6.3f} {c['true']:6}"
            f" {c['clips']:6} {self.seconds:8.1f}"
            f"  {wrong}"
        )

    def breakdown(self) -> str:
        """Recall and placement by kind and length of transition, why clips are impure and frames lost, and what a
        perfect detector would keep."""
        lines = [f"  {'':15} true found  frames trimmed before, after: mean (90th percentile)  boundaries too short"]
        groups = [(k, [m for m in self.matches if m.join[0] == k]) for k in ("cut", *GRADUAL)]
        shortest = 0
        for name, longest in LENGTHS.items():
            gradual = [m for m in self.matches if shortest < m.join[2] - m.join[1] <= longest]
            groups.append((f"{name} frames", gradual))
            shortest = longest
        for name, matches in groups:
            outside = np.array([m.outside for m in matches if m.outside is not None]).reshape(-1, 2)
            trimmed = np.maximum(outside, 0)
            sides = [f"{side.mean():5.1f} ({np.quantile(side, 0.9):4.1f})" for side in trimmed.T if len(side)]
            short = -outside[outside < 0]
            by = f", by {np.median(short):.0f} at the median, {short.max()} at most" if len(short) else ""
            lines.append(f"  {name:15} {len(matches):4} {len(outside):5}  {' '.join(sides):50}  {len(short)}{by}")
        total = max(1, self.lost.total())
        lines.append("  impure clips: " + (", ".join(f"{v} {k}" for k, v in self.impure.most_common()) or "none"))
        lines.append("  lost: " + ", ".join(f"{v / total:.3f} {k}" for k, v in self.lost.most_common() if k))
        bounds = [f"{self._bound(trim):.3f} with {trim}" for trim in (0, 1, 2, 3)]
        lines.append(
            f"  a perfect detector keeps {', '.join(bounds)} frames trimmed at both ends of gradual transitions,"
            f" {self._bound(None):.3f} with as many as this one trims on average at each kind"
        )
        return "\n".join(lines)

    def _bound(self, trim: int | None) -> float:
        """What a detector keeps that finds all transitions and nothing else, and trims `trim` frames at both ends of
        those that are gradual, or the mean of this score's matches of each kind."""
        means = {}
        for effect in GRADUAL:
            outside = [m.outside for m in self.matches if m.outside is not None and m.join[0] == effect]
            means[effect] = np.maximum(outside, 0).mean(axis=0) if outside else np.zeros(2)
        footage = kept = 0
        for truth, total, least in self._films:
            spans, true = [], [(a, b) for _, a, b in truth]
            for effect, a, b in truth:
                before, after = (0, 0) if effect == "cut" else means[effect] if trim is None else (trim, trim)
                spans.append((a - before, b + after))
            footage += sum(b - a for a, b in _between(true, total) if b - a >= least)
            kept += sum(b - a for a, b in _between(spans, total) if b - a >= least)
        return float(kept / max(1, footage))


def _between(spans: Sequence[tuple[float, float]], total: int) -> list[tuple]:
    """What lies between spans of frames, of `total` frames."""
    return [(a[1], b[0]) for a, b in pairwise([(0, 0), *sorted(spans), (total, total)])]
