"""Synthetic videos with a known answer, written with PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: Sequence[float] | None = None,
    rotation: int = 0,
    aspect: Fraction | None = None,
    time_base: Fraction | None = None,
    container_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Writes (h, w, 3) uint8 RGB frames to `path` (container by its suffix) and returns it.

    `times` are presentation times in seconds of a variable frame rate; `rotation` is written to the container (degrees
    counter-clockwise for display), `aspect` is the sample aspect ratio; `options` go to the encoder (g="50", crf="20"),
    `container_options` to the muxer.
    """
    rate = Fraction(fps).limit_denominator(1001)
    container = av.open(str(path), "w", options=container_options or {})
    stream = None
    for index, frame in enumerate(frames):
        if stream is None:
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width = frame.shape[:2]
            stream.pix_fmt = pix_fmt
            stream.options = {"threads": "1", **options}
            if times is not None or time_base is not None:
                stream.codec_context.time_base = time_base or Fraction(1, 90000)
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            if rotation:
                stream.set_display_rotation(rotation)
        native = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        if times is not None or time_base is not None:
            base = stream.codec_context.time_base
            native.pts, native.time_base = round((times[index] if times is not None else index / fps) / base), base
        else:
            native.pts, native.time_base = index, 1 / rate
        container.mux(stream.encode(native))
    assert stream is not None, "no frames"
    container.mux(stream.encode(None))
    container.close()
    return Path(path)


def texture(seed: int, height: int = 180, width: int = 320, scale: int = 12) -> np.ndarray:
    """A still colour picture of smooth random blobs with fine detail, unlike that of any other seed; uint8 RGB."""
    random = np.random.default_rng(seed)
    coarse = random.integers(20, 236, (height // scale + 2, width // scale + 2, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + random.normal(0, 6, (height, width, 1)), 0, 255).astype(np.uint8)


def pan(picture: np.ndarray, frames: int, dx: float, dy: float = 0.0) -> list[np.ndarray]:
    """`frames` frames of a picture whose content moves by (dx, dy) pixels a frame, reflected at its edges."""
    height, width = picture.shape[:2]
    moves = [np.array([[1, 0, dx * i], [0, 1, dy * i]], np.float32) for i in range(frames)]
    return [cv2.warpAffine(picture, m, (width, height), borderMode=cv2.BORDER_REFLECT_101) for m in moves]
