"""A decoded frame: its planes, its colours and how it is turned for display."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter

NOT_YUV = ("0bgr", "0rgb", "abgr", "argb", "bgr", "gbr", "gray", "mono", "pal", "rgb", "x2", "ya")  # pixel formats


def seconds(pts: int, base: Fraction) -> float:
    """float(pts * base) to the last bit, which is asked of every frame of a source, without making fractions."""
    return pts * base.numerator / base.denominator


@dataclass(frozen=True)
class Frame:
    """A decoded frame. `pts` counts in the stream's time base and is unique and rising within a decode."""

    pts: int
    time: float  # seconds
    key: bool
    native: av.VideoFrame
    rotation: int  # degrees counter-clockwise, as in `Probe`
    b: bool  # a B-frame: of lower quality than its neighbours
    passed: tuple[int, ...]  # pts of this frame and of the source's frames between the last one given and it
    is_non_reference: bool  # no frame refers to it: it is given only because it was `wanted`

    def planes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Y, U and V as views of the decoder's memory (valid while the frame lives), 8 bits, as coded: not rotated.

        (h, w) uint8 and chroma of whatever subsampling the format has; deeper formats are shifted down to 8 bits.
        """
        native, depth = _planar(self.native)
        views = [_plane(plane, 2 if depth > 8 else 1) for plane in native.planes[:3]]
        if len(views) < 3:  # grey
            views += [np.full((1, 1), 128, np.uint8)] * 2
        if depth > 8:
            views = [v if v.dtype == np.uint8 else (v >> (depth - 8)).astype(np.uint8) for v in views]
        return views[0], views[1], views[2]

    def rgb(self) -> np.ndarray:
        """The frame as displayed but for its pixel aspect: (h, w, 3) uint8, rotated."""
        return np.ascontiguousarray(np.rot90(self.native.to_ndarray(format="rgb24"), self.rotation // 90))

    @property
    def full_range(self) -> bool:
        """Whether luma uses 0-255 rather than 16-235."""
        return int(self.native.color_range) == 2 or self.native.format.name.startswith(("yuvj", *NOT_YUV))

    @property
    def bt709(self) -> bool:
        """Whether colours are of ITU-R BT.709 or BT.2020 rather than BT.601; by size where the stream does not say."""
        space, guessed = int(self.native.colorspace), self.native.height >= 720
        return not self.native.format.name.startswith(NOT_YUV) and (space in (1, 9, 10) or (space == 2 and guessed))


def is_mirrored(head: bytes) -> bool:
    """Whether the EXIF orientation in a JPEG's head is a mirrored one (2, 4, 5 or 7): upside down, then turned by the
    rotation that FFmpeg makes of it."""
    _, found, tiff = head.partition(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    first = number(4, 4)
    entries = range(first + 2, first + 2 + 12 * min(number(first, 2), 100), 12) if found else ()
    return any(number(at, 2) == 0x112 and number(at + 8, 2) in (2, 4, 5, 7) for at in entries)


def _planar(native: av.VideoFrame) -> tuple[av.VideoFrame, int]:
    """The frame itself where its planes can be used as they are, else converted to 8-bit 4:4:4, RGB to BT.601 in
    full range; and its bit depth."""
    name = native.format.name
    for prefix in ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv440p", "gray"):
        if name == prefix:
            return native, 8
        if name.startswith(prefix) and name.endswith("le") and name[len(prefix) : -2] in ("9", "10", "12"):
            return native, int(name[len(prefix) : -2])
    full = {"dst_color_range": 2, "dst_colorspace": 5} if name.startswith(NOT_YUV) else {}
    return VideoReformatter().reformat(native, format="yuv444p", threads=1, **full), 8


def _plane(plane: Any, size: int) -> np.ndarray:
    rows = np.frombuffer(plane, np.uint8).reshape(-1, abs(plane.line_size))[: plane.height]
    return (rows.view(np.uint16) if size == 2 else rows)[:, : plane.width]
