"""Stream copy: a span that can be taken out of its source packet by packet needs no encoding."""

from __future__ import annotations

import tempfile
from typing import Any, BinaryIO

import av

from pipeline.media.encode import Cut, Encoded
from pipeline.media.video import MediaError, Probe

CODECS = ("h264", "hevc", "av1", "vp9")  # that an mp4 can hold
PROGRESSIVE = (0, 1)  # AV_FIELD_UNKNOWN, AV_FIELD_PROGRESSIVE


def copy_span(file: str | BinaryIO, cut: Cut, probe: Probe) -> Encoded | None:
    """The span as an mp4 of the source's own packets; None where it has to be encoded instead.

    It can be copied when nothing about the picture changes, it starts on a keyframe, and its packets follow each other:
    no frame before it or after it lies between them, as happens around open groups of pictures and where the last
    frames refer to one behind the end. Raises MediaError where the file cannot be read.
    """
    whole = cut.crop == (0, 0, *cut.shown) and cut.size == cut.shown == (probe.coded_width, probe.coded_height)
    if not whole or probe.rotation or probe.codec not in CODECS or probe.pix_fmt != "yuv420p":
        return None
    start, end = (round(pts * cut.time_base / probe.time_base) for pts in (cut.start_pts, cut.end_pts))
    try:
        with av.open(file, "r", metadata_errors="ignore") as source:
            stream: Any = source.streams.best("video")
            if stream is None or stream.codec_context.field_order not in PROGRESSIVE:
                return None
            source.seek(start, stream=stream)
            packets = _packets(source, stream, start, end)
            return _write(stream, packets, start, end, cut) if packets else None
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"cannot be copied ({error.strerror})") from error


def _packets(source: Any, stream: Any, start: int, end: int) -> list[av.Packet]:
    """Those with start <= pts < end, in decoding order, or none where they cannot stand alone."""
    packets: list[av.Packet] = []
    closed = False
    for packet in source.demux(stream):
        if packet.pts is None or packet.dts is None or packet.dts >= end:
            break
        inside = start <= packet.pts < end
        if not packets and not (inside and packet.is_keyframe and packet.pts == start):
            if packet.pts > start:
                return []
            continue
        if inside and closed:
            return []
        if inside:
            packets.append(packet)
        else:
            closed = True
    return packets


def _write(stream: Any, packets: list[av.Packet], start: int, end: int, cut: Cut) -> Encoded:
    base = stream.time_base
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with av.open(file.name, "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as target:
            copied = target.add_stream_from_template(stream)
            last = max(packets, key=lambda packet: packet.pts or 0)
            last.duration = end - (last.pts or 0)
            for packet in packets:
                packet.pts, packet.dts = (packet.pts or 0) - start, (packet.dts or 0) - start
                packet.stream = copied
                target.mux(packet)
        data = file.read()
    length = (end - start) * base
    return Encoded(data, "mp4", len(packets), float(len(packets) / length), *cut.size, float(length))
