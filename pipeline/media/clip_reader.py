"""Reading frames of a packed clip in memory at given times and size, and writing a few frames as an MP4.

Training needs few frames of a clip, and decoding dominates the cost of loading. So the packets are inspected first, and
only those that the wanted frames need are decoded: from the keyframe before each, without non-reference frames. The
result is bit for bit that of decoding the whole clip.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter


class ClipError(ValueError):
    """A clip that cannot be decoded; the message says why."""


def read_frames(data: bytes, times: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the frames shown at `times` (seconds from the clip's start), scaled to cover and cropped at the centre:
    (n, height, width, 3) uint8 RGB. Times past the end give the last frame. Raises ClipError."""
    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            stream.thread_type, stream.thread_count = "NONE", 1
            packets = [p for p in container.demux(stream) if p.size and p.pts is not None]
            pts = np.sort([p.pts for p in packets if not p.is_discard])
            shown = pts[shown_at((pts - pts[0]) * float(stream.time_base or 1), times)]
            size = cover(stream.height, stream.width, height, width)
            y, x = (size[0] - height) // 2, (size[1] - width) // 2
            out = np.empty((len(shown), height, width, 3), np.uint8)
            scaler, converter = VideoReformatter(), VideoReformatter()  # scaling planes before RGB is 3 times faster
            missing = set(shown.tolist())
            for frame in _decode(stream.codec_context, packets, missing.copy()):
                small = scaler.reformat(frame, size[1], size[0], "yuv420p", interpolation="AREA")
                rgb = converter.reformat(small, format="rgb24").to_ndarray()
                out[shown == frame.pts] = rgb[y : y + height, x : x + width]
                missing.discard(frame.pts)
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise ClipError(f"cannot decode the clip: {error}") from error
    if missing:
        raise ClipError(f"{len(missing)} frames of the clip cannot be decoded")
    return out


def frame_times(data: bytes) -> np.ndarray:
    """Return the presentation times of a clip's frames, seconds from its first frame, in order. Raises ClipError."""
    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            packets = [p for p in container.demux(stream) if p.size and p.pts is not None and not p.is_discard]
            pts = np.sort([p.pts for p in packets])
            return (pts - pts[0]) * float(stream.time_base or 1)
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise ClipError(f"cannot read the clip: {error}") from error


def shown_at(frames: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return which frame is shown at each of `times`, given the frames' own times; both in seconds, `frames` sorted.
    A millisecond of tolerance, since `times` are computed and frames are at multiples of a time base."""
    return (np.searchsorted(frames, np.asarray(times) + 1e-3, side="right") - 1).clip(0)


def _decode(context: av.VideoCodecContext, packets: Sequence[av.Packet], wanted: set[int]) -> Iterator[av.VideoFrame]:
    """Yield the frames whose pts is in `wanted`, in order of pts; `packets` are all of the clip's, in file order."""
    pts = np.array([packet.pts for packet in packets])
    keys = np.flatnonzero([packet.is_keyframe for packet in packets])
    is_wanted = np.isin(pts, list(wanted))
    needed = np.zeros(len(packets), bool)
    for index in np.flatnonzero(
        is_wanted
    ):  # a frame shown before the keyframe that it follows needs the keyframe before, too
        start = keys[(keys <= index) & (pts[keys] <= pts[index])]
        needed[start[-1] if len(start) else 0 : index + 1] = True
    all_or_none = context.codec.name == "libdav1d"  # ignores later changes of skip_frame
    for index in np.flatnonzero(needed):
        context.skip_frame = "DEFAULT" if is_wanted[index] or all_or_none else "NONREF"
        yield from (frame for frame in context.decode(packets[int(index)]) if frame.pts in wanted)
    yield from (frame for frame in context.decode(None) if frame.pts in wanted)


def read_image(data: bytes, height: int, width: int) -> np.ndarray:
    """Decode an image (JPEG, PNG) to (1, height, width, 3) uint8 RGB, scaled to cover and cropped. Raises ClipError."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ClipError("cannot decode the image")
    return fit(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)[None], height, width)


def fit(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale (n, h, w, 3) uint8 by area to cover height x width, and crop it at the centre."""
    h, w = frames.shape[1:3]
    size = cover(h, w, height, width)
    if size != (h, w):
        frames = np.stack([cv2.resize(f, (size[1], size[0]), interpolation=cv2.INTER_AREA) for f in frames])
    y, x = (size[0] - height) // 2, (size[1] - width) // 2
    return np.ascontiguousarray(frames[:, y : y + height, x : x + width])


def cover(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """Return the size of an h x w picture scaled to just cover height x width."""
    scale = max(height / h, width / w)
    return max(height, round(h * scale)), max(width, round(w * scale))


def write_mp4(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write (n, height, width, 3) uint8 RGB as near-lossless H.264; odd sizes lose a row or a column."""
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
