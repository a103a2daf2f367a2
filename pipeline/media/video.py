"""Video files and still images: probing them and decoding them, in presentation order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain
from typing import BinaryIO

import av

from pipeline.media.colour import colour_of, columns_of
from pipeline.media.container import (
    MediaError,
    Probe,
    duration_of,
    film_stream,
    first_bytes,
    is_encrypted,
    is_encrypted_stream,
    is_rate_plausible,
    is_tiled,
    measured_rate,
    open_container,
    words,
)
from pipeline.media.frame import Frame, seconds
from pipeline.media.nal import is_idr, is_non_reference
from pipeline.media.side_data import is_iptpqc2, orientation
from pipeline.media.timestamps import B_FRAME, DisplayTimes
from pipeline.storage.store import Unreachable

__all__ = ["MediaError", "Probe", "Video", "probe"]

av.logging.set_level(av.logging.PANIC)  # FFmpeg's errors are raised as MediaError instead

IMAGE_FORMATS = {"image2", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "webp", "mjpeg_pipe"}
HEAD = 1 << 16  # bytes at the start of a picture file that are searched for EXIF
UNSEEKABLE = {"asf", "mpeg"}  # formats for which FFmpeg guesses different packet times after a seek
JUMP_BACK = 1.0  # seconds: timestamps that go back further start another timeline, which cannot be addressed
OPENING_FRAMES = 8  # frames decoded at most to detect whether a stream with B-frames has display times


class Video:
    """An open file, to be used as a context manager. Decodes on one thread: the same bytes at any load. `rough` skips
    the deblocking filter of H.264's B-frames, a twelfth of a decode.

    Every method raises MediaError, or Unreachable if a remote file can no longer be read.
    """

    def __init__(self, file: str | BinaryIO, rough: bool = False):
        self._file, self._rough = file, rough
        self._wanted: Callable[[float], bool] | None = None
        self._skipped: list[int] = []  # pts of packets that were not decoded, in any order
        self._optional: set[int] = set()  # pts of non-reference packets that were decoded
        self._rate: float | None = None
        self._open()
        try:
            if not is_rate_plausible(self._stream):
                self._rate = measured_rate(self._container, self._stream)
                self._rewind()
            self._unread: Iterator[av.VideoFrame] | None = None
            first = self._opening()
            if is_iptpqc2(first):
                raise MediaError("Dolby Vision whose colours (IPTPQc2, as in profile 5) cannot be converted")
            self._is_field_coded = bool(first.interlaced_frame)  # two packets may form one frame
            self.probe = self._probe(first)
        except BaseException:
            self._container.close()
            raise

    def _open(self) -> None:
        self._container = open_container(self._file)
        try:
            if "mov" in self._container.format.name and is_tiled(self._file):
                raise MediaError("a picture in tiles (HEIF grid), which are not put together")
            self._stream = film_stream(self._container)
            # Decoders may take encrypted packets for damaged ones and make pictures of them.
            if "mov" in self._container.format.name and is_encrypted(self._file, [b"encv"]):
                raise MediaError("encrypted")
        except BaseException:
            self._container.close()
            raise
        context = self._stream.codec_context
        if self._rough and context.codec.canonical_name == "h264":  # P-frames may refer to others' B-frames in H.265
            context.options = {"skip_loop_filter": "bidir"}
        if self._container.format.name in IMAGE_FORMATS and context.codec.canonical_name == "mjpeg":
            context.options = {"err_detect": "explode"}  # otherwise a truncated JPEG decodes with a green half
        context.thread_count, context.thread_type = 1, "NONE"

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def frames(self, start: float | None = None, wanted: Callable[[float], bool] | None = None) -> Iterator[Frame]:
        """Yield frames in presentation order, from the keyframe at or before `start` seconds, or from the first.

        `wanted` returns for a time whether a frame there must be decoded. Others are skipped if no frame refers to them
        (H.264 and H.265; usually half to three quarters of all), but their pts are in `Frame.skipped_pts`, and those
        after the last frame in `remaining` afterwards.

        Timestamps are repaired: decoding times become presentation times, a missing one is the last plus one frame, a
        repeated or slightly earlier frame is dropped unless the last was missing, and decoding ends where time jumps
        back by more than a second. Corrupt packets are skipped. Raises MediaError("truncated: ...") after the readable
        frames if the file ends early or its picture changes size.
        """
        natives, self._unread = self._unread, None
        self._wanted = wanted if self.skips else None
        if start is not None and start > self.probe.start and self.is_seekable:
            self._seek(start)
            natives = self._decode_from(start)
        elif natives is None:
            self._rewind()
        base, step = self.probe.time_base, self._step()
        rotation, mirrored, colour = self.probe.rotation, self.probe.mirrored, self.probe.colour
        last: int | None = None
        is_estimated = False
        for native in natives or self._decode():
            pts = native.pts
            if pts is None:
                pts, is_estimated = 0 if last is None else last + step, True
            elif last is not None and pts <= last:
                if (last - pts) * base > JUMP_BACK:
                    self._skipped.clear()
                    return
                if not is_estimated:
                    continue
                pts = last + 1
            else:
                is_estimated = False
            skipped = sorted(p for p in self._skipped if last is not None and last < p < pts)
            if (native.width, native.height) != (self.probe.coded_width, self.probe.coded_height):
                self._skipped = skipped
                sizes = f"{self.probe.coded_width}x{self.probe.coded_height} to {native.width}x{native.height}"
                raise MediaError(f"truncated: the picture changes size from {sizes} at {float(pts * base):.2f} s")
            self._skipped = [p for p in self._skipped if p > pts]
            last = pts
            non_reference, key = pts in self._optional, bool(native.key_frame)
            is_b_frame = int(native.pict_type) == B_FRAME
            shown = (rotation, mirrored, colour)
            yield Frame(pts, seconds(pts, base), key, native, *shown, is_b_frame, (*skipped, pts), non_reference)
        self._skipped = sorted(p for p in self._skipped if last is not None and p > last)

    @property
    def streams(self) -> int:
        """Number of streams of any type in the file."""
        return len(self._container.streams)

    @property
    def skips(self) -> bool:
        """Whether `wanted` has an effect: the codec has frames that nothing refers to, and packets are whole frames."""
        usual = not self._is_field_coded and not self.probe.image and not self._is_permuted
        return usual and self.probe.codec in ("h264", "hevc")

    @property
    def is_seekable(self) -> bool:
        """Whether decoding can start at a keyframe, with the times that decoding from the beginning gives."""
        return self._container.format.name not in UNSEEKABLE and not self.probe.image

    @property
    def stream_index(self) -> int:
        """Index in the file of the stream that is decoded."""
        return int(self._stream.index)

    @property
    def remaining(self) -> list[int]:
        """pts of the source's frames after the last one that `frames` yielded, once it is exhausted."""
        return self._skipped

    def _step(self) -> int:
        return max(1, round(1 / (self.probe.fps * self.probe.time_base))) if self.probe.fps else 1

    def _decode(self) -> Iterator[av.VideoFrame]:
        context, clean, errors = self._stream.codec_context, False, 0
        packets, base = self._container.demux(self._stream), self._stream.time_base
        self._skipped, self._optional = [], set()
        times = self._times = DisplayTimes()
        codec, header = context.codec.canonical_name, context.extradata
        while True:
            try:
                packet = next(packets, None)
            except Unreachable:
                raise
            except IndexError:  # PyAV flushes a stream that appeared during reading, after the decoder's flush
                return
            except (av.error.FFmpegError, OSError) as error:
                raise MediaError(f"truncated: reading stopped ({words(error)})") from error
            if packet is None:
                return
            if (
                self._wanted is not None
                and packet.pts is not None
                and is_non_reference(memoryview(packet), codec, header)
            ):
                if self._wanted(seconds(packet.pts, base)):
                    self._optional.add(packet.pts)
                else:
                    self._skipped += [] if packet.is_discard else [packet.pts]
                    continue
            if packet.size and not packet.is_discard:
                times.add_packet(packet.pts, packet.dts)
            try:
                frames = context.decode(packet if packet.size else None)
            except av.error.EOFError:
                return
            except av.error.FFmpegError as error:
                errors += 1
                if not clean and errors > 500:
                    raise MediaError(f"no frame could be decoded ({words(error)})") from error
                continue
            for frame in frames:
                frame.pts = times.add_frame(frame, context.has_b_frames)
                if not clean and frame.is_corrupt and not frame.key_frame:
                    continue  # after a seek: leading frames that refer to frames before the seek point
                clean = True
                yield frame

    def _decode_from(self, start: float) -> Iterator[av.VideoFrame]:
        """Yield frames after a seek; from the first frame of the file if the seek overshot `start`, as with some edit
        lists."""
        frames = self._decode()
        first = next(frames, None)
        if first is not None and (first.pts is None or seconds(first.pts, self.probe.time_base) <= start):
            return chain([first], frames)
        self._rewind()
        return self._decode()

    def _seek(self, start: float) -> None:
        """Move the demuxer to a keyframe at or before `start`; to the beginning if the file cannot seek."""
        base = self.probe.time_base
        for back in (0.0, 2.0, 10.0, 60.0):
            target = start - back
            if target <= self.probe.start:
                break
            try:
                self._container.seek(int(target / base), stream=self._stream, backward=True)
                self._stream.codec_context.flush_buffers()
                packets = self._container.demux(self._stream)
                key = next((p for p in packets if p.pts is not None and self._is_entry(p)), None)
                if key is not None and key.pts * base <= start:
                    self._container.seek(int(target / base), stream=self._stream, backward=True)
                    self._stream.codec_context.flush_buffers()
                    return
            except (av.error.FFmpegError, IndexError):
                break
        self._rewind()

    def _is_entry(self, packet: av.Packet) -> bool:
        """Return whether decoding from this packet gives the same frames and times as decoding from the first."""
        if not packet.is_keyframe or not self._is_permuted:
            return packet.is_keyframe
        context = self._stream.codec_context
        codec = context.codec.canonical_name
        return codec in ("h264", "hevc") and is_idr(memoryview(packet), codec, context.extradata)

    def _rewind(self) -> None:
        """Return to the beginning by reopening the file, which images and streams without an index need."""
        self._container.close()
        self._open()

    def _probe(self, first: av.VideoFrame) -> Probe:
        stream, context = self._stream, self._stream.codec_context
        image = self._container.format.name in IMAGE_FORMATS or (stream.frames == 1 and not stream.duration)
        base = Fraction(stream.time_base or Fraction(1, 1000))
        rotation, mirrored = orientation(first, first_bytes(self._file, HEAD) if image else b"")
        aspect = Fraction(stream.sample_aspect_ratio or context.sample_aspect_ratio or 1) or Fraction(1)
        shown = (max(1, round(first.width * aspect)), first.height)
        if rotation % 180:
            shown = shown[::-1]
        rate = stream.guessed_rate if first.pts is None else self._rate or stream.average_rate or stream.guessed_rate
        fps = 0.0 if image else float(rate or 0)
        start = float((first.pts if first.pts is not None else stream.start_time or 0) * base)
        return Probe(
            duration=0.0 if image else duration_of(self._container, stream, start),
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
            mirrored=mirrored,
            colour=colour_of(first),
            stated_colour=columns_of(first),
        )

    def _opening(self) -> av.VideoFrame:
        """Decode and return the first frame. The first call of `frames` continues from there, and yields it again with
        those decoded after it to interpret the timestamps."""
        frames, opening = self._decode(), []
        try:
            for frame in frames:
                opening.append(frame)
                if len(opening) == OPENING_FRAMES or not self._times.is_unclear(self._stream.codec_context):
                    break
            self._unread = chain(opening, frames)
        except MediaError as error:  # if it follows some frames, decoding them again raises it again
            if not opening:
                raise MediaError(self._no_frame(f" ({error})")) from error
        if not opening:
            raise MediaError(self._no_frame(""))
        self._is_permuted = self._times.is_permuted
        return opening[0]

    def _no_frame(self, why: str) -> str:
        if is_encrypted_stream(self._stream) or is_encrypted(self._file):
            return "encrypted"
        return f"no frame could be decoded{why}"


def probe(file: str | BinaryIO) -> Probe:
    """Probe a file by its header and its first frame. Raises MediaError."""
    with Video(file) as video:
        return video.probe
