"""Side data of a frame: its orientation for display, the peak brightness of HDR, and the colours of Dolby Vision."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Literal

import av
from av.sidedata.sidedata import Type

EXIF_MARK = b"Exif\0\0"
MIRRORED = (2, 4, 5, 7)  # EXIF orientations


def side_data(frame: av.VideoFrame) -> Mapping[Type, bytes] | None:
    """Return the side data of a frame by type; None if it contains EXIF, which PyAV cannot read."""
    try:
        parts: Any = frame.side_data
        return {data.type: bytes(data) for data in parts}
    except ValueError:
        return None


def orientation(frame: av.VideoFrame, head: bytes) -> tuple[int, bool]:
    """Return the rotation in degrees counter-clockwise (0, 90, 180, 270), and whether a vertical flip precedes it.

    From the display matrix (a, b, u, c, d, v, x, y, w): the picture's x axis points to (a, b), its y axis to (c, d).
    A picture with EXIF has its orientation in `head`, the file's first bytes.
    """
    rotation, data = round(frame.rotation / 90) * 90 % 360, side_data(frame)
    if data is None:
        return rotation, _is_mirrored_exif(head)
    if Type.DISPLAYMATRIX not in data:
        return 0, False
    a, b, _, c, d = struct.unpack("<5i", data[Type.DISPLAYMATRIX][:20])
    area = a * d - b * c
    return (rotation, area < 0) if area else (0, False)


def brightest(frame: av.VideoFrame) -> float | None:
    """Return cd/m2 of the brightest pixel: MaxCLL, else the peak of the mastering display; None without either."""
    data = side_data(frame) or {}
    if level := data.get(Type.CONTENT_LIGHT_LEVEL):
        return float(struct.unpack("<I", level[:4])[0]) or None
    if mastering := data.get(Type.MASTERING_DISPLAY_METADATA):
        numerator, denominator = struct.unpack("<2i", mastering[72:80])  # AVMasteringDisplayMetadata.max_luminance
        return numerator / denominator if numerator > 0 and denominator > 0 else None
    return None


def is_iptpqc2(frame: av.VideoFrame) -> bool:
    """Return whether Dolby Vision's metadata say that the colours are IPTPQc2, as in profile 5, and in 10.0 of AV1.
    They are no Y'CbCr, and no tag of the stream says so.

    The metadata begins with the offset of its header, a size_t (FFmpeg's dovi_meta.h: AVDOVIMetadata and
    AVDOVIRpuDataHeader); profiles that say 0 there and have full range are these two.
    """
    data = (side_data(frame) or {}).get(Type.DOVI_METADATA)
    if data is None:
        return False
    header = data[struct.unpack_from("@N", data)[0] :]
    rpu_profile, full_range = header[4], header[10]
    return rpu_profile == 0 and full_range == 1


def _is_mirrored_exif(head: bytes) -> bool:
    """Return whether the EXIF orientation in a JPEG's head is mirrored (2, 4, 5 or 7): flipped vertically, then rotated
    as FFmpeg reports."""
    _, mark, tiff = head.partition(EXIF_MARK)
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    first = number(4, 4)
    entries = range(first + 2, first + 2 + 12 * min(number(first, 2), 100), 12) if mark else ()
    return any(number(at, 2) == 0x112 and number(at + 8, 2) in MIRRORED for at in entries)
