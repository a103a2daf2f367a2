"""Calibration: percentiles of each score and, with labelled clips, precision and recall of each threshold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.recipe import Bounds, from_dict
from pipeline.engine.progress import counted
from pipeline.report.histogram import number
from pipeline.report.labels import Judgement, LabelError, file_of, is_good, judge, read_file_labels, read_labels
from pipeline.storage.store import Store
from pipeline.tables import fragments
from pipeline.tables.columns import Columns

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
RECALLS = (0.5, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Spread:
    """The distribution of a score: its values at PERCENTILES, and how many clips have it or lack it."""

    name: str
    count: int
    missing: int
    percentiles: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """A threshold and its quality: `precision` is the share of the rejected clips that are bad,
    `recall` the share of the bad ones that are rejected, `lost` the share of the good ones that are rejected."""

    threshold: float
    precision: float
    recall: float
    lost: float

    @property
    def f1(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total > 0 else 0.0


@dataclass(frozen=True)
class Separation:
    """One score against the labels. `side` is the bound that rejects bad clips: min where they score lower. `auc` is
    the chance that a bad clip scores more to that side than a good one, 0.5 to 1 (half for equal scores)."""

    name: str
    side: str
    good: int
    bad: int
    auc: float
    best: Point | None  # highest F1; None if all scores are equal: no threshold separates
    recipe: Point | None  # where the dataset's recipe has its threshold, if it has one on this side
    curve: tuple[Point, ...]  # thresholds other than `best` with the highest precision that reaches each of RECALLS


def calibrate(dataset: Path | str, labels_file: Path | str | None = None) -> str:
    """Return tables as text: percentiles of every score and, with labels, precision and recall against threshold.

    Labels are a CSV file (columns clip_id and label: good or bad, 1 or 0), or JSON Lines (.jsonl) with the defects
    of each source file (pipeline/report/labels.py). Raises LabelError for labels that cannot be used,
    FileNotFoundError where there is no dataset.
    """
    store = Store(str(dataset))
    if not store.list("tables/clips", ".parquet"):
        raise FileNotFoundError(f"{dataset} has no clips table: build it first")
    thresholds = from_dict(json.loads(store.read("dataset.json"))["recipe"]).select.thresholds
    clips = Columns(store, "tables/clips", pa.schema([*fragments.CLIPS, ("rejected_by", pa.list_(pa.string()))]))
    parts = [_spread_table(spreads(clips))]
    if labels_file is not None and str(labels_file).endswith(".jsonl"):
        parts.append(_file_label_tables(clips, read_file_labels(labels_file), thresholds))
    elif labels_file is not None:
        labels = read_labels(labels_file)
        unknown = len(labels.keys() - set(clips["clip_id"].to_pylist()))
        if unknown == len(labels):
            raise LabelError(f"{labels_file} has no clip_id of {dataset}: labels of another dataset?")
        note = counted(len(labels) - unknown, "labelled clips") + (
            f", {unknown} that this dataset lacks" if unknown else ""
        )
        parts.append(f"{note}\n{_separation_table(separations(clips, labels, thresholds))}")
    return "\n\n".join(parts)


def spreads(clips: pa.Table | Columns) -> list[Spread]:
    """Return the percentiles of every numeric score column, in the table's order."""
    score_spreads = []
    for name in score_columns(clips.schema):
        values = fragments.floats(clips[name])
        finite = values[np.isfinite(values)]
        marks = tuple(np.percentile(finite, PERCENTILES).tolist()) if len(finite) else ()
        score_spreads.append(Spread(name, len(finite), len(values) - len(finite), marks))
    return score_spreads


def separations(
    clips: pa.Table | Columns, labels: Mapping[str, bool], thresholds: Mapping[str, Bounds] = MappingProxyType({})
) -> list[Separation]:
    """Return how well each score separates clips labelled bad (False) from those labelled good, best first. Scores
    without both bad and good clips are left out."""
    ids = clips["clip_id"].to_pylist()
    rows = np.array([row for row, clip in enumerate(ids) if clip in labels], np.int64)
    good = np.array([labels[ids[row]] for row in rows], bool)
    score_separations = []
    for name in score_columns(clips.schema):
        values = fragments.floats(clips[name])[rows]
        finite = np.isfinite(values)
        if (good & finite).any() and (~good & finite).any():
            score_separations.append(separation(name, values[finite], good[finite], thresholds.get(name)))
    return sorted(score_separations, key=lambda score: (-score.auc, score.name))


def separation(name: str, values: np.ndarray, good: np.ndarray, bounds: Bounds | None = None) -> Separation:
    """Separate finite scores `values` (n,) by the labels `good` (n,) bool, with at least one clip of each; `bounds` are
    the recipe's. As in selection, a score equal to the threshold is kept."""
    auc = _auc(values[~good], values[good])
    side = "min" if auc >= 0.5 else "max"
    points = _points(values, good, side)
    best = max(points, key=lambda point: (point.f1, -point.lost), default=None)
    reached = [[p for p in points if p.recall >= recall] for recall in RECALLS]
    curve = dict.fromkeys(
        max(candidates, key=lambda point: (point.precision, -point.lost)) for candidates in reached if candidates
    )
    limit = None if bounds is None else bounds.min if side == "min" else bounds.max
    return Separation(
        name=name,
        side=side,
        good=int(good.sum()),
        bad=int((~good).sum()),
        auc=max(auc, 1 - auc),
        best=best,
        recipe=None if limit is None else _point(limit, values < limit if side == "min" else values > limit, good),
        curve=tuple(point for point in curve if point != best),
    )


def score_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the numeric columns, without those of CLIPS."""
    return [
        field.name
        for field in schema
        if field.name not in fragments.CLIPS.names
        and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
    ]


def _points(values: np.ndarray, good: np.ndarray, side: str) -> list[Point]:
    """Return a threshold halfway between each two neighbouring scores; clips below it (side min) or above it are
    rejected. If all scores are equal, return none."""
    sign = 1 if side == "min" else -1
    signed = sign * values
    order = np.argsort(signed, kind="stable")
    ranked, bad = signed[order], ~good[order]
    ends = np.flatnonzero(np.diff(ranked) > 0)
    places = (ranked[ends] + ranked[ends + 1]) / 2
    rejected = ends + 1
    caught = np.append(0, np.cumsum(bad))[rejected]
    return [
        Point(float(sign * place), float(c / n), float(c / bad.sum()), float((n - c) / good.sum()))
        for place, n, c in zip(places, rejected, caught, strict=True)
    ]


def _point(threshold: float, rejected: np.ndarray, good: np.ndarray) -> Point:
    """Measure one threshold. Precision is NaN where nothing is rejected."""
    caught, lost = int((rejected & ~good).sum()), int((rejected & good).sum())
    precision = caught / (caught + lost) if caught + lost else float("nan")
    return Point(threshold, precision, caught / int((~good).sum()), lost / int(good.sum()))


def _auc(low: np.ndarray, high: np.ndarray) -> float:
    """Return the probability that one of `low` is below one of `high`; ties count half (Mann-Whitney U)."""
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, "left") + np.searchsorted(ordered, high, "right")
    return float(below.mean() / 2 / len(low))


def _spread_table(rows: Sequence[Spread]) -> str:
    head = ["score", "clips", "none", *(f"p{p}" for p in PERCENTILES)]
    blank = ("–",) * len(PERCENTILES)
    return _aligned(
        [
            head,
            *(
                [r.name, str(r.count), str(r.missing), *(map(number, r.percentiles) if r.count else blank)]
                for r in rows
            ),
        ]
    )


def _file_label_tables(
    clips: Columns, labels: Mapping[str, Mapping[str, Any]], thresholds: Mapping[str, Bounds]
) -> str:
    """Return a table of the thresholds' effect on the clips of labelled files."""
    columns = ["source_uri", "rejected_by", *(name for name in thresholds if name in clips)]
    rows = [(row, file_of(row["source_uri"], labels)) for row in clips.table(*columns).to_pylist()]
    labelled = [(row, labels[name]) for row, name in rows if name is not None]
    if not labelled:
        raise LabelError("no label names a source of the dataset that has clips: `file` is the end of a source_uri")
    present = {name for _, name in rows if name is not None}
    good = [not row["rejected_by"] for row, label in labelled if is_good(label)]
    kept = f", of which {sum(good) / len(good):.3f} are kept" if good else ""
    return (
        f"{counted(len(labelled), 'clips')} of {counted(len(present), 'labelled files')}, "
        f"{len(labels) - len(present)} that this dataset lacks; "
        f"{counted(len(good), 'clips')} of filmed single shots without a labelled defect{kept}\n"
        f"{judgement_table(judge(labelled, thresholds), thresholds)}"
    )


def judgement_table(judgements: Sequence[Judgement], thresholds: Mapping[str, Bounds]) -> str:
    """Return a table with one line a threshold, and what its columns mean."""
    lines = [["threshold", "kept within", "right", "wrong", "undecided", "precision", "bad", "recall"]]
    for row in judgements:
        bounds = thresholds[row.column]
        within = f"{number(bounds.min)} to {number(bounds.max)}"
        shares = ["–" if np.isnan(share) else f"{share:.3f}" for share in (row.precision, row.recall)]
        counts = [str(count) for count in (row.right, row.wrong, row.undecided)]
        lines.append([row.column, within, *counts, shares[0], str(row.bad), shares[1]])
    what = (
        "right, wrong, undecided: rejected clips whose label names the defect, denies it, or does not cover it (a file "
        "without any defect denies them all); bad: clips with the defect; recall: share of them that is rejected"
    )
    return f"{_aligned(lines)}\n{what}"


def _separation_table(rows: Sequence[Separation]) -> str:
    lines = [["score", "good", "bad", "AUC", "reject", "threshold", "precision", "recall", "good lost", "F1"]]
    for row in rows:
        start = [row.name, str(row.good), str(row.bad), f"{row.auc:.3f}"]
        for point in (row.recipe, row.best, *row.curve):
            if point is None:
                continue
            mark = " =" if point is row.recipe else " *" if point is row.best else ""
            shares = [
                "–" if np.isnan(share) else f"{share:.3f}"
                for share in (point.precision, point.recall, point.lost, point.f1)
            ]
            side = "below" if row.side == "min" else "above"
            lines.append([*start, side + mark, number(point.threshold), *shares])
            start = ["", "", "", ""]
        if row.best is None:
            lines.append([*start, "–", "none", "–", "–", "–", "–"])
    what = "= the recipe's threshold, * the highest F1; the others reach 50, 80, 90, 95 and 99% recall most precisely"
    if any(row.best is None for row in rows):
        what += "; none: the score is the same for all labelled clips, so that no threshold separates them"
    return f"{_aligned(lines)}\n{what}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
