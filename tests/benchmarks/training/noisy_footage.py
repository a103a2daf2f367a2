"""A noisy corpus of known composition: real footage labelled by eye, planted with junk; and clean footage held out.

Files are split by their source, the folder that they are in. Of the sources to train on every file is in the corpus, a
fifth of them with another file's caption. Copies with junk are added: duplicates in another quality, slideshows of the
file's own frames, black pictures, and pictures with a title and a logo over them. Files of the other sources are held
out, those that are labelled one shot without logo, text, bars or still pictures. Captions are the labels' subject and
action.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from footage.defects import slideshow, underexpose, watermark

from pipeline.media.clip_reader import fit

HEIGHT = 256  # of the written files
LONGEST = 5.0  # seconds of a file that are planted with junk
HELD_OUT = 0.3  # share of the sources
WRONG_CAPTIONS = 0.2  # share of the files


def duplicate(video: np.ndarray) -> np.ndarray:
    """Return frames slightly brighter, and scaled down to three quarters and back."""
    height, width = video.shape[1:3]
    small = (round(0.75 * width), round(0.75 * height))
    out = np.stack([cv2.resize(cv2.resize(f, small, interpolation=cv2.INTER_AREA), (width, height)) for f in video])
    return cv2.convertScaleAbs(out.reshape(len(out), -1), alpha=0.97, beta=3).reshape(out.shape)


def titled(video: np.ndarray) -> np.ndarray:
    """Draw a title of two lines over the frames, and a logo in a corner."""
    out = watermark(video)
    height = video.shape[1]
    for frame in out:
        for text, y, size in (("BREAKING NEWS", 0.42, 2.4), ("subscribe today", 0.6, 1.9)):
            for colour, thick in (((0, 0, 0), 14), ((255, 255, 255), 4)):
                at = (round(0.1 * height), round(y * height))
                cv2.putText(frame, text, at, cv2.FONT_HERSHEY_DUPLEX, size * height / 480, colour, thick, cv2.LINE_AA)
    return out


# junk -> what it does to a video (n, h, w, 3) uint8 and the share of the files that get a copy with it
JUNK: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "duplicate": (duplicate, 0.2),
    "slideshow": (lambda video: slideshow(video, stills=max(2, len(video) // 50)), 0.08),
    "black": (lambda video: underexpose(video, 0.03), 0.05),
    "overlay": (titled, 0.15),
}


def write_footage(web: Path, folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Write the planted files to `folder`, if they are not there; return the files to train on and those held out:
    source (the original), file, caption, and junk ("none", "wrong caption" or a name in JUNK)."""
    labels = [json.loads(line) for line in (web / "labels.jsonl").read_text().splitlines()]
    sources = sorted({label["file"].split("/")[0] for label in labels})
    order = np.random.default_rng(0).permutation(len(sources))
    held_out = {sources[i] for i in order[: round(HELD_OUT * len(sources))].tolist()}
    described = [label for label in labels if label["main_subject"]]
    training = [label for label in described if label["file"].split("/")[0] not in held_out]
    rows = training_rows(training)
    clean = [x for x in described if x["file"].split("/")[0] in held_out and is_clean(x)]
    heldout_rows = [{"source": x["file"], "caption": caption(x), "junk": "none"} for x in clean]
    folder.mkdir(parents=True, exist_ok=True)
    for row in (*rows, *heldout_rows):
        row["file"] = str(web / row["source"])
        if row["junk"] in JUNK:
            name = row["source"].replace("/", "__").removesuffix(".mp4")
            path = folder / f"{name}__{row['junk']}.mp4"
            if not path.exists():
                write(web / row["source"], row["junk"], path)
            row["file"] = str(path)
    return rows, heldout_rows


def training_rows(labels: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return source, caption and junk of every file of the noisy corpus; a function of the labels alone."""
    rng = np.random.default_rng(1)
    wrong = sorted(rng.choice(len(labels), round(WRONG_CAPTIONS * len(labels)), replace=False).tolist())
    shifted = dict(zip(wrong, [*wrong[1:], wrong[0]], strict=True))  # captions change places among the wrong ones
    rows = []
    for i, label in enumerate(labels):
        text = caption(labels[shifted.get(i, i)])
        rows.append({"source": label["file"], "caption": text, "junk": "wrong caption" if i in shifted else "none"})
    for junk, (_, share) in JUNK.items():
        for i in sorted(rng.choice(len(labels), round(share * len(labels)), replace=False).tolist()):
            rows.append({"source": labels[i]["file"], "caption": rows[i]["caption"], "junk": junk})
    return rows


def is_clean(label: dict[str, Any]) -> bool:
    defects = ("overlay_logo", "overlay_text", "interlaced", "letterbox", "static_picture")
    return bool(label["single_shot"]) and not any(label[name] for name in defects)


def caption(label: dict[str, Any]) -> str:
    """Return the labels' subject and action as a sentence."""
    text = " ".join(part for part in (label["main_subject"], label["action"]) if part)
    return f"{text[0].upper()}{text[1:]}."


def write(source: Path, junk: str, path: Path) -> None:
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 25)
        stream.thread_type = "AUTO"
        width = round(HEIGHT * stream.width / stream.height / 2) * 2
        frames = []
        for frame in container.decode(video=0):
            frames.append(fit(frame.to_ndarray(format="rgb24")[None], HEIGHT, width)[0])
            if len(frames) >= LONGEST * fps:
                break
    video = JUNK[junk][0](np.stack(frames))
    part = path.with_suffix(".part")
    with av.open(str(part), "w", format="mp4") as container:
        out = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        out.height, out.width, out.pix_fmt = HEIGHT, width, "yuv420p"
        out.options = {"crf": "18", "preset": "ultrafast"}
        for frame in video:
            container.mux(out.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(out.encode(None))
    part.rename(path)
