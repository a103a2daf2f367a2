"""Opening a file: the choice of its video stream, the metadata in its header, and why it cannot be used."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av

from pipeline.media.colour import Colour
from pipeline.media.faults import is_machine_fault
from pipeline.storage.store import Unreachable

HEADER = 1 << 20  # bytes searched for the boxes of encrypted MP4
ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC
PLAYLISTS = frozenset(
    ("concat", "concatf", "dash", "hls", "imf", "sdp", "tty")
)  # formats that hold no video themselves
ENCRYPTION_BOXES = (b"encv", b"enca", b"pssh", b"senc", b"tenc")  # ISO/IEC 23001-7
LARGEST_RATE = 120.0  # frames a second; a larger rate in a header is checked against the packets' times
RATE_PACKETS = 600  # packets whose times are read to measure a frame rate


class MediaError(Exception):
    """A file that cannot be used; the message says why, for users."""


@dataclass(frozen=True)
class Probe:
    """Properties of a file's video stream. Sizes are as displayed: rotated, with square pixels."""

    duration: float  # seconds from `start` to the end; 0 for a still image, estimated where the file does not say
    fps: float  # frames per second on average; 0 for a still image
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation: int  # degrees counter-clockwise that the decoded frame is turned for display: 0, 90, 180, 270
    codec: str
    pix_fmt: str
    time_base: Fraction
    start: float  # presentation time of the first frame, seconds
    image: bool = False
    mirrored: bool = False  # the decoded frame is turned upside down before it is rotated
    colour: Colour = field(default_factory=Colour)
    stated_colour: Mapping[str, str | None] = field(default_factory=dict)  # columns of tables.SOURCES


def open_container(file: str | BinaryIO) -> Any:
    """Open a file as a PyAV container. Raises MediaError, or Unreachable."""
    if isinstance(file, str):
        path = Path(file)
        if not path.exists():
            raise MediaError("no such file")
        if path.is_dir():
            raise MediaError("a folder, not a file")
        if path.stat().st_size == 0:
            raise MediaError("empty file")
    else:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if size == 0:
            raise MediaError("empty file")
    try:
        container = av.open(file, mode="r", metadata_errors="ignore")
    except Unreachable:
        raise
    except PermissionError as error:
        raise MediaError("not allowed to read the file") from error
    except av.error.InvalidDataError as error:
        if is_encrypted(file):
            raise MediaError("encrypted") from error
        raise MediaError("not a video file, or its header is damaged or cut off") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if is_machine_fault(error):
            raise
        raise MediaError(f"cannot be opened ({words(error)})") from error
    if container.format.name in PLAYLISTS:
        container.close()
        raise MediaError(f"not a video file but a playlist or text ({container.format.name})")
    return container


def film_stream(container: Any) -> Any:
    """Return the video stream to use: the first that is not a cover picture. Animated AVIF and HEIF begin with still
    pictures for simple viewers: then the first stream that has more frames and is not an alpha channel. Raises
    MediaError if there is none, as in an audio file with a cover."""
    streams = [s for s in container.streams.video if not int(s.disposition) & ATTACHED_PICTURE]
    if not streams:
        types = sorted({s.type for s in container.streams})
        raise MediaError("no video stream" + (f" (only {', '.join(types)})" if types else ""))
    first = streams[0]
    if first.frames == 1 and not first.duration and len(streams) > 1:
        supported = [s for s in streams if s.codec_context is not None]
        first = min(supported, key=lambda s: (s.frames <= 1, s.codec_context.pix_fmt == "gray"), default=first)
    if first.codec_context is None:
        raise MediaError("encrypted" if is_encrypted_stream(first) else "its video codec is not supported")
    return first


def is_encrypted(file: str | BinaryIO, boxes: Sequence[bytes] = ENCRYPTION_BOXES) -> bool:
    """Return whether the first mebibyte has one of the `boxes` of encrypted MP4: four bytes of size, then its type."""
    data = first_bytes(file, HEADER)
    places = (data.find(box) for box in boxes)
    return any(at >= 4 and 8 <= int.from_bytes(data[at - 4 : at]) <= HEADER for at in places)


def is_encrypted_stream(stream: Any) -> bool:
    """Return whether the container marks the stream's packets as encrypted (MP4, Matroska)."""
    tag = stream.codec_context.codec_tag if stream.codec_context is not None else ""
    return tag == "encv" or "enc_key_id" in stream.metadata


def is_tiled(file: str | BinaryIO) -> bool:
    """Return whether a HEIF or AVIF file has a picture in tiles, of which FFmpeg makes a stream each: an item of type
    `grid` (ISO/IEC 23008-12)."""
    data = first_bytes(file, HEADER)
    items = (match.end() for match in re.finditer(b"infe", data))  # versions 2 and 3 differ in the size of an item's id
    return any(b"grid" in (data[at + 8 : at + 12], data[at + 10 : at + 14]) for at in items)


def first_bytes(file: str | BinaryIO, size: int) -> bytes:
    """Return the first bytes of a file; its position does not change."""
    if isinstance(file, str):
        with open(file, "rb") as opened:
            return opened.read(size)
    position = file.tell()
    file.seek(0)
    data = file.read(size)
    file.seek(position)
    return data


def is_rate_plausible(stream: Any) -> bool:
    """Return whether the header has a plausible mean frame rate."""
    return stream.average_rate is not None and 0 < stream.average_rate <= LARGEST_RATE


def measured_rate(container: Any, stream: Any) -> float | None:
    """Return frames a second from the times of the first packets, None without usable times. Advances the demuxer."""
    times = []
    try:
        for packet in container.demux(stream):
            time = packet.dts if packet.pts is None else packet.pts
            if time is not None and packet.size and not packet.is_discard:
                times.append(time)
            if len(times) >= RATE_PACKETS:
                break
    except (av.error.FFmpegError, OSError):
        pass
    span = (max(times) - min(times)) * stream.time_base if len(times) > 2 else 0
    return float((len(times) - 1) / span) if span else None


def duration_of(container: Any, stream: Any, start: float) -> float:
    """Return seconds from `start` to the end by the header; 0 if it has no duration."""
    if stream.duration:
        return max(0.0, float((stream.duration + (stream.start_time or 0)) * stream.time_base) - start)
    if container.duration:
        zero = "matroska" in container.format.name  # its duration counts from 0, not from the first frame
        first = 0 if zero else container.start_time or 0
        return max(0.0, (container.duration + first) / av.time_base - start)
    return 0.0


def words(error: BaseException) -> str:
    """Return the message of an error of FFmpeg or the system, without the file's name."""
    return str(getattr(error, "strerror", None) or error).split(":")[0]
