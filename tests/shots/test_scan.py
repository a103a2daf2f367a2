"""A scan gives exact spans, tracks and frames of what is there, for good files and for damaged ones."""

from __future__ import annotations

import dataclasses
import pickle
from itertools import pairwise

import cv2
import numpy as np
import pytest
from footage.videos import pan, texture, write_video

from pipeline.config.recipe import Recipe, ScanOptions, load_recipe
from pipeline.media.isolation.sandbox import Sandbox
from pipeline.media.video import MediaError, Video
from pipeline.scan.scan import scan, segments
from pipeline.scan.tracks import crop_pixels
from pipeline.sources.discover import Source
from pipeline.tables.fragments import CLIPS, FRAMES

FPS = 25


def film(lengths, height=180, width=320, speed=1.5) -> list[np.ndarray]:
    """Shots of the given lengths in frames, each a moving picture of its own."""
    tints = [(1.0, 0.7, 0.5), (0.5, 0.8, 1.0), (0.8, 1.0, 0.6), (0.9, 0.5, 0.9)]
    shots = [(texture(i, height, width) * tints[i % 4]).astype(np.uint8) for i in range(len(lengths))]
    return [frame for shot, n in zip(shots, lengths, strict=True) for frame in pan(shot, n, speed)]


def recipe(**options) -> Recipe:
    return Recipe(scan=ScanOptions(**{"min_seconds": 1.0, **options}))


def spans(scanned) -> list[tuple[int, int]]:
    return [(round(c["start"] * FPS), round(c["end"] * FPS)) for c in scanned.clips]


@pytest.fixture(scope="module")
def three_shots(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "three.mp4"
    return write_video(path, film([40, 60, 12, 50]), FPS, bf="2", g="30", crf="20")


def test_shots_become_clips_with_exact_spans(three_shots):
    with Sandbox() as sandbox:
        scanned = sandbox.call(scan, Source("id", str(three_shots)), recipe(), deadline=300)
    assert spans(scanned) == [(0, 40), (40, 100), (100, 112), (112, 162)]
    assert [c["dropped"] for c in scanned.clips] == [None, None, "duration", None]
    assert [c["frames"] for c in scanned.clips] == [40, 60, 12, 50]
    with Video(str(three_shots)) as video:
        pts = [frame.pts for frame in video.frames()]
    for clip in scanned.clips:
        assert clip["start_pts"] in pts
        inside = [p for p in pts if clip["start_pts"] <= p < clip["end_pts"]]
        assert len(inside) == clip["frames"]
    assert set(CLIPS.names) <= set(scanned.clips[0])
    assert set(FRAMES.names) == set(scanned.frames[0])
    assert scanned.missing is None
    pickle.dumps(scanned)


def test_sampled_frames_show_their_moment(three_shots):
    scanned = scan(Source("id", str(three_shots)), recipe(frame_side=160))
    with Video(str(three_shots)) as video:
        truth = {
            round(frame.time, 4): cv2.resize(frame.rgb(), (160, 90), interpolation=cv2.INTER_AREA)
            for frame in video.frames()
        }
    named = {c["clip_id"]: c for c in scanned.clips}
    counts = {name: sum(f["clip_id"] == name for f in scanned.frames) for name in named}
    assert all((count == 1) if named[name]["dropped"] else (count > 1) for name, count in counts.items())
    for row in scanned.frames:
        clip = named[row["clip_id"]]
        assert clip["start"] <= row["time"] < clip["end"]
        picture = cv2.imdecode(np.frombuffer(row["jpeg"], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        assert picture.shape == (90, 160, 3)
        off = {moment: np.abs(picture.astype(int) - frame).mean() for moment, frame in truth.items()}
        assert min(off, key=off.get) == round(row["time"], 4)
        assert off[round(row["time"], 4)] < 8


def test_long_shots_are_cut_into_equal_parts(tmp_path):
    path = write_video(tmp_path / "long.mp4", film([130], speed=0.5), FPS)
    scanned = scan(Source("id", str(path)), recipe(max_seconds=2.0))
    assert spans(scanned) == [(0, 43), (43, 87), (87, 130)]
    assert {c["shot_index"] for c in scanned.clips} == {0}


def test_with_equal_limits_all_clips_have_that_length_and_the_rest_of_a_shot_is_rejected(tmp_path):
    path = write_video(tmp_path / "long.mp4", film([130], speed=0.5), FPS)
    scanned = scan(Source("id", str(path)), recipe(min_seconds=2.0, max_seconds=2.0))
    assert spans(scanned) == [(0, 50), (50, 100), (100, 130)]
    assert [c["dropped"] for c in scanned.clips] == [None, None, "duration"]


def test_the_same_source_gives_the_same_rows(three_shots):
    first, second = (scan(Source("id", str(three_shots)), recipe()) for _ in range(2))
    assert (first.clips, first.frames) == (second.clips, second.frames)


def test_spans_follow_a_variable_frame_rate(tmp_path):
    gaps = np.random.default_rng(3).choice([0.02, 0.04, 0.08], 120)
    times = np.concatenate([[0.0], np.cumsum(gaps)[:-1]])
    path = write_video(tmp_path / "vfr.mkv", film([50, 70]), times=times.tolist(), bf="2")
    scanned = scan(Source("id", str(path)), recipe())
    assert [c["frames"] for c in scanned.clips] == [50, 70]
    assert scanned.clips[1]["start"] == pytest.approx(times[50], abs=2e-3)
    assert scanned.clips[0]["end"] == scanned.clips[1]["start"]


def test_letterbox_is_cropped_and_rotation_shown(tmp_path):
    frames = [np.pad(f[20:-20], ((20, 20), (0, 0), (0, 0))) for f in film([40])]
    path = write_video(tmp_path / "bars.mp4", frames, FPS, crf="18", rotation=90)
    scanned = scan(Source("id", str(path)), recipe(frame_side=320))
    clip = scanned.clips[0]
    assert (clip["width"], clip["height"]) == (180, 320)
    assert clip["crop_x"] in range(20, 25)
    assert clip["crop_w"] in range(132, 141)
    assert (clip["crop_y"], clip["crop_h"]) == (0, 320)
    picture = cv2.imdecode(np.frombuffer(scanned.frames[0]["jpeg"], np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[0] == 320
    assert picture.shape[1] in range(130, 141)
    assert picture[:, :2].mean() > 30


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_is_one_clip_of_one_frame(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    cv2.imwrite(str(path), texture(7, 600, 900))
    scanned = scan(Source("id", str(path)), recipe())
    clip = scanned.clips[0]
    assert (clip["start"], clip["end"], clip["frames"], clip["dropped"]) == (0.0, 0.0, 1, None)
    assert (clip["width"], clip["height"]) == (900, 600)
    assert len(scanned.frames) == 1


def test_every_scan_filter_takes_every_clip(tmp_path, three_shots):
    """Of a usual film, of one frame, of a tiny picture and of a black one."""
    still = tmp_path / "one.png"
    cv2.imwrite(str(still), texture(8, 64, 64))
    tiny = write_video(tmp_path / "tiny.mp4", film([30], 16, 16), FPS)
    black = write_video(tmp_path / "black.mp4", [np.zeros((90, 160, 3), np.uint8)] * 30, FPS)
    everything = dataclasses.replace(load_recipe("embedded"), scan=recipe().scan)
    for path in (three_shots, still, tiny, black):
        scanned = scan(Source("id", str(path)), everything)
        assert scanned.clips
        assert len({tuple(sorted(c)) for c in scanned.clips}) == 1


def test_a_truncated_film_gives_what_is_there(tmp_path):
    index_first = {"movflags": "faststart"}
    path = write_video(tmp_path / "whole.mp4", film([60, 60, 60]), FPS, container_options=index_first, g="10")
    data = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    scanned = scan(Source("id", str(tmp_path / "cut.mp4")), recipe())
    assert scanned.missing.startswith("truncated")
    assert spans(scanned)[0] == (0, 60)
    assert spans(scanned)[-1][1] < 150


def test_a_film_is_used_up_to_where_its_picture_changes_size(tmp_path):
    path = write_video(tmp_path / "film.ts", film([50]), FPS)
    small = write_video(tmp_path / "small.ts", film([50], 90, 160), FPS, times=[2 + i / FPS for i in range(50)])
    path.write_bytes(path.read_bytes() + small.read_bytes())
    scanned = scan(Source("id", str(path)), recipe())
    assert [c["frames"] for c in scanned.clips] == [50]
    assert "320x180 to 160x90" in scanned.missing


def test_damage_in_the_middle_costs_no_more_than_the_middle(tmp_path):
    path = write_video(tmp_path / "film.ts", film([80, 80]), FPS, g="10")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 - 3000 : len(data) // 2 + 3000] = bytes(6000)
    path.write_bytes(data)
    scanned = scan(Source("id", str(path)), recipe())
    assert sum(c["frames"] for c in scanned.clips) > 120


def test_an_unusable_source_raises_with_its_reason(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(MediaError, match="empty file"):
        scan(Source("id", str(tmp_path / "empty.mp4")), recipe())


def test_segments_cover_a_source_once():
    assert segments(0.0, 100.0, 600.0) == [(0.0, 100.0)]
    parts = segments(3.0, 3000.0, 600.0)
    assert parts[0][0] == 3.0
    assert parts[-1][1] == 3003.0
    assert all(a[1] == b[0] for a, b in pairwise(parts))


def test_shots_are_the_same_in_segments(tmp_path):
    lengths = [30, 44, 70, 9, 61, 35, 80, 26, 50]
    path = write_video(tmp_path / "long.mp4", film(lengths, 90, 160), FPS, g="40", bf="3")
    whole = scan(Source("id", str(path)), recipe())
    assert spans(whole)[:2] == [(0, 30), (30, 74)]
    random = np.random.default_rng(1)
    for _ in range(4):
        edges = [0.0, *sorted(random.uniform(0, sum(lengths) / FPS, 2).tolist()), sum(lengths) / FPS]
        parts = [scan(Source("id", str(path)), recipe(), (a, b)) for a, b in pairwise(edges)]
        rows = [clip | {"shot_index": 0} for part in parts for clip in part.clips]
        assert rows == [clip | {"shot_index": 0} for clip in whole.clips]
        assert [f for part in parts for f in part.frames] == whole.frames


def test_crops_are_even_and_inside():
    assert crop_pixels((0.0, 0.0, 1.0, 1.0), (1920, 1080)) == (0, 0, 1920, 1080)
    assert crop_pixels((0.0, 0.125, 1.0, 0.875), (1920, 1080)) == (0, 136, 1920, 808)
    assert crop_pixels((0.0, 0.0, 1.0, 1.0), (1, 3)) == (0, 0, 1, 2)
