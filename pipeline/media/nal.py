"""NAL unit headers of H.264 and H.265 packets: detection of non-reference frames and IDR frames.

Non-reference frames, half to three quarters of most files, need not be decoded. Layouts from ITU-T H.264 and H.265,
7.3.1, and ISO/IEC 14496-15, 5.3 and 8.3 (the number of bytes of a unit's size field).
"""

from __future__ import annotations

from collections.abc import Iterator

HEAD = 4096  # bytes of a packet searched for its first slice


def is_non_reference(packet: memoryview, codec: str, header: bytes | None) -> bool:
    """Return whether no frame refers to that of a packet; False if unknown. `header` is the stream's extradata."""
    head = _first_slice(packet, codec, header)
    if codec == "h264":
        return head is not None and head >> 5 & 3 == 0
    return head is not None and head >> 1 < 15 and head >> 1 & 1 == 0


def is_idr(packet: memoryview, codec: str, header: bytes | None) -> bool:
    """Return whether a packet of H.264 or H.265 is a keyframe before which all earlier frames are displayed."""
    head = _first_slice(packet, codec, header)
    return head is not None and (head & 31 == 5 if codec == "h264" else head >> 1 in (19, 20))


def _first_slice(packet: memoryview, codec: str, header: bytes | None) -> int | None:
    """Return the first byte of a packet's first NAL unit that is a slice."""
    place = 4 if codec == "h264" else 21
    boxed = header is not None and len(header) > place and header[0] == 1  # else units have start codes (Annex B)
    for head in _heads(bytes(packet[:HEAD]), (header[place] & 3) + 1 if boxed and header else 0):
        if 1 <= head & 31 <= 5 if codec == "h264" else head >> 1 < 32:
            return head
    return None


def _heads(data: bytes, length: int) -> Iterator[int]:
    """Yield the first byte of each NAL unit; the size field before it has `length` bytes, 0 for start codes."""
    at = length
    while at < len(data):
        if not length:
            at = data.find(b"\0\0\1", at) + 3
            if not 3 <= at < len(data):
                return
        yield data[at]
        at += int.from_bytes(data[at - length : at]) + length
