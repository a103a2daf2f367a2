"""How right the default recipe is on real footage with labels made by eye.

    python tests/benchmarks/filters/real_footage.py FOLDER [--cache FOLDER] [--processes 2] [--recipe embedded]
        [--all] [key=value ...]

FOLDER holds videos in sub-folders, one a source, and labels.jsonl: one object a file with `file`, `single_shot`, `cuts`
(seconds from the first frame), `gradual` ([start, end] each), `uncertain_at` (places that do not count),
`cuts_complete`, `kind`, `camera`, `overlay_logo`, `overlay_text`, `interlaced`, `letterbox`, `static_picture`; null is
undecided. Every file is scanned and every clip gets every score, without Ray; results are kept in --cache, so another
threshold or filter costs only itself. `key=value` changes the recipe.

It prints what happens to single shots and to cuts, how much good footage is lost and by what, precision and recall of
every threshold, how often the camera's label is given and right, and how right captions are. Good footage is filmed, of
a single shot, and without logo, lettering, combs, bars or a still picture. Files of one folder are of one source and
count as one where "sources" are named.

Labels are used as they are. disputed_labels.jsonl names those that the pictures contradict, or lack a defect, with the
evidence; what changes without them is printed beside. --all also runs on the same folder what judges the rest, which
takes much longer: planted_levels.py (the thresholds that no clip needs, and undamaged clips), live_camera.py (camera
labels under known moves), woven_fields.py (interlacing) and real_shots.py (shots of films joined from the clips).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby, pairwise, repeat
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from footage_cache import ScannedFile, scanned_file
from footage_captions import captions_section

from pipeline.config.recipe import Recipe, load_recipe
from pipeline.report.calibrate import judgement_table
from pipeline.report.labels import DEFECTS, has_defect, is_good, judge, read_file_labels

BENCHMARKS = Path(__file__).parents[1]
OTHERS = ("filters/planted_levels.py", "filters/live_camera.py", "media/woven_fields.py", "shots/real_shots.py")
NEAR = 0.1  # seconds between a boundary and the cut that it is taken for
UNCERTAIN = 0.3  # seconds around places left undecided, in which nothing counts
FADE = 0.15  # seconds that the ends of labelled dissolves and fades may be off
DISPUTED = Path(__file__).parent / "disputed_labels.jsonl"
FRAME = 1.5  # frames: less than this is missing between two shots of a hard cut

Label = Mapping[str, Any]
Span = tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "clipmill-real-footage")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--recipe", default="embedded")
    parser.add_argument("--all", action="store_true", help="also run the scripts in OTHERS on the folder")
    given = parser.parse_intermixed_args()
    recipe = load_recipe(given.recipe, given.overrides)
    labels = read_file_labels(given.folder / "labels.jsonl")
    with ProcessPoolExecutor(given.processes) as pool:
        files = list(pool.map(scanned_file, repeat(given.folder), labels, repeat(recipe), repeat(given.cache)))
    print(f"{len(files)} files of {len({source(file.name) for file in files})} sources, {len(clips_of(files))} clips")
    for file in files:
        if file.error:
            print(f"{file.name}: {file.error}")
    for section in (shots_section, loss_section, threshold_section, camera_section):
        print()
        print("\n".join(section(files, labels, recipe)))
    print()
    print("\n".join(captions_section(files, labels)), flush=True)
    for script in OTHERS if given.all else ():
        print(f"\n{script}", flush=True)
        subprocess.run([sys.executable, str(BENCHMARKS / script), str(given.folder)], check=True)


def disputed_files(*fields: str) -> set[str]:
    rows = [json.loads(line) for line in DISPUTED.read_text().splitlines()]
    return {row["file"] for row in rows if row["field"] in fields}


def source(name: str) -> str:
    return name.split("/")[0]


def clips_of(files: Iterable[ScannedFile]) -> list[dict[str, Any]]:
    return [clip for file in files for clip in file.clips]


def shots_section(files: Sequence[ScannedFile], labels: Mapping[str, Label], recipe: Recipe) -> list[str]:
    """Single shots that are split, gradual transitions that are none, and cuts of edited videos."""
    single = [file for file in files if labels[file.name].get("single_shot") is True]
    split, faded = [], []
    for file in single:
        label = labels[file.name]
        labelled = spans(label, file.start)
        boundaries = [span for span in transitions(file) if not uncertain(span, label, file.start)]
        boundaries = [span for span in boundaries if not overlaps(span, labelled)]
        if any(file.start < first and last < file.end for first, last in boundaries):
            split.append(file.name)
        if any(last - first > NEAR for first, last in boundaries):
            faded.append(file.name)
    hits = false = missed = 0
    for file in files:
        label = labels[file.name]
        if label.get("single_shot") is False:
            right, wrong, absent = cut_counts(file, label)
            hits, false = hits + right, false + wrong
            missed += absent if label.get("cuts_complete") is not False else 0
    precision, recall = hits / max(1, hits + false), hits / max(1, hits + missed)
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    return [
        f"single shots that are split: {len(split)} of {len(single)}: {', '.join(split)}",
        f"single shots with a false gradual transition: {len(faded)} of {len(single)}: {', '.join(faded)}",
        f"cuts of edited videos at {NEAR} s: {hits} found, {false} false, {missed} missed; "
        f"precision {precision:.3f}, recall {recall:.3f}, F1 {f1:.3f}",
    ]


def transitions(file: ScannedFile) -> list[Span]:
    """Where one shot ends and the next begins, seconds of the source; also what is left out at the file's ends."""
    shots = [
        (min(clip["start"] for clip in group), max(clip["end"] for clip in group))
        for _, group in groupby(file.clips, key=lambda clip: clip["shot_index"])
        for group in [list(group)]
    ]
    if not shots:
        return []
    step = 1 / max(file.clips[0]["fps"], 1.0)
    gaps = [(a[1], b[0]) for a, b in pairwise(shots)]
    if shots[0][0] - file.start > FRAME * step:
        gaps.insert(0, (file.start, shots[0][0]))
    if file.end - shots[-1][1] > max(FRAME * step, FADE):
        gaps.append((shots[-1][1], file.end))
    return gaps


def cut_counts(file: ScannedFile, label: Label) -> tuple[int, int, int]:
    """Boundaries that are cuts of the label, boundaries that are nothing, and cuts without a boundary. A boundary at a
    labelled dissolve or fade, or at an uncertain place, does not count."""
    cuts = [file.start + cut for cut in label.get("cuts") or ()]
    open_cuts, right, wrong = list(cuts), 0, 0
    for first, last in transitions(file):
        near = [cut for cut in open_cuts if first - NEAR <= cut <= last + NEAR]
        if near:
            open_cuts.remove(min(near, key=lambda cut: abs(cut - (first + last) / 2)))
            right += 1
        elif not uncertain((first, last), label, file.start) and not overlaps((first, last), spans(label, file.start)):
            wrong += 1
    absent = [cut for cut in open_cuts if not uncertain((cut, cut), label, file.start)]
    return right, wrong, len(absent)


def spans(label: Label, start: float) -> list[Span]:
    return [(start + a - FADE, start + b + FADE) for a, b in label.get("gradual") or ()]


def uncertain(span: Span, label: Label, start: float) -> bool:
    places = [(start + at - UNCERTAIN, start + at + UNCERTAIN) for at in label.get("uncertain_at") or ()]
    return overlaps(span, places)


def overlaps(span: Span, others: Iterable[Span]) -> bool:
    return any(span[0] <= b and a <= span[1] for a, b in others)


def reasons(clip: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Why the recipe rejects a clip: the columns whose threshold it fails, or what the scan dropped it for."""
    if clip["dropped"]:
        return [clip["dropped"]]
    return [column for column, bounds in recipe.select.thresholds.items() if not bounds.admit(clip.get(column))]


def loss_section(files: Sequence[ScannedFile], labels: Mapping[str, Label], recipe: Recipe) -> list[str]:
    """How much of the good footage is lost."""
    good = [file for file in files if is_good(labels[file.name])]
    whole, part, why, lost, total = [], [], Counter[str](), 0.0, 0.0
    for file in good:
        rejected = [(clip, names) for clip in file.clips if (names := reasons(clip, recipe))]
        seconds = sum(clip["end"] - clip["start"] for clip, _ in rejected)
        lost, total = lost + seconds, total + sum(clip["end"] - clip["start"] for clip in file.clips)
        for name in {name for _, names in rejected for name in names}:
            why[name] += 1
        if rejected or not file.clips:
            (whole if len(rejected) == len(file.clips) else part).append(file.name)
    pieces = Counter(name for file in good for clip in file.clips for name in reasons(clip, recipe))
    brief = [file.name for file in good if file.end - file.start < recipe.scan.min_seconds]
    return [
        f"good files: {len(good)} of {len({source(file.name) for file in good})} sources; "
        f"lost whole {len(whole)}, in part {len(part)}; of their time {lost / max(total, 1e-9):.3f}",
        f"lost whole: {', '.join(whole)}; shorter than scan.min_seconds: {len(brief)}",
        f"lost in part: {', '.join(part)}",
        "files by reason: " + ", ".join(f"{name} {count}" for name, count in why.most_common()),
        "pieces by reason: " + ", ".join(f"{name} {count}" for name, count in pieces.most_common()),
    ]


def threshold_section(files: Sequence[ScannedFile], labels: Mapping[str, Label], recipe: Recipe) -> list[str]:
    """What each threshold does to clips, and which files it rejects wrongly."""
    rows = [(clip, labels[file.name]) for file in files for clip in file.clips if not clip["dropped"]]
    judged = judge(rows, recipe.select.thresholds)
    lines = [judgement_table(judged, recipe.select.thresholds)]
    for row in judged:
        if row.wrong:
            alone = {row.column: recipe.select.thresholds[row.column]}
            wrong = {label["file"] for clip, label in rows if judge([(clip, label)], alone)[0].wrong}
            lines.append(f"{row.column} wrong: {', '.join(sorted(wrong))}")
    right, wrong = sum(row.right for row in judged), sum(row.wrong for row in judged)
    lines.append(f"all thresholds: {right} rejections right, {wrong} wrong = {right / max(1, right + wrong):.3f}")
    doubted = disputed_files("overlay_text", "overlay_logo", "flicker", "blocks")
    plain = judge([row for row in rows if row[1]["file"] not in doubted], recipe.select.thresholds)
    right, wrong = sum(row.right for row in plain), sum(row.wrong for row in plain)
    lines.append(
        f"without files whose label is disputed: {right} right, {wrong} wrong = {right / max(1, right + wrong):.3f}"
    )
    columns = [column for column, fields in DEFECTS.items() if "overlay_logo" in fields]
    marked = [clip for clip, label in rows if label.get("single_shot") is True and has_defect(label, "logo_area")]
    caught = sum(any(column in reasons(clip, recipe) for column in columns) for clip in marked)
    return [*lines, f"clips of single shots with a logo or text over them: {caught} of {len(marked)} rejected for that"]


def camera_section(files: Sequence[ScannedFile], labels: Mapping[str, Label], recipe: Recipe) -> list[str]:
    """Camera labels of single shots, against those given by eye."""
    counts, doubted = Counter[tuple[str, str | None]](), Counter[tuple[str, str | None]]()
    disputed = disputed_files("camera")
    for file in files:
        label = labels[file.name]
        if label.get("single_shot") is True and label.get("camera") not in (None, "unsure", "mixed"):
            pairs = [(label["camera"], clip["camera_label"]) for clip in file.clips if not clip["dropped"]]
            (doubted if file.name in disputed else counts).update(pairs)
    lines = [f"camera label: {agreement(counts + doubted)}", f"without disputed labels: {agreement(counts)}"]
    counts += doubted
    return lines + [f"  {wanted} -> {label}: {count}" for (wanted, label), count in counts.most_common()]


def agreement(counts: Counter[tuple[str, str | None]]) -> str:
    """Say how often a label was given and how often it was the one by eye, of (label by eye, label) pairs."""
    given = sum(count for (_, label), count in counts.items() if label is not None)
    right = sum(count for (wanted, label), count in counts.items() if label == wanted)
    return f"given for {given} of {counts.total()} clips, right for {right} of those"


if __name__ == "__main__":
    main()
