"""Precision and recall of thresholds that labelled footage does not need, on defects planted in real clips.

    python tests/benchmarks/filters/planted_levels.py FOLDER [--files 30]

FOLDER is labelled like that of real_footage.py. Of its good files (at most two a source) the first three seconds are
used, 360 lines at most, without borders. Each defect is planted at two levels: one that a viewer would not complain
about, or has to look for, and one that is plain at first sight. A threshold has to admit the first and reject the
second: precision is the share of plain ones among those it rejects, recall the share of plain ones that it rejects.
A score that is null rejects nothing. The last line counts clips as they are that any of these thresholds rejects.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import av
import cv2
import numpy as np
from footage import defects
from footage.synthetic import view
from known_clips import mpeg4, shaken, small

from filters import filter_of, load_filter
from filters.base import ClipView, score
from filters.overlays.borders import content_box
from pipeline.config.recipe import load_recipe
from pipeline.report.labels import is_good, read_file_labels

SCALED = "select.thresholds.interlacing_scaled={max: 0.75, missing: keep}"  # no recipe has this threshold
SECONDS = 3.2  # of a file that are used: frozen_share needs 3
Damage = Callable[[np.ndarray], np.ndarray]


def shake(video: np.ndarray, times: float) -> np.ndarray:
    """Film the video again, 0.8 of it, by a hand whose sway is `times` that of a person who stands, in 25 frames/s."""
    height, width = video.shape[1:3]
    across, down = shaken(1), shaken(2)
    out = np.empty_like(video)
    for k, frame in enumerate(video):
        offset = np.array([across(k / 25), down(k / 25)]) * times * height + 0.1 * np.array([width, height])
        affine = np.column_stack([0.8 * np.eye(2), offset])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        out[k] = cv2.warpAffine(frame, affine, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return out


def blended(video: np.ndarray) -> np.ndarray:
    """Each frame mixed with the next, as a simple deinterlacer leaves it."""
    following = np.concatenate([video[1:], video[-1:]])
    return ((video.astype(np.uint16) + following) // 2).astype(np.uint8)


def faded(video: np.ndarray) -> np.ndarray:
    gains = np.linspace(0.75, 1.0, len(video))[:, None, None, None]
    return np.round(video * gains).astype(np.uint8)


def woven_and_enlarged(video: np.ndarray, factor: float = 1.25) -> np.ndarray:
    return enlarged(defects.interlace(video), factor)


def enlarged(video: np.ndarray, factor: float = 1.25) -> np.ndarray:
    return np.stack([cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC) for frame in video])


# (column, level that must pass, its name, level that must be rejected, its name)
LEVELS: tuple[tuple[str, Damage, str, Damage, str], ...] = (
    (
        *("borders_area", lambda v: defects.letterbox(v, 0.24), "bars of 24% of the height, as of a film"),
        *(lambda v: defects.pillarbox(v, 0.6), "bars of 60% of the width, as beside an upright video"),
    ),
    (
        *("exposure_luma", lambda v: defects.underexpose(v, 0.6), "0.6 of the light"),
        *(lambda v: defects.underexpose(v, 0.04), "0.04 of the light"),
    ),
    (
        *("exposure_bright", lambda v: np.clip(v * 1.15, 0, 255).astype(np.uint8), "1.15 of the light"),
        *(lambda v: defects.overexpose(v, 6.0), "6 times the light"),
    ),
    (
        *("sharpness_detail", lambda v: defects.blur(v, 0.0015), "Gaussian of 0.5 pixels at 360 lines"),
        *(lambda v: defects.blur(v, 0.012), "Gaussian of 4 pixels at 360 lines"),
    ),
    (
        *("frozen_share", lambda v: defects.freeze(v, 0.4), "the last 40% are one frame"),
        *(defects.freeze, "one frame"),
    ),
    (
        *("frozen_repeats", lambda v: defects.repeat_frames(v)[: len(v)], "60 frames/s of 30"),
        *(lambda v: defects.repeat_frames(v, 3), "25 frames/s of 8"),
    ),
    ("camera_shake", lambda v: shake(v, 2), "twice a standing hand", lambda v: shake(v, 6), "six times its sway"),
    (
        *("flicker_luma", faded, "a quarter of the light lost over the clip"),
        *(lambda v: defects.flicker(v, 0.12), "12% of the light"),
    ),
    ("interlacing_share", blended, "fields blended", defects.interlace, "all frames woven"),
    ("interlacing_scaled", enlarged, "enlarged by 1.25", woven_and_enlarged, "woven, then enlarged by 1.25"),
    (
        *("blockiness_grid", lambda v: mpeg4(v, 4), "MPEG-4 at quantiser 4"),
        *(lambda v: defects.blocks(v, 6), "JPEG at quality 6"),
    ),
    (
        *("noise_sigma", lambda v: defects.grain(v, 2.5), "2.5 grey levels"),
        *(lambda v: defects.grain(v, 15.0), "15 grey levels"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=30)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    thresholds = load_recipe("embedded", [SCALED]).select.thresholds
    filters = {column: load_filter(filter_of(column)) for column, *_ in LEVELS}
    rejected: dict[str, list[int]] = {column: [0, 0, 0] for column in filters}  # pass level, plain level, null at plain
    controls: dict[str, list[str]] = {}
    names = []
    for name, video, fps in islice(clean_clips(given.folder), given.files):
        names.append(name)
        whole = looked(video, fps)
        failed = [c for c, f in filters.items() if not thresholds[c].admit(score(f, [whole])[0][c])]
        if failed:
            controls[name] = failed
        for column, fine, _, plain, _ in LEVELS:
            for level, damage in enumerate((fine, plain)):
                rate = 60.0 if column == "frozen_repeats" and level == 0 else fps
                value = score(filters[column], [looked(damage(video), rate)])[0][column]
                rejected[column][level] += not thresholds[column].admit(value)
                rejected[column][2] += level == 1 and value is None
    count = len(names)
    print(f"{count} clips of {len({name.split('/')[0] for name in names})} sources")
    for column, _, fine_name, _, plain_name in LEVELS:
        wrong, right, null = rejected[column]
        precision = f"{right / (right + wrong):.3f}" if right + wrong else "-"
        print(
            f"{column:19} precision {precision}, recall {right / count:.3f} (null {null}): "
            f"rejects {wrong} of {count} with {fine_name}, {right} of {count} with {plain_name}"
        )
    print(f"clips as they are that one of these rejects: {len(controls)} of {count} {controls or ''}")
    print("safety_nsfw_mean: recall not measured, no explicit footage")


def clean_clips(folder: Path) -> Iterator[tuple[str, np.ndarray, float]]:
    """(file, frames, frames/s) of good files of three seconds or more, at most two a source."""
    taken = Counter[str]()
    for name, label in read_file_labels(folder / "labels.jsonl").items():
        source = name.split("/")[0]
        if not is_good(label) or label.get("gradual") or taken[source] == 2:
            continue
        with av.open(str(folder / name)) as container:
            fps = float(container.streams.video[0].average_rate or 25)
            frames = [
                small(f.to_ndarray(format="rgb24")) for f in islice(container.decode(video=0), int(SECONDS * fps))
            ]
        if len(frames) >= int(SECONDS * fps) and fps >= 15:
            taken[source] += 1
            yield name, np.stack(frames), fps


def looked(video: np.ndarray, fps: float) -> ClipView:
    clip = view(video, fps)
    return dataclasses.replace(clip, box=content_box(clip.luma))


if __name__ == "__main__":
    main()
