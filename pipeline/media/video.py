"""Video files and still images: probing them and decoding them, in presentation order."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from pipeline.media.frame import Frame, is_mirrored, seconds
from pipeline.media.nal import is_non_reference
from pipeline.storage.store import Unreachable

av.logging.set_level(av.logging.PANIC)  # what FFmpeg has to say about a broken file becomes a MediaError

IMAGE_FORMATS = {"image2", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "webp", "mjpeg_pipe"}
HEAD = 1 << 16  # bytes of a JPEG, of which EXIF is the first part
JUMP_BACK = 1.0  # seconds: timestamps that go back further than this start another timeline, which cannot be addressed


class MediaError(Exception):
    """A file that cannot be used; the message says why in words for a person."""


@dataclass(frozen=True)
class Probe:
    """What a file says of its video stream. Sizes are as displayed: rotated, with square pixels."""

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


class Video:
    """An open file, to be used as a context manager. Decodes on one thread: the same bytes at any load. `rough` leaves
    H.264's B-frames without the filter that smooths their blocks, a twelfth of a decode.

    Raises MediaError from everything it does, or Unreachable where the file lies elsewhere and the way there is lost.
    """

    def __init__(self, file: str | BinaryIO, rough: bool = False):
        self._file, self._rough = file, rough
        self._wanted: Callable[[float], bool] | None = None
        self._skipped: list[int] = []  # pts of packets that were not decoded, in any order
        self._spare: set[int] = set()  # pts of packets that could have been left out
        self._open()
        try:
            self._unread: Iterator[av.VideoFrame] | None = self._decode()
            first = self._first_frame(self._unread)
            self._fields = bool(first.interlaced_frame)  # two packets may make one frame
            self._unread = chain([first], self._unread)  # a first decode goes on from there
            self.probe = self._probe(first)
            self._mirrored = self.probe.image and self.probe.codec == "mjpeg" and is_mirrored(self._head())
        except BaseException:
            self._container.close()
            raise

    def _open(self) -> None:
        self._container = _open(self._file)
        try:
            self._stream = _video_stream(self._container)
        except BaseException:
            self._container.close()
            raise
        context = self._stream.codec_context
        if self._rough and context.codec.canonical_name == "h264":  # P-frames may refer to others' B-frames in H.265
            context.options = {"skip_loop_filter": "bidir"}
        if self._container.format.name in IMAGE_FORMATS and context.codec.canonical_name == "mjpeg":
            context.options = {"err_detect": "explode"}  # else half a JPEG is a picture, and its other half green
        context.thread_count, context.thread_type = 1, "NONE"

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def frames(self, start: float | None = None, wanted: Callable[[float], bool] | None = None) -> Iterator[Frame]:
        """Frames in presentation order; from the keyframe at or before `start` seconds, or from the first.

        `wanted` says of a time whether a frame there has to be decoded: frames that it refuses are left out where no
        other frame refers to them (H.264 and H.265; usually a half to three quarters of all), but their times are
        known and come in `Frame.passed`, and those after the last frame given are in `remaining` afterwards.

        Timestamps are repaired: a missing one is the last plus one frame, a repeated or slightly earlier frame is left
        out, and decoding ends where time jumps back by more than a second. Corrupt packets are skipped. Raises
        MediaError("truncated: ...") at the end when the file stops short of what it promised or its picture changes
        size, after the frames that are there.
        """
        natives, self._unread = self._unread, None
        if start is not None and start > self.probe.start and not self.probe.image:
            self._seek(start)
            natives = None
        elif natives is None:
            self._rewind()
        self._wanted = wanted if self.skips else None
        base, step = self.probe.time_base, self._step()
        last: int | None = None
        for native in natives or self._decode():
            pts = native.pts
            if pts is None:
                pts = 0 if last is None else last + step
            elif last is not None and pts <= last:
                if (last - pts) * base > JUMP_BACK:
                    self._skipped.clear()
                    return
                continue
            passed = sorted(p for p in self._skipped if last is not None and last < p < pts)
            if (native.width, native.height) != (self.probe.coded_width, self.probe.coded_height):
                self._skipped = passed
                sizes = f"{self.probe.coded_width}x{self.probe.coded_height} to {native.width}x{native.height}"
                raise MediaError(f"truncated: the picture changes size from {sizes} at {float(pts * base):.2f} s")
            self._skipped = [p for p in self._skipped if p > pts]
            last = pts
            non_reference, key = pts in self._spare, bool(native.key_frame)
            b = int(native.pict_type) == 3  # AV_PICTURE_TYPE_B
            if self._mirrored:
                native = av.VideoFrame.from_ndarray(np.flipud(native.to_ndarray(format="rgb24")), format="rgb24")
            yield Frame(pts, seconds(pts, base), key, native, self.probe.rotation, b, (*passed, pts), non_reference)
        self._skipped = sorted(p for p in self._skipped if last is not None and p > last)

    @property
    def skips(self) -> bool:
        """Whether `wanted` has an effect: the codec has frames that nothing refers to, and packets are whole frames."""
        return self.probe.codec in ("h264", "hevc") and not self._fields and not self.probe.image

    @property
    def remaining(self) -> list[int]:
        """pts of the source's frames after the last one that was given, when `frames` is through."""
        return self._skipped

    def _head(self) -> bytes:
        """The first bytes, where a camera notes how it was held."""
        if isinstance(self._file, str):
            with open(self._file, "rb") as file:
                return file.read(HEAD)
        at = self._file.tell()
        self._file.seek(0)
        head = self._file.read(HEAD)
        self._file.seek(at)
        return head

    def _step(self) -> int:
        return max(1, round(1 / (self.probe.fps * self.probe.time_base))) if self.probe.fps else 1

    def _decode(self) -> Iterator[av.VideoFrame]:
        context, clean, errors = self._stream.codec_context, False, 0
        packets, base = self._container.demux(self._stream), self._stream.time_base
        self._skipped, self._spare = [], set()
        codec, header = context.codec.canonical_name, context.extradata
        while True:
            try:
                packet = next(packets, None)
            except Unreachable:
                raise
            except (av.error.FFmpegError, OSError) as error:
                raise MediaError(f"truncated: reading stopped ({_words(error)})") from error
            if packet is None:
                return
            if (
                self._wanted is not None
                and packet.pts is not None
                and is_non_reference(memoryview(packet), codec, header)
            ):
                if self._wanted(seconds(packet.pts, base)):
                    self._spare.add(packet.pts)
                else:
                    self._skipped += [] if packet.is_discard else [packet.pts]
                    continue
            try:
                frames = context.decode(packet if packet.size else None)
            except av.error.EOFError:
                return
            except av.error.FFmpegError as error:
                errors += 1
                if not clean and errors > 500:
                    raise MediaError(f"no frame could be decoded ({_words(error)})") from error
                continue
            for frame in frames:
                if not clean and frame.is_corrupt and not frame.key_frame:
                    continue  # after a seek: leading frames whose references lie before the seek point
                clean = True
                yield frame

    def _seek(self, start: float) -> None:
        """Leaves the demuxer at a keyframe at or before `start`; from the beginning where the file cannot seek."""
        base = self.probe.time_base
        for back in (0.0, 2.0, 10.0, 60.0):
            target = start - back
            if target <= self.probe.start:
                break
            try:
                self._container.seek(int(target / base), stream=self._stream, backward=True)
                self._stream.codec_context.flush_buffers()
                packets = self._container.demux(self._stream)
                key = next((p for p in packets if p.is_keyframe and p.pts is not None), None)
                if key is not None and key.pts * base <= start:
                    self._container.seek(int(target / base), stream=self._stream, backward=True)
                    self._stream.codec_context.flush_buffers()
                    return
            except av.error.FFmpegError:
                break
        self._rewind()

    def _rewind(self) -> None:
        """Back to the beginning by opening the file again, which images and streams without an index need."""
        self._container.close()
        self._open()

    def _probe(self, first: av.VideoFrame) -> Probe:
        stream, context = self._stream, self._stream.codec_context
        image = self._container.format.name in IMAGE_FORMATS or (stream.frames == 1 and not stream.duration)
        base = Fraction(stream.time_base or Fraction(1, 1000))
        rotation = round(first.rotation / 90) * 90 % 360
        aspect = Fraction(stream.sample_aspect_ratio or context.sample_aspect_ratio or 1) or Fraction(1)
        shown = (max(1, round(first.width * aspect)), first.height)
        if rotation % 180:
            shown = shown[::-1]
        fps = 0.0 if image else float(stream.average_rate or stream.guessed_rate or 0)
        start = float((first.pts if first.pts is not None else stream.start_time or 0) * base)
        return Probe(
            duration=0.0 if image else self._duration(base, start),
            fps=fps if 0 < fps < 1000 else 0.0 if image else 25.0,
            width=shown[0],
            height=shown[1],
            coded_width=first.width,
            coded_height=first.height,
            rotation=rotation,
            codec=context.codec.canonical_name,
            pix_fmt=first.format.name,
            time_base=base,
            start=0.0 if image else start,
            image=image,
        )

    @staticmethod
    def _first_frame(frames: Iterator[av.VideoFrame]) -> av.VideoFrame:
        try:
            first = next(frames, None)
        except MediaError as error:
            raise MediaError(f"no frame could be decoded ({error})") from error
        if first is None:
            raise MediaError("no frame could be decoded")
        return first

    def _duration(self, base: Fraction, start: float) -> float:
        if self._stream.duration:
            return max(0.0, float((self._stream.duration + (self._stream.start_time or 0)) * base) - start)
        if self._container.duration:
            zero = "matroska" in self._container.format.name  # which counts from 0 rather than from its first frame
            first = 0 if zero else self._container.start_time or 0
            return max(0.0, (self._container.duration + first) / av.time_base - start)
        return 0.0


def probe(file: str | BinaryIO) -> Probe:
    """What a file holds, from its header and its first frame. Raises MediaError."""
    with Video(file) as video:
        return video.probe


def _open(file: str | BinaryIO) -> Any:
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
        return av.open(file, mode="r", metadata_errors="ignore")
    except Unreachable:
        raise
    except PermissionError as error:
        raise MediaError("not allowed to read the file") from error
    except av.error.InvalidDataError as error:
        raise MediaError("not a video file, or its header is damaged or cut off") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"cannot be opened ({_words(error)})") from error


def _video_stream(container: Any) -> Any:
    """The first video stream that is not a cover picture; a sound file's cover is no video."""
    for stream in container.streams.video:
        if not int(stream.disposition) & 0x400:  # AV_DISPOSITION_ATTACHED_PIC
            if stream.codec_context is None:
                raise MediaError("its video codec is not supported")
            return stream
    kinds = sorted({s.type for s in container.streams})
    raise MediaError("no video stream" + (f" (only {', '.join(kinds)})" if kinds else ""))


def _words(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).split(":")[0]
