"""Small pictures of decoded frames, shrunk plane by plane before any conversion: full-size RGB is never made."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.media.frame import Frame
from pipeline.media.video import Probe

SHORT_SIDE = 90  # pixels of a proxy's luma: high enough for flow and letterbox, 14 kB at 16:9
TINY = (48, 27)  # width, height that TransNetV2 was trained on (Soucek and Lokoc, arXiv 2008.04838)


@dataclass(frozen=True)
class Proxy:
    """A frame as the detectors see it: `colour` (27, 48, 3) uint8 RGB, as coded."""

    pts: int
    time: float
    colour: np.ndarray


@dataclass(frozen=True)
class FrameCandidate:
    """A candidate for a sampled frame: its planes at the recipe's size, and a patch of luma (256, 256) or smaller
    from its middle at the source's own resolution, uint8, full range, as displayed."""

    time: float
    planes: tuple[np.ndarray, np.ndarray, np.ndarray]
    patch: np.ndarray
    full_range: bool
    bt709: bool
    turns: int

    def rgb(self, box: tuple[float, float, float, float]) -> np.ndarray:
        """(h, w, 3) uint8 RGB as displayed, cut to `box` (x0, y0, x1, y1 as fractions)."""
        y, u, v = self.planes
        u, v = (shrink(plane, (y.shape[1], y.shape[0])) for plane in (u, v))
        whole = np.rot90(rgb_from_yuv(y, u, v, self.full_range, self.bt709), self.turns)
        return crop(np.ascontiguousarray(whole), box)

    @property
    def sharpness(self) -> float:
        """Variance of the Laplacian of luma, to compare neighbours with."""
        return float(cv2.Laplacian(self.planes[0], cv2.CV_16S).var())


class Shrinker:
    """Makes proxies and sampled pictures of one stream's frames.

    Shapes follow the probe's displayed size.
    """

    def __init__(self, probe: Probe):
        turned = probe.rotation % 180 == 90
        shown = (probe.height, probe.width) if turned else (probe.width, probe.height)
        scale = min(1.0, SHORT_SIDE / min(shown))
        self._size = _even_or_one(shown, scale)
        self._shown = shown
        self._turns = probe.rotation // 90

    def proxy(self, frame: Frame) -> Proxy:
        y, u, v = (shrink(plane, TINY) for plane in frame.planes())
        return Proxy(frame.pts, frame.time, rgb_from_yuv(y, u, v, frame.full_range, frame.bt709))

    def luma(self, frame: Frame) -> np.ndarray:
        """(h, w) uint8 luma, full range, as displayed."""
        return self._turn(widen(shrink(frame.planes()[0], self._size), frame.full_range))

    def still(self, frame: Frame, long_side: int) -> FrameCandidate:
        """The frame at `long_side` pixels at most, to be made a picture of if it is chosen."""
        size = _even_or_one(self._shown, min(1.0, long_side / max(self._shown)))
        half = (max(1, (size[0] + 1) // 2), max(1, (size[1] + 1) // 2))
        y, u, v = frame.planes()
        planes = (shrink(y, size), shrink(u, half), shrink(v, half))
        return FrameCandidate(
            frame.time, planes, self._patch(y, frame.full_range), frame.full_range, frame.bt709, self._turns
        )

    def _patch(self, y: np.ndarray, full_range: bool, side: int = 256) -> np.ndarray:
        top, left = max(0, y.shape[0] - side) // 2, max(0, y.shape[1] - side) // 2
        return self._turn(widen(y[top : top + side, left : left + side].copy(), full_range))

    def _turn(self, picture: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(picture, self._turns)) if self._turns else picture


def shrink(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) uint8 to `size` (width, height); enlarged linearly where it is smaller.

    Of much larger planes only some rows are read, at least four for each row of the result: reading them all costs more
    than all else that a scan does with a frame. What is left is halved by area as often as possible, each halving one
    vectorised pass, then brought to size by area, or linearly where that reads every pixel too.
    """
    width, height = size
    plane = plane[:: max(1, plane.shape[0] // (4 * height))]
    while plane.shape[0] >= 2 * height and plane.shape[1] >= 2 * width:
        rows, columns = plane.shape[0] // 2, plane.shape[1] // 2
        plane = cv2.resize(plane[: 2 * rows, : 2 * columns], (columns, rows), interpolation=cv2.INTER_AREA)
    if plane.shape == (height, width):
        return plane.copy() if plane.base is not None else plane
    if plane.shape == (height, 3 * width):  # 1080 rows to 90: the same values as by area in a third of the time
        return cv2.blur(plane, (3, 1))[:, 1::3].copy()
    half = plane.shape[0] < 2 * height and plane.shape[1] < 2 * width
    return cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR if half else cv2.INTER_AREA)


def crop(picture: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """(..., h, w) of grey or (h, w, 3) of colour cut to `box`, fractions of width and height; at least one pixel."""
    rows, columns = (0, 1) if picture.shape[-1] == 3 and picture.ndim == 3 else (picture.ndim - 2, picture.ndim - 1)
    cut = [slice(None)] * picture.ndim
    for axis, low, high in ((rows, box[1], box[3]), (columns, box[0], box[2])):
        first = min(round(low * picture.shape[axis]), picture.shape[axis] - 1)
        cut[axis] = slice(first, max(first + 1, round(high * picture.shape[axis])))
    return picture[tuple(cut)]


def widen(luma: np.ndarray, full_range: bool) -> np.ndarray:
    """Luma of 16-235 stretched to 0-255."""
    return luma if full_range else cv2.LUT(luma, _WIDEN)


def rgb_from_yuv(y: np.ndarray, u: np.ndarray, v: np.ndarray, full_range: bool, bt709: bool) -> np.ndarray:
    """(h, w) uint8 planes of one size to (h, w, 3) uint8 RGB, by the matrices of ITU-R BT.601 and BT.709."""
    return cv2.transform(cv2.merge([y, u, v]), _matrix(full_range, bt709))


def _matrix(full_range: bool, bt709: bool) -> np.ndarray:
    """3x4: RGB from (Y, U, V, 1)."""
    red, blue = (0.2126, 0.0722) if bt709 else (0.299, 0.114)
    green = 1 - red - blue
    gain, lift, chroma = (1.0, 0.0, 1.0) if full_range else (255 / 219, 16.0, 255 / 224)
    ru, rv = 0.0, 2 * (1 - red) * chroma
    gu, gv = -2 * blue * (1 - blue) / green * chroma, -2 * red * (1 - red) / green * chroma
    bu, bv = 2 * (1 - blue) * chroma, 0.0
    rows = [[gain, cu, cv, -gain * lift - 128 * (cu + cv)] for cu, cv in ((ru, rv), (gu, gv), (bu, bv))]
    return np.array(rows, np.float32)


def _even_or_one(shown: tuple[int, int], scale: float) -> tuple[int, int]:
    width, height = shown
    if scale >= 1:
        return width, height
    return max(1, 2 * round(width * scale / 2)), max(1, 2 * round(height * scale / 2))


_WIDEN = np.clip((np.arange(256) - 16) * 255 / 219 + 0.5, 0, 255).astype(np.uint8)
