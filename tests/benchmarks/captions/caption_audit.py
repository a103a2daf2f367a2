"""Recall and false alarms of the caption audit, by kind of planted error; no model, no video, seconds.

    python tests/benchmarks/captions/caption_audit.py [--dataset DATASET] [--captions FILE.jsonl] [--show]

Captions without errors: the `measured` captioner's, on random but consistent measurements or on a built dataset's
clips, and reference captions in people's words: those below, or a file of {"clip_id", "caption"} lines for the
dataset's clips. Into each an error of each kind is planted where it can be. Caught means: the audit rejects the
caption, or takes text out; alarms are the same on captions without an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

from caption_references import REFERENCE

from captioners.base import Action, Caption, ClipFrames
from captioners.measured.measured import Measured
from captioners.text.audit import audit
from captioners.text.claims import claims, sentences

DURATION = 6.0
TIMES = np.arange(0.1, DURATION, 0.2)
Pair = tuple[Caption, ClipFrames]


def clip(
    name: str, segments: list[tuple[str, float, float]], camera: list[tuple[str, float, float]], luma: float
) -> ClipFrames:
    """Measurements of a clip in which something goes right, left, up, down or stays (wiggles) in given seconds."""
    ways = {
        "right": (0.15, 0.85, 0.5, 0.5),
        "left": (0.85, 0.15, 0.5, 0.5),
        "up": (0.5, 0.5, 0.8, 0.2),
        "down": (0.5, 0.5, 0.2, 0.8),
        "stay": (0.5, 0.5, 0.5, 0.5),
    }
    x, y = np.full(len(TIMES), np.nan), np.full(len(TIMES), np.nan)
    speed = np.zeros(len(TIMES))
    for way, start, end in segments:
        inside = (start <= TIMES) & (end > TIMES)
        along = (TIMES[inside] - start) / (end - start)
        x0, x1, y0, y1 = ways[way]
        x[inside], y[inside] = x0 + (x1 - x0) * along, y0 + (y1 - y0) * along
        speed[inside] = max(0.7 * max(abs(x1 - x0) * 16 / 9, abs(y1 - y0)) / (end - start), 0.12)
    spans = [{"label": label, "start": a, "end": b} for label, a, b in camera]
    longest = max(camera, key=lambda span: span[2] - span[1])[0]
    return ClipFrames(
        name,
        DURATION,
        [],
        np.zeros(0),
        {
            "motion_times": TIMES.tolist(),
            "motion_speed": speed.tolist(),
            "motion_x": x.tolist(),
            "motion_y": y.tolist(),
            "motion_object": float(speed.mean()),
            "motion_area": 0.1,
            "camera_label": longest,
            "camera_confidence": 0.9,
            "camera_spans": json.dumps(spans),
            "exposure_luma": luma,
        },
    )


def reference() -> Iterator[Pair]:
    for i, (text, segments, camera, luma) in enumerate(REFERENCE):
        parts = sentences(text)
        yield Caption(f"reference{i}", parts[0], text), clip(f"reference{i}", segments, camera, luma)


def measured(count: int = 200) -> Iterator[Pair]:
    rng = np.random.default_rng(0)
    moves = ["pan_left", "pan_right", "tilt_up", "tilt_down", "zoom_in", "zoom_out", "static", "static"]
    captions = []
    for i in range(count):
        cut = float(rng.uniform(2, 4))
        ways = [str(w) for w in rng.choice(["right", "left", "up", "down", "stay"], 2, replace=False)]
        segments = [[], [(ways[0], 0.0, cut)], [(ways[0], 0.0, cut - 0.8), (ways[1], cut, 6.0)], [(ways[0], cut, 6.0)]][
            int(rng.integers(4))
        ]
        first, second = (str(m) for m in rng.choice(moves[:7], 2, replace=False))
        camera = [(first, 0.0, cut), (second, cut, 6.0)] if rng.random() < 0.4 else [(first, 0.0, 6.0)]
        captions.append(clip(f"measured{i}", segments, camera, float(rng.uniform(0.2, 0.6))))
    yield from of_clips(captions)


def of_clips(clips: list[ClipFrames]) -> Iterator[Pair]:
    for given, caption in zip(clips, Measured().caption(clips), strict=True):
        if isinstance(caption, Caption):
            yield caption, given


def dataset(folder: str) -> dict[str, ClipFrames]:
    import pyarrow.parquet as pq

    rows = [row for f in sorted(Path(folder, "tables/clips").glob("*.parquet")) for row in pq.read_table(f).to_pylist()]
    return {row["clip_id"]: ClipFrames(row["clip_id"], row["end"] - row["start"], [], np.zeros(0), row) for row in rows}


def reworded(caption: Caption, change: Callable[[str], str]) -> Caption | None:
    """The caption with `change` made to all its texts; None when that changes nothing."""
    actions = tuple(Action(change(a.text), a.start, a.end) for a in caption.actions)
    new = dataclasses.replace(
        caption,
        short=change(caption.short),
        dense=change(caption.dense),
        camera=change(caption.camera),
        actions=actions,
    )
    return None if new == caption else new


def swap_sides(text: str) -> str:
    if not any(c.topic == "direction" for c in claims(text)):
        return text
    parts = re.split(r"(?<=[.;])\s", text)
    swap = {"left": "right", "right": "left", "up": "down", "down": "up", "rises": "sinks down", "lowers": "raises"}
    pattern = r"\b(left|right|up|down|rises|lowers)\b"
    return " ".join(
        re.sub(pattern, lambda m: swap[m[1]], p) if any(c.topic == "direction" for c in claims(p)) else p for p in parts
    )


def swap_camera(text: str) -> str:
    swaps = {
        "pans left": "pans right",
        "pans right": "pans left",
        "to the left": "to the right",
        "tilts up": "tilts down",
        "tilts down": "tilts up",
        "zooms in": "zooms out",
        "zooms out": "zooms in",
        "pulls back": "pushes in",
    }
    for sentence in sentences(text):
        if "camera" in sentence.lower():
            for old, new in swaps.items():
                if old in sentence:
                    return text.replace(sentence, sentence.replace(old, new))
    return text


def static_camera(text: str) -> str:
    return re.sub(r"\b([Cc]amera) (pans|tilts|zooms|pulls)\b[^.;,]*", r"\1 stays still", text)


def still_for_moving(caption: Caption, given: ClipFrames) -> Caption | None:
    if given.scores["motion_object"] < 0.15:
        return None
    return dataclasses.replace(caption, dense=f"{caption.dense} The subject remains completely still.")


def swap_order(caption: Caption, _: ClipFrames) -> Caption | None:
    """The first two sentences that tell what moves change places."""
    parts = [p.strip() for p in re.split(r"(?<=[.;])\s|, then ", caption.dense)]
    claiming = [i for i, p in enumerate(parts) if any(c.topic in ("direction", "stop") for c in claims(p.rstrip(".;")))]
    if len(claiming) < 2:
        return None
    a, b = claiming[:2]
    parts[a], parts[b] = parts[b], parts[a]
    text = " ".join(p.rstrip(".;").removeprefix("Then ").capitalize() + "." for p in parts)
    return None if text == caption.dense else dataclasses.replace(caption, dense=text)


KINDS: dict[str, Callable[[Caption, ClipFrames], Caption | None]] = {
    "swapped direction": lambda c, _: reworded(c, swap_sides),
    "swapped order": swap_order,
    "opposite camera": lambda c, _: reworded(c, swap_camera),
    "static for moving camera": lambda c, _: reworded(c, static_camera),
    "still for moving subject": still_for_moving,
    "another scene": lambda c, _: dataclasses.replace(c, dense=c.dense + " The scene then cuts to a beach."),
    "invented object": lambda c, _: dataclasses.replace(c, dense=c.dense + " A giraffe stands beside it."),
    "refusal": lambda c, _: dataclasses.replace(c, dense="I'm sorry, but I cannot describe this clip."),
    "cut off": lambda c, _: dataclasses.replace(c, dense=c.dense + " Behind it there is a"),
    "loop": lambda c, _: dataclasses.replace(c, dense=c.dense + " and it goes on and on" * 6),
    "opener": lambda c, _: dataclasses.replace(c, dense="The video shows " + c.dense[0].lower() + c.dense[1:]),
}


def alarm(caption: Caption, given: ClipFrames) -> tuple[bool, list[str]]:
    """Return whether the audit detects an error, and why."""
    result = audit(caption, given)
    wrong = (
        result.rejected is not None or bool(result.score["audit_contradictions"]) or bool(result.score["audit_defects"])
    )
    return wrong, result.score["audit_reasons"]


def invented_by_similarity(pairs: list[Pair], folder: str) -> str:
    """How well the embedded encoder's similarity of a sentence to its clip's frames, the best of them, tells true
    sentences from invented ones: what the column similarity_sentence_min is made of."""
    import cv2
    import pyarrow.parquet as pq

    from filters.content.similarity import visual_sentences
    from filters.encoders.base import load_encoder

    frames: dict[str, list[np.ndarray]] = {}
    for file in sorted(Path(folder, "tables/frames").glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            bgr = cv2.imdecode(np.frombuffer(row["jpeg"], np.uint8), cv2.IMREAD_COLOR)
            frames.setdefault(row["clip_id"], []).append(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
    encoder = load_encoder("conse")
    things = ("giraffe", "tank", "jellyfish", "piano", "submarine", "pizza", "volcano", "crocodile", "rocket", "castle")
    false_texts = encoder.texts([f"A {noun} stands beside it." for noun in things])
    true, false = [], []
    for caption, _ in pairs:
        embedding = encoder.frames(np.stack(frames[caption.clip_id]))
        true += (encoder.texts(visual_sentences(caption.dense)) @ embedding.T).max(axis=1).tolist()
        false += (false_texts @ embedding.T).max(axis=1).tolist()
    above = np.mean([[t > f for f in false] for t in true])
    none, few = (np.mean(np.array(false) < np.quantile(true, share)) for share in (0.0, 0.05))
    counts = f"{len(true)} true against {len(false)} invented sentences"
    return f"AUC {above:.2f} of {counts}; recall {none:.2f} without a false alarm, {few:.2f} with 5%"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset")
    parser.add_argument("--captions", help='JSON lines of {"clip_id", "caption"} for the clips of the dataset')
    parser.add_argument("--show", action="store_true", help="print what was missed and what was a false alarm")
    given = parser.parse_args()
    sets: dict[str, list[Pair]] = {"measured": list(measured()), "reference": list(reference())}
    if given.dataset:
        clips = dataset(given.dataset)
        sets["measured"] = list(of_clips(list(clips.values())))
        if given.captions:
            lines = [json.loads(line) for line in Path(given.captions).read_text().splitlines() if line.strip()]
            sets["reference"] = [
                (Caption(x["clip_id"], sentences(x["caption"])[0], x["caption"]), clips[x["clip_id"]])
                for x in lines
                if x["clip_id"] in clips
            ]
    print(f"{'planted':28}" + "".join(f"{name:>22}" for name in sets))
    table: dict[str, dict[str, str]] = {}
    for name, pairs in sets.items():
        clean = [alarm(*pair) for pair in pairs]
        false = [p for p, (wrong, _) in zip(pairs, clean, strict=True) if wrong]
        table.setdefault("(nothing: false alarms)", {})[name] = f"{len(false)}/{len(pairs)}"
        if given.show:
            for caption, c in false:
                print("FALSE", caption.dense, alarm(caption, c)[1])
        for error_type, plant in KINDS.items():
            planted = [(bad, c) for caption, c in pairs if (bad := plant(caption, c)) is not None]
            caught = 0
            for bad, c in planted:
                hit, _ = alarm(bad, c)
                caught += hit
                if given.show and not hit:
                    print("MISSED", error_type, "|", bad.dense)
            share = f"{caught / len(planted):.2f}" if planted else "-"
            table.setdefault(error_type, {})[name] = f"{share} of {len(planted)}"
    if given.captions:
        print("invented object by similarity to the frames:")
        print(f"  {invented_by_similarity(sets['reference'], given.dataset)}")
    for error_type, row in table.items():
        print(f"{error_type:28}" + "".join(f"{row[name]:>22}" for name in sets))


if __name__ == "__main__":
    main()
