"""Frames of a packed clip held in memory, at wanted times and size; and writing a few frames as an MP4.

Training reads short, well-formed clips that packing made. Decord is fast but stops at what it does not know, so PyAV
stands behind it.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np


class ClipError(ValueError):
    """A clip that cannot be decoded; the message says why."""


def read_frames(
    data: bytes,
    times: np.ndarray,
    height: int,
    width: int,
    decoder: str = "decord",
    source: tuple[int, int] | None = None,
) -> np.ndarray:
    """The frames shown at `times` (seconds from the clip's start, rising), scaled to cover and cropped at the centre:
    (n, height, width, 3) uint8 RGB. Times past the end show the last frame. decoder: decord or av.
    source: height and width of the clip, which saves decord opening it twice. Raises ClipError."""
    if decoder == "decord":
        try:
            return _read_decord(data, times, height, width, source)
        except Exception:  # decord raises its own and plain RuntimeErrors; whatever it was, PyAV is asked next
            pass
    try:
        return _read_av(data, times, height, width)
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise ClipError(f"cannot decode the clip: {error}") from error


def read_image(data: bytes, height: int, width: int) -> np.ndarray:
    """A still image (JPEG, PNG) as (1, height, width, 3) uint8 RGB, scaled to cover and cropped. Raises ClipError."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ClipError("cannot decode the image")
    return fit(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)[None], height, width)


def fit(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """(n, h, w, 3) uint8 scaled by area to cover height x width and cropped at the centre."""
    h, w = frames.shape[1:3]
    size = cover(h, w, height, width)
    if size != (h, w):
        frames = np.stack([cv2.resize(f, (size[1], size[0]), interpolation=cv2.INTER_AREA) for f in frames])
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return np.ascontiguousarray(frames[:, top : top + height, left : left + width])


def cover(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """The size of an h x w picture scaled to just cover height x width."""
    scale = max(height / h, width / w)
    return max(height, round(h * scale)), max(width, round(w * scale))


def write_mp4(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """(n, height, width, 3) uint8 RGB to H.264, near-lossless; odd sizes lose a row or a column."""
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def _read_decord(data: bytes, times: np.ndarray, height: int, width: int, source: tuple[int, int] | None) -> np.ndarray:
    import decord

    h, w = source or decord.VideoReader(io.BytesIO(data), num_threads=1)[0].shape[:2]
    size = cover(h, w, height, width)
    reader = decord.VideoReader(io.BytesIO(data), num_threads=1, height=size[0], width=size[1])
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    starts = starts - starts[0]
    indexes = np.searchsorted(starts, np.asarray(times) + 1e-3, side="right") - 1
    return fit(reader.get_batch(indexes.clip(0, len(reader) - 1)).asnumpy(), height, width)


def _read_av(data: bytes, times: np.ndarray, height: int, width: int) -> np.ndarray:
    wanted = list(np.asarray(times, np.float64) + 1e-3)
    frames: list[np.ndarray] = []
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "NONE", 1
        base = float(stream.time_base or 0)
        origin = (stream.start_time or 0) * base
        if wanted[0] > 0.5:  # a packed clip has several keyframes; before the first wanted frame, start at the last
            container.seek(int((origin + wanted[0]) / base), stream=stream)
        size = cover(stream.height, stream.width, height, width)
        shown: av.VideoFrame | None = None

        def take(frame: av.VideoFrame) -> None:
            rgb = frame.reformat(size[1], size[0], "rgb24", interpolation="AREA").to_ndarray()
            frames.append(rgb)

        for frame in container.decode(stream):
            while shown is not None and wanted and (frame.pts or 0) * base - origin > wanted[0]:
                take(shown)
                wanted.pop(0)
            shown = frame
            if not wanted:
                break
        if shown is None:
            raise ValueError("it has no frame")
        for _ in wanted:
            take(shown)
    return fit(np.stack(frames), height, width)
