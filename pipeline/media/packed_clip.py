"""A clip as it was packed: its frames, and videos with the same size, frames and times."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import av
import numpy as np

from pipeline.config.recipe import PackOptions
from pipeline.media.encode import ENCODERS, MP4, describe
from pipeline.media.memory_file import memory_file
from pipeline.media.video import Video

LUMA = np.rint(16 + np.arange(256) * (219 / 255)).astype(np.uint8)  # grey 0 to 255 -> Y in limited range


class PackedClip:
    """An mp4 that `encode_span` has made with `options`."""

    def __init__(self, data: bytes, options: PackOptions) -> None:
        self._data, self._encoder = data, ENCODERS[f"{options.codec} {options.preset}"]
        with av.open(io.BytesIO(data), "r") as container:
            stream: Any = container.streams.video[0]
            self._base, self._rate, self._end = stream.time_base, stream.average_rate, stream.duration
            self._times = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
            self.size = stream.width, stream.height

    def frames(self) -> Iterator[np.ndarray]:
        """Yield every frame, (h, w, 3) uint8 RGB."""
        with Video(io.BytesIO(self._data)) as video:
            for frame in video.frames():
                yield frame.rgb()

    def video(self, pictures: Iterable[np.ndarray]) -> bytes:
        """Return an mp4 of (h, w) uint8 grey pictures, one for each frame, of its size, encoded as the clip is."""
        width, height = self.size
        colours = np.full(width * height // 2, 128, np.uint8)
        ends = [*self._times[1:], self._end]
        with memory_file("companion") as (path, file):
            with av.open(path, "w", format="mp4", options=MP4) as container:
                stream: Any = container.add_stream(self._encoder[0], rate=self._rate, options=self._encoder[1])
                describe(stream.codec_context, self.size, self._base)
                for picture, start, end in zip(pictures, self._times, ends, strict=True):
                    data = np.concatenate([LUMA[picture].ravel(), colours])
                    native = av.VideoFrame.from_ndarray(data.reshape(height * 3 // 2, width), format="yuv420p")
                    native.pts, native.time_base, native.duration = start, self._base, max(1, end - start)
                    container.mux(stream.encode(native))
                container.mux(stream.encode(None))
            return file.read()
