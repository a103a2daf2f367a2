"""Real clips whose cuts and gradual transitions were labelled by eye, in a folder with `labels.jsonl`.

Their licences are in `manifest.jsonl` beside it. A clip's source is the first folder of its name. Labels are in seconds
from the first decoded frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from joined_films import fit

NEAR = 0.3  # seconds around a place left undecided that are not scored
BESIDE = 0.25  # seconds beside a gradual transition that belong to no piece: its limits are known to about 0.15


@dataclass(frozen=True)
class LabelledClip:
    """`gradual` is None where gradual transitions were not labelled; `complete` says that no cut is missing."""

    path: Path
    source: str
    licence: str | None
    single: bool
    cuts: tuple[float, ...]
    gradual: tuple[tuple[float, float], ...] | None
    uncertain: tuple[float, ...]
    complete: bool


def labelled(folder: Path) -> list[LabelledClip]:
    """The clips of a folder, those left undecided excepted."""
    rows = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    manifest = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    licences = {row["file"]: row["licence"] for row in manifest}
    return [
        LabelledClip(
            path=folder / row["file"],
            source=row["file"].split("/")[0],
            licence=licences.get(row["file"]),
            single=row["single_shot"],
            cuts=tuple(row["cuts"]),
            gradual=None if row["gradual"] is None else tuple(map(tuple, row["gradual"])),
            uncertain=tuple(row["uncertain_at"] or ()),
            complete=bool(row["cuts_complete"]),
        )
        for row in rows
        if row["single_shot"] is not None
    ]


def pieces(clip: LabelledClip, size: tuple[int, int], shortest: int = 20) -> Iterator[np.ndarray]:
    """The clip's shots between labelled transitions, (n, h, w, 3) uint8 RGB at `size` (width, height), cut to that
    aspect ratio; none of a clip whose labels are incomplete."""
    if not clip.complete or clip.gradual is None:
        return
    with av.open(str(clip.path), metadata_errors="replace") as container:
        container.streams.video[0].thread_type = "AUTO"
        decoded = [(f.pts, fit(f.to_ndarray(format="rgb24"), size)) for f in container.decode(video=0)]
        times = np.array([float((pts - decoded[0][0]) * container.streams.video[0].time_base) for pts, _ in decoded])
    usable = np.ones(len(times), bool)
    for first, last in clip.gradual:
        usable &= (times < first - BESIDE) | (times >= last + BESIDE)
    for place in clip.uncertain:
        usable &= np.abs(times - place) >= NEAR
    for start, end in pairwise([-np.inf, *clip.cuts, np.inf]):
        inside = usable & (times >= start + 0.06) & (times < end - 0.06)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], inside, [0]]).astype(int)))
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            if last - first >= shortest:
                yield np.stack([frame for _, frame in decoded[first:last]])
