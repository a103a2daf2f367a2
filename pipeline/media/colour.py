"""Colour spaces of sources, and their conversion to that of clips and sampled frames: BT.709, standard dynamic range.

Matrices, primaries and transfers are identified by the numbers of ITU-T H.273, as in FFmpeg. High dynamic range (PQ and
HLG, ITU-R BT.2100) is tone-mapped to a peak of HDR reference white, 203 cd/m2 (ITU-R BT.2408), with the curve of ITU-R
BT.2390-10, 5.4.1, applied to the largest of R, G and B to preserve hues. Colours outside of BT.709's gamut are clipped
(ITU-R BT.2407, 2). Standard dynamic range is converted with the display transfer function of ITU-R BT.1886.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import av
import cv2
import numpy as np

from pipeline.media.side_data import brightest

NOT_YUV = ("0bgr", "0rgb", "abgr", "argb", "bgr", "gbr", "gray", "mono", "pal", "rgb", "x2", "ya")  # pixel formats
RGB, BT709, UNSPECIFIED, BT601, BT2020 = 0, 1, 2, 6, 9  # matrices; except RGB and BT601 also primaries
PQ, HLG = 16, 18  # transfers
WHITE = 203.0  # cd/m2; HDR reference white, to which the peak is mapped
PEAK = 1000.0  # cd/m2; assumed peak of PQ content without brightness metadata
HLG_PEAK = 1000.0  # cd/m2; peak of the display for which BT.2100 specifies HLG's system gamma of 1.2
GAMMA = 2.4  # display gamma of SDR, ITU-R BT.1886
LUMA = {  # matrix: weights of red and blue in luma
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    BT601: (0.299, 0.114),
    7: (0.212, 0.087),
    BT2020: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
CHROMATICITIES = {  # primaries: x, y of red, green and blue; the white point is assumed to be D65, so white is kept
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    BT601: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}
REC709 = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
D65 = (0.3127, 0.3290)
NAMES: Mapping[str, Mapping[int, str]] = {  # FFmpeg's names of the numbers
    "matrix": {0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco"}
    | {9: "bt2020nc", 10: "bt2020c", 14: "ictcp"},
    "primaries": {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020"}
    | {10: "smpte428", 11: "smpte431", 12: "smpte432", 22: "ebu3213"},
    "transfer": {1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear"}
    | {11: "iec61966-2-4", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 18: "arib-std-b67"},
    "range": {1: "tv", 2: "pc"},
}
PQ_M1, PQ_M2 = 2610 / 16384, 2523 / 4096 * 128
PQ_C1, PQ_C2, PQ_C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
HLG_A, HLG_B, HLG_C = 0.17883277, 0.28466892, 0.55991073


@dataclass(frozen=True)
class Colour:
    """Interpretation of a source's samples: H.273 numbers, and the HDR peak in cd/m2. `matrix` is always a key of LUMA;
    for RGB and unspecified matrices it is the one with which they are decoded."""

    matrix: int = BT709
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    full_range: bool = False
    peak: float = PEAK

    @property
    def is_hdr(self) -> bool:
        return self.transfer in (PQ, HLG)

    @property
    def is_wide(self) -> bool:
        """Whether transfer or primaries must be converted, not only the matrix and range of the planes."""
        return self.is_hdr or self.primaries in CHROMATICITIES

    @property
    def is_bt709(self) -> bool:
        """Whether no conversion is needed."""
        return self.matrix == BT709 and not self.full_range and not self.is_wide


def colour_of(native: av.VideoFrame) -> Colour:
    """Return the colour space of a decoded frame. An unspecified matrix is BT.709 from 720 rows on, else BT.601."""
    space, name = int(native.colorspace), native.format.name
    guess = BT709 if native.height >= 720 else BT601
    matrix = BT601 if name.startswith(NOT_YUV) else space if space in LUMA else guess  # RGB: see `frame.planes`
    stated = int(native.color_range)
    rgb = name.startswith(NOT_YUV) and not name.startswith("gray")
    full_range = rgb or stated == 2 or name.startswith("yuvj") or (stated == 0 and name.startswith("gray"))
    transfer = int(native.color_trc)
    peak = min(max(brightest(native) or PEAK, WHITE), 10000.0) if transfer == PQ else PEAK
    return Colour(matrix, int(native.color_primaries), transfer, full_range, peak)


def columns_of(native: av.VideoFrame) -> dict[str, str | None]:
    """Return the colour columns of a source: FFmpeg's names of the stream's tags, null for missing tags."""
    stated = {
        "matrix": int(native.colorspace),
        "primaries": int(native.color_primaries),
        "transfer": int(native.color_trc),
        "range": int(native.color_range),
    }
    return {f"color_{key}": NAMES[key].get(number) for key, number in stated.items()}


@functools.lru_cache(maxsize=16)
def rgb_matrix(colour: Colour) -> np.ndarray:
    """Return the (3, 4) float32 matrix that converts (Y, U, V, 1) in 8-bit codes to R'G'B' in 0..255."""
    red, blue = LUMA[colour.matrix]
    green = 1 - red - blue
    gain, lift, chroma = (1.0, 0.0, 1.0) if colour.full_range else (255 / 219, 16.0, 255 / 224)
    ru, rv = 0.0, 2 * (1 - red) * chroma
    gu, gv = -2 * blue * (1 - blue) / green * chroma, -2 * red * (1 - red) / green * chroma
    bu, bv = 2 * (1 - blue) * chroma, 0.0
    rows = [[gain, cu, cv, -gain * lift - 128 * (cu + cv)] for cu, cv in ((ru, rv), (gu, gv), (bu, bv))]
    return np.array(rows, np.float32)


def to_bt709(rgb: np.ndarray, colour: Colour) -> np.ndarray:
    """Convert R'G'B' of a source, (h, w, 3) float32 in [0, 1], to R'G'B' of BT.709 with the same shape and range.

    Powers are read from tables of 65536 entries.
    """
    codes = _codes(rgb)
    light = np.take(_light_table(colour.transfer), codes)
    if colour.transfer == HLG:
        red, blue = LUMA[BT2020]
        luminance = cv2.transform(light, np.array([[red, 1 - red - blue, blue]], np.float32))
        light *= cv2.pow(np.maximum(luminance, 1e-9), 0.2)[..., None]
        codes = _codes(pq_signal(light.max(axis=-1) * HLG_PEAK).astype(np.float32))
        light *= np.float32(HLG_PEAK / WHITE) * np.take(_gain_table(HLG_PEAK), codes)[..., None]
    elif colour.transfer == PQ:
        light *= np.take(_gain_table(colour.peak), codes.max(axis=-1))[..., None]
    if colour.primaries in CHROMATICITIES:
        light = cv2.transform(light, _gamut_matrix(colour.primaries))
    return np.take(_signal_table(), _codes(np.sqrt(np.maximum(light, 0))))


def planes_to_bt709(planes: Sequence[np.ndarray], colour: Colour) -> list[np.ndarray]:
    """Convert (h, w) luma and two (h/2, w/2) chroma planes of a source, uint8 or uint16, to uint8 planes of BT.709 in
    limited range."""
    y, u, v = planes
    size, target = y.shape[::-1], rgb_matrix(Colour()).astype(np.float64)
    inverse = np.linalg.inv(target[:, :3])
    wide_u, wide_v = (cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in (u, v))
    whole = cv2.merge([y, wide_u, wide_v])
    if colour.is_wide:
        source = rgb_matrix(colour).copy()
        source[:, :3] /= 256 if y.dtype == np.uint16 else 1  # 16-bit codes to 8-bit codes
        rgb = to_bt709(cv2.transform(whole.astype(np.float32), source / 255), colour)
        yuv = cv2.transform(rgb, np.hstack([inverse * 255, -inverse @ target[:, 3:]]))
        chroma = cv2.resize(yuv[..., 1:], (u.shape[1], u.shape[0]), interpolation=cv2.INTER_AREA)
        return [np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in (yuv[..., 0], *cv2.split(chroma))]
    matrix = inverse @ rgb_matrix(colour)
    matrix[:, 3:] -= inverse @ target[:, 3:]
    luma, (new_u, new_v) = cv2.transform(whole, matrix[:1]), cv2.split(cv2.transform(cv2.merge([u, v]), matrix[1:, 1:]))
    return [luma, new_u, new_v]


def picture_to_bt709(rgb: np.ndarray, colour: Colour) -> np.ndarray:
    """Convert a (h, w, 3) uint8 RGB picture of a source to BT.709. Return `rgb` itself if no conversion is needed."""
    if not colour.is_wide:
        return rgb
    return np.rint(to_bt709(rgb.astype(np.float32) / 255, colour) * 255).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def luma_table(colour: Colour) -> np.ndarray | None:
    """Return the (256,) uint8 table from luma codes of grey to full-range BT.709 luma; None if it is the identity."""
    codes = np.arange(256.0)
    grey = codes / 255 if colour.full_range else np.clip((codes - 16) / 219, 0, 1)
    if colour.is_hdr:
        grey = to_bt709(np.repeat(grey[None, :, None], 3, axis=2).astype(np.float32), colour)[0, :, 0]
    elif colour.full_range:
        return None
    return (grey * 255 + 0.5).astype(np.uint8)


def pq_light(values: np.ndarray) -> np.ndarray:
    """Return the light in cd/m2 of PQ signals in [0, 1], float64: the EOTF of ITU-R BT.2100, table 4."""
    power = np.asarray(values, np.float64) ** (1 / PQ_M2)
    return 10000 * (np.maximum(power - PQ_C1, 0) / (PQ_C2 - PQ_C3 * power)) ** (1 / PQ_M1)


def pq_signal(light: np.ndarray | float) -> np.ndarray:
    """Return the PQ signals in [0, 1] of light in cd/m2, float64: the inverse of `pq_light`."""
    power = (np.asarray(light, np.float64) / 10000) ** PQ_M1
    return ((PQ_C1 + PQ_C2 * power) / (1 + PQ_C3 * power)) ** PQ_M2


def _codes(values: np.ndarray) -> np.ndarray:
    """Convert values, clipped to [0, 1], to uint16 indices of the tables."""
    return (np.clip(values, 0, 1) * np.float32(65535) + np.float32(0.5)).astype(np.uint16)


@functools.cache
def _light_table(transfer: int) -> np.ndarray:
    """Return the (65536,) float32 table from signals to linear light, 1 is WHITE; for HLG to scene light (BT.2100,
    table 5)."""
    values = np.arange(65536) / 65535
    if transfer == PQ:
        return (pq_light(values) / WHITE).astype(np.float32)
    if transfer == HLG:
        upper = (np.exp((values - HLG_C) / HLG_A) + HLG_B) / 12
        return np.where(values <= 0.5, values**2 / 3, upper).astype(np.float32)
    return (values**GAMMA).astype(np.float32)


@functools.cache
def _signal_table() -> np.ndarray:
    """Return the (65536,) float32 table from the square root of linear light, which is finer near black, to signals of
    BT.709."""
    return ((np.arange(65536) / 65535) ** (2 / GAMMA)).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _gain_table(peak: float) -> np.ndarray:
    """Return the (65536,) float32 table of the tone-mapping gain on linear light, which maps `peak` (cd/m2) to WHITE.

    The index is the PQ signal of the largest of R, G and B. The curve is BT.2390's with a black level of zero.
    """
    signal = np.arange(65536) / 65535
    if peak <= WHITE:
        return np.ones(65536, np.float32)
    top = float(pq_signal(peak))
    target = float(pq_signal(WHITE)) / top
    knee = 1.5 * target - 0.5
    relative = np.minimum(signal / top, 1)
    t = np.maximum(relative - knee, 0) / (1 - knee)
    curve = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * target
    mapped, light = pq_light(np.where(relative < knee, relative, curve) * top), pq_light(signal)
    return np.where(relative < knee, 1, mapped / np.maximum(light, 1e-6)).astype(np.float32)


@functools.cache
def _gamut_matrix(primaries: int) -> np.ndarray:
    """Return the (3, 3) float32 matrix from linear RGB of `primaries` to linear RGB of BT.709."""
    return (np.linalg.inv(_xyz_matrix(REC709)) @ _xyz_matrix(CHROMATICITIES[primaries])).astype(np.float32)


def _xyz_matrix(chromaticities: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Return the (3, 3) matrix from linear RGB to XYZ (SMPTE RP 177)."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in chromaticities]).T
    white = np.array([D65[0] / D65[1], 1, (1 - D65[0] - D65[1]) / D65[1]])
    result: np.ndarray = columns * np.linalg.solve(columns, white)
    return result
