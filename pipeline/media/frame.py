"""A decoded frame: its planes, its colours and its rotation for display."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from pipeline.media.colour import BT601, NOT_YUV, Colour, rgb_matrix


def seconds(pts: int, base: Fraction) -> float:
    """Return float(pts * base) to the last bit, without the cost of fractions for every frame of a source."""
    return pts * base.numerator / base.denominator


@dataclass(frozen=True)
class Frame:
    """A decoded frame. `pts` counts in the stream's time base and is unique and rising within a decode."""

    pts: int
    time: float  # seconds
    key: bool
    native: av.VideoFrame
    rotation: int  # degrees counter-clockwise, as in `Probe`
    mirrored: bool  # flipped vertically before it is rotated
    colour: Colour
    is_b_frame: bool  # of lower quality than its neighbours
    skipped_pts: tuple[int, ...]  # pts of the frames skipped since the last one, followed by this frame's own
    is_non_reference: bool  # no frame refers to it; decoded only because it was `wanted`

    def planes(self, deep: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return Y, U and V as views of the decoder's memory (valid while the frame lives), as coded: not rotated.

        (h, w) and chroma in the format's subsampling. uint8, to which deeper formats are rounded; with `deep`, deeper
        formats are uint16 scaled to 16 bits.
        """
        return self._planes(16) if deep else self._eight_bit_planes

    @cached_property
    def _eight_bit_planes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._planes(8)

    def _planes(self, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the planes with at most `bits` bits, 8 or 16."""
        native, depth = _planar(self.native)
        views = [_plane(plane, 2 if depth > 8 else 1) for plane in native.planes[:3]]
        if len(views) < 3:  # grey
            views += [np.full((1, 1), 128 << (depth - 8), views[0].dtype)] * 2
        if depth > 8 and bits == 8:
            views = [cv2.convertScaleAbs(view, alpha=2.0 ** (8 - depth)) for view in views]
        elif depth > 8:
            views = [view << (16 - depth) for view in views]
        return views[0], views[1], views[2]

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """Rotate a (h, w) or (h, w, 3) picture of the frame as coded for display."""
        return upright(picture, self.rotation, self.mirrored)

    def rgb(self) -> np.ndarray:
        """Return the frame as displayed, except for its pixel aspect: (h, w, 3) uint8 in the source's colours."""
        if self.native.format.name.startswith(NOT_YUV):
            return self.upright(self.native.to_ndarray(format="rgb24"))
        y, u, v = self.planes()
        u, v = (cv2.resize(plane, y.shape[::-1], interpolation=cv2.INTER_LINEAR) for plane in (u, v))
        return self.upright(cv2.transform(cv2.merge([y, u, v]), rgb_matrix(self.colour)))


def upright(picture: np.ndarray, rotation: int, mirrored: bool) -> np.ndarray:
    """Flip a (h, w) or (h, w, 3) picture vertically if `mirrored`, then rotate it by `rotation` degrees."""
    if not (rotation or mirrored):
        return picture
    return np.ascontiguousarray(np.rot90(np.flipud(picture) if mirrored else picture, rotation // 90))


def _planar(native: av.VideoFrame) -> tuple[av.VideoFrame, int]:
    """Return the frame itself if its planes are usable, else converted to 8-bit 4:4:4, RGB to BT.601 in full range; and
    its bit depth."""
    name = native.format.name
    for prefix in ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv440p", "gray"):
        if name == prefix:
            return native, 8
        if name.startswith(prefix) and name.endswith("le") and name[len(prefix) : -2] in ("9", "10", "12"):
            return native, int(name[len(prefix) : -2])
    full = {"dst_color_range": 2, "dst_colorspace": BT601} if name.startswith(NOT_YUV) else {}
    return VideoReformatter().reformat(native, format="yuv444p", threads=1, **full), 8


def _plane(plane: Any, size: int) -> np.ndarray:
    rows = np.frombuffer(plane, np.uint8).reshape(-1, abs(plane.line_size))[: plane.height]
    return (rows.view(np.uint16) if size == 2 else rows)[:, : plane.width]
