"""Labels by people: clips as good or bad, and files by their defects."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.recipe import Bounds
from pipeline.dataset.finish import DatasetError

GOOD, BAD = ("good", "1", "true", "yes"), ("bad", "0", "false", "no")

# Column with a threshold -> label fields; the threshold is right to reject a file if one of them is true.
DEFECTS = {
    "borders_area": ("letterbox",),
    "interlacing_share": ("interlaced",),
    "interlacing_scaled": ("interlaced",),
    "frozen_share": ("static_picture",),
    "logo_area": ("overlay_logo", "overlay_text"),
    "text_area": ("overlay_text", "overlay_logo"),
    "text_overlay": ("overlay_text", "overlay_logo"),
    "text_subtitle": ("overlay_text", "overlay_logo"),
    "marks_likeness": ("overlay_logo", "overlay_text"),
}
OF_ONE_SHOT = frozenset({"static_picture"})  # a file of several shots may lack these and yet have a shot with them
FLAWS = ("overlay_logo", "overlay_text", "interlaced", "letterbox", "static_picture")
Row = Mapping[str, Any]


class LabelError(DatasetError):
    """Labels that cannot be used; the message says which file, line and why."""


@dataclass(frozen=True)
class Judgement:
    """The effect of a threshold on labelled clips. A rejected clip is `right` if a label names its defect, `wrong` if a
    label denies it, or if no label covers the defect and the file `is_good`, otherwise `undecided`.
    `bad` and `caught` count clips of single-shot files that have the defect, and those of them that it rejects."""

    column: str
    right: int
    wrong: int
    undecided: int
    bad: int
    caught: int

    @property
    def precision(self) -> float:
        """NaN where nothing decided is rejected."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else float("nan")

    @property
    def recall(self) -> float:
        """NaN where no label names the defect."""
        return self.caught / self.bad if self.bad else float("nan")


def read_labels(path: Path | str) -> dict[str, bool]:
    """Return clip_id -> whether it is good, of a CSV file with the columns clip_id and label. Raises LabelError."""
    labels: dict[str, bool] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"clip_id", "label"} <= set(reader.fieldnames or ()):
                raise LabelError(f"{path}: the first line has to name the columns clip_id and label")
            for row in reader:
                label = (row["label"] or "").strip().lower()
                if label not in GOOD + BAD:
                    raise LabelError(f"{path}, line {reader.line_num}: label {row['label']!r} is not good, bad, 1 or 0")
                if labels.setdefault(row["clip_id"], label in GOOD) != (label in GOOD):
                    raise LabelError(f"{path}, line {reader.line_num}: {row['clip_id']} is labelled good and bad")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path} cannot be read: {error}") from error
    return labels


def read_file_labels(path: Path | str) -> dict[str, Row]:
    """Return file name -> its label row, of a JSON Lines file whose rows have the key `file`: a path relative to the
    folder of the sources. Raises LabelError."""
    labels: dict[str, Row] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row["file"]
        except (ValueError, KeyError, TypeError) as error:
            raise LabelError(f"{path}, line {number}: not a JSON object with the key file") from error
        if name in labels:
            raise LabelError(f"{path}, line {number}: {name} is labelled twice")
        labels[name] = row
    return labels


def file_of(uri: str, labels: Mapping[str, Row]) -> str | None:
    """Return the labelled file that a source's address ends with; None where there is none."""
    parts = uri.split("/")
    return next((name for k in range(len(parts)) if (name := "/".join(parts[k:])) in labels), None)


def is_good(label: Row) -> bool:
    """Return whether a file is filmed footage of a single shot without a labelled flaw."""
    return label.get("kind") == "filmed" and label.get("single_shot") is True and not any(map(label.get, FLAWS))


def has_defect(label: Row, column: str) -> bool | None:
    """Return whether the label of a file names the defect that a threshold on `column` rejects; None if it does not
    cover it."""
    fields = DEFECTS.get(column, ())
    answers = [label.get(name) for name in fields]
    if any(answers):
        return True
    other_shots = label.get("single_shot") is not True and not OF_ONE_SHOT.isdisjoint(fields)
    return None if not answers or None in answers or other_shots else False


def judge(rows: Sequence[tuple[Row, Row]], thresholds: Mapping[str, Bounds]) -> list[Judgement]:
    """Return the effect of each threshold on (clip, label of its file) pairs. Null scores are not counted."""
    judgements = []
    for column, bounds in thresholds.items():
        counts = dict.fromkeys(("right", "wrong", "undecided", "bad", "caught"), 0)
        for clip, label in rows:
            score = clip.get(column)
            measured = isinstance(score, (int, float, str)) and score == score  # neither null, a list nor NaN
            rejected = measured and not bounds.admit(score)
            defect = has_defect(label, column)
            if label.get("single_shot") is True and defect:
                counts["bad"] += 1
                counts["caught"] += rejected
            if rejected:
                wrong = defect is False or (column not in DEFECTS and is_good(label))
                counts["right" if defect else "wrong" if wrong else "undecided"] += 1
        judgements.append(Judgement(column, **counts))
    return judgements
