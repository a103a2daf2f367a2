"""Small pictures of decoded frames, downscaled plane by plane before conversion: there is no full-size RGB."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from pipeline.media.colour import Colour, luma_table, picture_to_bt709, rgb_matrix
from pipeline.media.frame import Frame, upright
from pipeline.media.video import Probe

SHORT_SIDE = 90  # pixels of a proxy's luma: enough for flow and letterbox detection, 14 kB at 16:9
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
    colour: Colour
    rotation: int  # degrees counter-clockwise
    mirrored: bool

    def rgb(self, box: tuple[float, float, float, float]) -> np.ndarray:
        """(h, w, 3) uint8 RGB of BT.709 as displayed, cut to `box` (x0, y0, x1, y1 as fractions)."""
        y, u, v = self.planes
        u, v = (shrink(plane, (y.shape[1], y.shape[0])) for plane in (u, v))
        whole = upright(rgb_from_yuv(y, u, v, self.colour), self.rotation, self.mirrored)
        return crop(whole, box)

    @cached_property
    def sharpness(self) -> float:
        """Standard deviation of the Laplacian of luma, to compare neighbours with."""
        return float(cv2.meanStdDev(cv2.Laplacian(self.planes[0], cv2.CV_16S))[1][0, 0])


class Shrinker:
    """Makes proxies and sampled pictures of one stream's frames, with shapes from the probe's displayed size."""

    def __init__(self, probe: Probe):
        turned = probe.rotation % 180 == 90
        shown = (probe.height, probe.width) if turned else (probe.width, probe.height)
        scale = min(1.0, SHORT_SIDE / min(shown))
        self._size = _even_or_one(shown, scale)
        self._shown = shown

    def proxy(self, frame: Frame) -> Proxy:
        y, u, v = (shrink(plane, TINY) for plane in frame.planes())
        return Proxy(frame.pts, frame.time, rgb_from_yuv(y, u, v, frame.colour))

    def luma(self, frame: Frame) -> np.ndarray:
        """(h, w) uint8 luma, full range, as displayed."""
        return frame.upright(widen(shrink(frame.planes()[0], self._size), frame.colour))

    def still(self, frame: Frame, long_side: int) -> FrameCandidate:
        """Return the frame at `long_side` pixels at most, as planes that are converted only if it is sampled."""
        size = _even_or_one(self._shown, min(1.0, long_side / max(self._shown)))
        half = (max(1, (size[0] + 1) // 2), max(1, (size[1] + 1) // 2))
        y, u, v = frame.planes()
        planes = (shrink(y, size), shrink(u, half), shrink(v, half))
        return FrameCandidate(frame.time, planes, _patch(frame, y), frame.colour, frame.rotation, frame.mirrored)


def shrink(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale (h, w) uint8 to `size` (width, height); smaller planes are enlarged linearly.

    Of much larger planes only some rows are read, at least four for each row of the result: reading all of them would
    cost more than the rest of a scan. The result is halved by area as often as possible, one vectorised pass each, then
    scaled by area, or linearly where that reads every pixel too.
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
    """Crop grey (..., h, w) or colour (h, w, 3) to `box`, fractions of width and height; at least one pixel."""
    rows, columns = (0, 1) if picture.shape[-1] == 3 and picture.ndim == 3 else (picture.ndim - 2, picture.ndim - 1)
    cut = [slice(None)] * picture.ndim
    for axis, low, high in ((rows, box[1], box[3]), (columns, box[0], box[2])):
        first = min(round(low * picture.shape[axis]), picture.shape[axis] - 1)
        cut[axis] = slice(first, max(first + 1, round(high * picture.shape[axis])))
    return picture[tuple(cut)]


def widen(luma: np.ndarray, colour: Colour) -> np.ndarray:
    """Convert luma as coded to full-range luma of BT.709; HDR is treated as grey."""
    table = luma_table(colour)
    return luma if table is None else cv2.LUT(luma, table)


def rgb_from_yuv(y: np.ndarray, u: np.ndarray, v: np.ndarray, colour: Colour) -> np.ndarray:
    """Convert (h, w) uint8 planes of one size to (h, w, 3) uint8 RGB of BT.709."""
    return picture_to_bt709(cv2.transform(cv2.merge([y, u, v]), rgb_matrix(colour)), colour)


def _patch(frame: Frame, y: np.ndarray, side: int = 256) -> np.ndarray:
    y0, x0 = max(0, y.shape[0] - side) // 2, max(0, y.shape[1] - side) // 2
    return frame.upright(widen(y[y0 : y0 + side, x0 : x0 + side].copy(), frame.colour))


def _even_or_one(shown: tuple[int, int], scale: float) -> tuple[int, int]:
    width, height = shown
    if scale >= 1:
        return width, height
    return max(1, 2 * round(width * scale / 2)), max(1, 2 * round(height * scale / 2))
