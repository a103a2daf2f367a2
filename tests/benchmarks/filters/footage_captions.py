"""How right captions of labelled footage are: against subject and action, and sentence by sentence.

The text is the short caption of a file's longest clip that the scan keeps. AUC: how often a file's text is nearer to
its own label than any file's text to another file's label, by the cosine of all-MiniLM-L6-v2.

caption_labels.jsonl judges sentences of the `measured` captioner by eye, one file of ../shared/web or of unseen/ a
line. They were judged with the captions in sight, on sheets of the sampled frames. A sentence is right if all that it
says is seen in the clip; "a person" is right for a hand or a drawn person, a direction if it is the one in the picture.
A sentence that is not in the list is not counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from footage_cache import ScannedFile

from captioners.text.claims import sentences

LABELS = Path(__file__).parent / "caption_labels.jsonl"
Label = Mapping[str, Any]


def captions_section(files: Sequence[ScannedFile], labels: Mapping[str, Label]) -> list[str]:
    """Lines on the captions of the default captioner."""
    from filters.encoders.minilm import SentenceEncoder

    texts = {file.name: caption for file in files if (caption := _longest(file)) is not None}
    named = [name for name in texts if labels[name].get("main_subject")]
    encoder = SentenceEncoder()
    captions_by_clip = np.stack([encoder(texts[name].short) for name in named])
    meant = np.stack([encoder(f"{labels[name]['main_subject']} {labels[name].get('action') or ''}") for name in named])
    near = captions_by_clip @ meant.T
    certain = np.array([texts[name].content > 0 for name in named])
    filmed = np.array([labels[name].get("kind") == "filmed" for name in named])
    lines = [f"captions: {len(texts)} files; AUC against subject and action, of how many"]
    for title, chosen in (("all", np.ones(len(named), bool)), ("filmed", filmed)):
        parts = (f"{_auc(near[np.ix_(c, c)]):.3f} of {int(c.sum())}" for c in (chosen, chosen & certain))
        lines.append(f"  {title}: {', whose subject the caption names '.join(parts)}")
    counts = {True: 0, False: 0, None: 0}
    wrong = []
    judged = _judged()
    for name, sentence in _sentences(files):
        right = judged.get((name, sentence))
        counts[right] += 1
        if right is False:
            wrong.append(f"{name}: {sentence}")
    total = counts[True] + counts[False]
    lines.append(
        f"sentences right: {counts[True]} of {total} = {counts[True] / max(1, total):.3f}; {counts[None]} not judged"
    )
    return lines + [f"  wrong: {line}" for line in wrong]


def _longest(file: ScannedFile) -> Any:
    clips = [clip for clip in file.clips if clip.get("caption") is not None]
    return max(clips, key=lambda clip: clip["end"] - clip["start"])["caption"] if clips else None


def _sentences(files: Sequence[ScannedFile]) -> Iterator[tuple[str, str]]:
    """Sentences of each file's longest clip."""
    for file in files:
        caption = _longest(file)
        for sentence in sentences(caption.dense) if caption else ():
            yield file.name, sentence


def _judged() -> dict[tuple[str, str], bool]:
    rows = [json.loads(line) for line in LABELS.read_text().splitlines()]
    return {(row["file"], text): key == "right" for row in rows for key in ("right", "wrong") for text in row[key]}


def _auc(near: np.ndarray) -> float:
    """Of a square of similarities: how often one on the diagonal exceeds one off it."""
    own = np.diag(near)
    other = near[~np.eye(len(near), dtype=bool)]
    return float((own[:, None] > other[None]).mean()) if len(near) > 1 else float("nan")
