"""Near-duplicates are found among many, in real pictures changed as copies on the web are; other pictures are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.media.video import Video
from pipeline.selection.duplicates import Pictures, equal_pairs, frame_hashes, groups, near_pairs


def recompressed(rgb: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], cv2.IMREAD_COLOR)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "scaled": lambda f: cv2.resize(f, None, fx=0.37, fy=0.37, interpolation=cv2.INTER_AREA),
    "recompressed": recompressed,
    "mirrored": lambda f: np.ascontiguousarray(f[:, ::-1]),
    "brighter": lambda f: np.clip(f * 1.15 + 12, 0, 255).astype(np.uint8),
    "blurred": lambda f: cv2.GaussianBlur(f, (0, 0), 2),
    "cropped by a twentieth": lambda f: f[f.shape[0] // 40 : -f.shape[0] // 40, f.shape[1] // 40 : -f.shape[1] // 40],
    "stretched": lambda f: cv2.resize(f, (f.shape[1], int(f.shape[0] * 1.3))),
    "with a logo": lambda f: cv2.rectangle(f.copy(), (8, 8), (f.shape[1] // 8, f.shape[0] // 10), (255, 255, 255), -1),
}


@pytest.fixture(scope="module")
def shots(sample_videos: dict[str, Path]) -> list[list[np.ndarray]]:
    """Four frames of each of some twenty stretches of real video that do not look alike."""
    shot_frames = []
    for path in sample_videos.values():
        with Video(str(path)) as video:
            frames = [f.rgb() for i, f in enumerate(video.frames()) if i % 3 == 0]
        shot_frames += [frames[i : i + 4] for i in range(0, len(frames) - 4, 8)]
    return shot_frames


def pictures(hashes: list[list[int]], embedding: np.ndarray | None = None, shot: np.ndarray | None = None) -> Pictures:
    flat = np.array([h for clip in hashes for h in clip], np.uint64)
    offsets = np.concatenate([[0], np.cumsum([len(clip) for clip in hashes])])
    return Pictures(flat, offsets, embedding, np.arange(len(hashes)) if shot is None else shot)


def distance(a: int, b: int) -> int:
    return (a ^ b).bit_count()


@pytest.mark.parametrize("copy_type", COPIES)
def test_a_copy_keeps_its_hash_within_the_default_bits(copy_type: str, shots: list[list[np.ndarray]]) -> None:
    distances = [distance(frame_hashes([s[0]])[0], frame_hashes([COPIES[copy_type](s[0])])[0]) for s in shots]
    assert np.mean(np.array(distances) <= 10) >= 0.8, distances


def test_different_shots_are_far_apart(shots: list[list[np.ndarray]], sample_videos: dict[str, Path]) -> None:
    half = len(shots) // 2
    hashes = [frame_hashes([s[0]])[0] for s in shots]
    across = [distance(a, b) for a in hashes[:half] for b in hashes[half:]]
    assert np.mean(np.array(across) <= 10) < 0.01
    assert np.median(across) > 24


def test_flat_pictures_have_no_hash() -> None:
    black, grey = np.zeros((90, 160, 3), np.uint8), np.full((90, 160, 3), 128, np.uint8)
    assert frame_hashes([black, grey, np.zeros((1, 1, 3), np.uint8)]) == [0, 0, 0]
    assert not len(near_pairs(pictures([[0, 0], [0]]), 0.9, 10))


def test_copies_are_found_among_thousands_of_others(shots: list[list[np.ndarray]]) -> None:
    random = np.random.default_rng(0)
    originals = [frame_hashes(s) for s in shots[::3]]
    others = [[int(h) for h in random.integers(1, 2**63, 4)] for _ in range(5000)]
    copies = [
        frame_hashes([COPIES[k](f) for f in s]) for s in shots[::3] for k in ("scaled", "recompressed", "mirrored")
    ]
    pairs = near_pairs(pictures([*originals, *others, *copies]), 0.96, 10)
    first = len(originals) + len(others)
    hits = {(int(a), int(b)) for a, b in pairs}
    wanted = {(i // 3, first + i) for i in range(len(copies))}
    best = groups(pairs, np.arange(first + len(copies)))
    recall = np.mean([best[b] == best[a] for a, b in wanted])
    assert recall > 0.95
    assert not any(len(originals) <= a < first or len(originals) <= b < first for a, b in hits)


def test_embedding_and_hash_must_agree() -> None:
    hashes = [[0x9E3779B97F4A7C15], [0x9E3779B97F4A7C15], [0x0123456789ABCDEF]]
    embedding = np.array([[1, 0], [1, 0.02], [1, 0.01]], np.float32)
    assert near_pairs(pictures(hashes, embedding), 0.96, 10).tolist() == [[0, 1]]
    apart = np.array([[1, 0], [0, 1], [1, 0.01]], np.float32)
    assert near_pairs(pictures(hashes, apart), 0.96, 10).tolist() == []


@pytest.mark.parametrize(
    ("bits", "cosine", "same"), [(14, 0.9, True), (14, 0.8, False), (20, 0.9, False), (9, 0.8, True)]
)
def test_a_crop_may_move_a_hash_further_where_embeddings_leave_little_doubt(
    bits: int, cosine: float, same: bool
) -> None:
    first = 0x9E3779B97F4A7C15
    embedding = np.array([[1, 0], [cosine, (1 - cosine**2) ** 0.5]], np.float32)
    assert len(near_pairs(pictures([[first], [first ^ ((1 << bits) - 1)]], embedding), 0.75, 10)) == same


def test_parts_of_one_shot_are_not_copies_of_each_other() -> None:
    hashes = [[77 << 40]] * 3
    assert near_pairs(pictures(hashes, shot=np.array([5, 5, 6])), 0.96, 10).tolist() == [[0, 2], [1, 2]]


def test_a_clip_whose_frames_are_all_alike_still_meets_its_copies() -> None:
    still = [0x9E3779B97F4A7C15] * 8
    assert len(np.unique(groups(near_pairs(pictures([still] * 50), 0.96, 10), np.arange(50)))) == 1


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40), st.permutations(range(30)))
def test_the_keeper_is_the_best_of_all_that_are_connected(pairs: list[tuple[int, int]], rank: list[int]) -> None:
    parent = list(range(30))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in pairs:
        parent[root(a)] = root(b)
    keeper = groups(np.array(pairs, np.int64).reshape(-1, 2), np.array(rank))
    for i in range(30):
        assert keeper[i] == min((j for j in range(30) if root(j) == root(i)), key=lambda j: rank[j])


def test_equal_rows_are_linked() -> None:
    pairs = equal_pairs(np.array([5, 3, 5, 9, 5, 3], np.uint64))
    assert groups(pairs, np.arange(6)).tolist() == [0, 1, 0, 3, 0, 1]
