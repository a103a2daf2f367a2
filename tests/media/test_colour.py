"""Clips and sampled frames show the colours of their source, whatever its matrix, range, primaries and transfer."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from footage.dolby_vision import rpu
from footage.videos import texture, write_video

from pipeline.config.recipe import PackOptions
from pipeline.media.clip_reader import read_frames
from pipeline.media.colour import (
    CHROMATICITIES,
    HLG,
    LUMA,
    PQ,
    Colour,
    luma_table,
    pq_light,
    pq_signal,
    rgb_matrix,
    to_bt709,
)
from pipeline.media.encode import Cut, SpanReader, encode_span
from pipeline.media.proxy import Shrinker
from pipeline.media.video import MediaError, Video, probe

QUIET = {"x265-params": "log-level=none"}
SIZE = (192, 96)
BARS = [
    (191, 191, 191),
    (191, 191, 0),
    (0, 191, 191),
    (0, 191, 0),
    (191, 0, 191),
    (191, 0, 0),
    (0, 0, 191),
    (96, 96, 96),
]
XYZ = {  # linear RGB to XYZ as printed in the standards: BT.709 (SMPTE RP 177), BT.2020 (BT.2087-0, 2.2.1)
    1: np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    ),
    9: np.array([[0.6369580, 0.1446169, 0.1688810], [0.2627002, 0.6779981, 0.0593017], [0.0, 0.0280727, 1.0609851]]),
}


def codes(bars: np.ndarray, matrix: int, full: bool, bits: int) -> list[np.ndarray]:
    """4:2:0 planes of vertical bars of R'G'B' in [0, 1], by ITU-T H.273."""
    red, blue = LUMA[matrix]
    y = bars @ np.array([red, 1 - red - blue, blue])
    values = [y, (bars[:, 2] - y) / (2 * (1 - blue)), (bars[:, 0] - y) / (2 * (1 - red))]
    top = (1 << bits) - 1
    scale = 1 << (bits - 8)
    lifts = [0, 128 * scale, 128 * scale] if full else [16 * scale, 128 * scale, 128 * scale]
    gains = [top] * 3 if full else [219 * scale, 224 * scale, 224 * scale]
    planes = []
    for value, lift, gain, shrink in zip(values, lifts, gains, (1, 2, 2), strict=True):
        row = np.repeat(np.clip(np.rint(value * gain + lift), 0, top), SIZE[0] // shrink // len(bars))
        planes.append(np.broadcast_to(row, (SIZE[1] // shrink, len(row))).astype(np.uint8 if bits == 8 else np.uint16))
    return planes


def write(path: Path, bars: np.ndarray, colour: Colour, bits: int = 8) -> Path:
    """Three frames of bars, nearly lossless, with the colour's tags."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "1", "threads": "1"})
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p" if bits == 8 else "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries = colour.matrix, colour.primaries
        context.color_trc, context.color_range = colour.transfer, 2 if colour.full_range else 1
        planes = codes(bars, colour.matrix, colour.full_range, bits)
        data = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, SIZE[0])
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(data, format=stream.pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            frame.colorspace, frame.color_range = colour.matrix, context.color_range
            frame.color_primaries, frame.color_trc = colour.primaries, colour.transfer
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def middles(picture: np.ndarray) -> np.ndarray:
    step = picture.shape[1] // len(BARS)
    return picture[picture.shape[0] // 2, step // 2 :: step].astype(float)


def packed_and_sampled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The bars' RGB, (8, 3) in 0-255, in a packed clip, and as the scan samples a frame."""
    with Video(str(path)) as video:
        frame = next(video.frames())
        sampled = Shrinker(video.probe).still(frame, 512).rgb((0, 0, 1, 1))
        cut = Cut(0, round(0.12 / video.probe.time_base), video.probe.time_base, SIZE, (0, 0, *SIZE), SIZE)
        encoded = encode_span(SpanReader(video), cut, PackOptions(preset="small"))
    with av.open(io.BytesIO(encoded.data)) as container:
        context = container.streams.video[0].codec_context
        stated = [int(x) for x in (context.colorspace, context.color_primaries, context.color_trc, context.color_range)]
        assert stated == [1, 1, 1, 1]
        frame = next(container.decode(video=0))
    rows = [np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes]
    y, u, v = (middles(plane) for plane in rows)
    packed = np.clip(np.stack([y, u, v, np.ones(len(BARS))], axis=-1) @ rgb_matrix(Colour()).T, 0, 255)
    loaded = middles(read_frames(encoded.data, np.zeros(1), SIZE[1], SIZE[0])[0])
    assert np.abs(loaded - packed).max() <= 4  # swscale's quick conversion
    return packed, middles(sampled)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 5, 6, 7, 9])
def test_bars_keep_their_rgb_in_every_matrix_and_range(tmp_path: Path, matrix: int, full: bool) -> None:
    bars = np.array(BARS) / 255
    path = write(tmp_path / "bars.mp4", bars, Colour(matrix, 2, 2, full))
    for shown in packed_and_sampled(path):
        assert np.abs(shown - BARS).max() <= 2


def reference(rgb: np.ndarray, colour: Colour) -> np.ndarray:
    """The formulas of BT.2100, BT.2390 and BT.1886 in double precision, for PQ, HLG and SDR of BT.2020 primaries."""
    if colour.transfer == PQ:
        light, peak = pq_light(rgb), colour.peak
    elif colour.transfer == HLG:
        scene = np.where(rgb <= 0.5, rgb**2 / 3, (np.exp((rgb - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        light = 1000 * (scene @ np.array([0.2627, 0.6780, 0.0593]))[..., None] ** 0.2 * scene
        peak = 1000.0
    else:
        light, peak = 203 * rgb**2.4, 203.0
    largest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    top, target = pq_signal(peak), pq_signal(203.0) / pq_signal(peak)
    knee = 1.5 * target - 0.5
    signal = np.minimum(pq_signal(largest) / top, 1)
    t = np.clip((signal - knee) / max(1 - knee, 1e-9), 0, 1)
    curve = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * target
    linear = light * (pq_light(np.where(signal < knee, signal, curve) * top) / largest) / 203
    if colour.primaries == 9:
        linear = linear @ (np.linalg.inv(XYZ[1]) @ XYZ[9]).T
    return np.clip(linear, 0, 1) ** (1 / 2.4)


WIDE = {
    "PQ": Colour(9, 9, PQ),
    "PQ of 4000 cd/m2": Colour(9, 9, PQ, peak=4000.0),
    "HLG": Colour(9, 9, HLG),
    "BT.2020 SDR": Colour(9, 9, 14),
}


def test_dolby_vision_is_used_only_where_its_base_layer_has_colours_of_its_own(tmp_path: Path) -> None:
    film = write_video(tmp_path / "a.h265", [texture(1, 64, 96)], codec="libx265", pix_fmt="yuv420p10le", **QUIET)
    other, iptpqc2 = tmp_path / "8.h265", tmp_path / "5.h265"
    other.write_bytes(film.read_bytes() + rpu(8))
    assert probe(str(other)).codec == "hevc"
    iptpqc2.write_bytes(film.read_bytes() + rpu(5))
    with pytest.raises(MediaError, match="IPTPQc2"):
        probe(str(iptpqc2))


@pytest.mark.parametrize("name", WIDE)
def test_tables_follow_the_formulas(name: str) -> None:
    colour = WIDE[name]
    rgb = np.random.default_rng(0).random((64, 64, 3))
    expected = reference(rgb, colour)
    got = to_bt709(rgb.astype(np.float32), colour)
    steep = expected < 0.1  # the gamma is: the printed matrices' digits show there
    assert np.abs(got - expected)[~steep].max() * 255 < 0.5
    assert np.abs(got - expected)[steep].max() < 0.03


@pytest.mark.parametrize("name", ["PQ", "HLG", "BT.2020 SDR"])
def test_bars_of_wide_gamut_and_high_dynamic_range_are_shown_in_bt709(tmp_path: Path, name: str) -> None:
    colour = WIDE[name]
    bars = 0.15 + np.array(BARS) / 255 * (0.5 if colour.is_hdr else 0.8)
    path = write(tmp_path / "bars.mp4", bars, colour, bits=10)
    expected = reference(bars, colour) * 255
    packed, sampled = packed_and_sampled(path)
    steep = expected < 30  # where a level of the source is several
    assert np.abs(packed - expected)[~steep].max() <= 4  # where another channel is clipped; most are within 1
    assert np.abs(sampled - expected)[~steep].max() <= 8  # made of 8-bit planes
    assert np.median(np.abs(sampled - expected)) <= 1.5
    assert np.median(np.abs(packed - expected)) <= 1
    assert np.abs(packed - expected)[steep].max() <= 6
    with Video(str(path)) as video:
        stated = video.probe.stated_colour
    assert stated["color_primaries"] == "bt2020"
    assert stated["color_transfer"] == {"PQ": "smpte2084", "HLG": "arib-std-b67", "BT.2020 SDR": "bt2020-10"}[name]
    assert stated["color_range"] == "tv"


def test_what_bt2100_and_bt2408_say_of_white() -> None:
    assert pq_light(np.array([0.0, 0.5, 1.0])) == pytest.approx([0.0, 92.25, 10000.0], rel=1e-3)
    assert pq_signal(np.array([203.0])) == pytest.approx([0.5807], abs=1e-4)  # BT.2408, table 1: 58 %
    white = np.full((1, 1, 3), 0.5807, np.float32)
    assert to_bt709(white, Colour(9, 9, PQ, peak=203.0)) == pytest.approx(1, abs=1e-3)
    assert to_bt709(np.full((1, 1, 3), float(pq_signal(1000.0)), np.float32), Colour(9, 9, PQ)) == pytest.approx(
        1, abs=1e-3
    )
    grey = to_bt709(np.full((1, 1, 3), 0.4, np.float32), Colour(9, 9, PQ))  # below the knee: as bright as in HDR
    assert grey == pytest.approx((pq_light(np.array(0.4)) / 203) ** (1 / 2.4), abs=1e-3)


def test_grey_luma_of_hdr_is_that_of_the_tone_mapped_picture() -> None:
    table = luma_table(Colour(9, 9, PQ))
    assert table is not None
    levels = np.clip((np.arange(256) - 16) / 219, 0, 1)[:, None, None].repeat(3, axis=2)
    assert np.abs(table - reference(levels, Colour(9, 9, PQ))[:, 0, 0] * 255).max() <= 1
    assert np.all(np.diff(table.astype(int)) >= 0)


def test_every_named_primary_keeps_white() -> None:
    white = np.ones((1, 1, 3), np.float32)
    for primaries in CHROMATICITIES:
        assert to_bt709(white, Colour(1, primaries, 1)) == pytest.approx(1, abs=1e-3)
