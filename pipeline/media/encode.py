"""Encoding of a span of a source as a small file for training."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import av
import av.filter
import cv2
import numpy as np
from av.codec.context import Flags
from av.video.frame import PictureType

from pipeline.config.recipe import PackOptions
from pipeline.media.colour import BT709, picture_to_bt709, planes_to_bt709
from pipeline.media.faults import is_machine_fault
from pipeline.media.frame import Frame
from pipeline.media.frame_rate import without_gaps
from pipeline.media.memory_file import memory_file
from pipeline.media.side_data import side_data
from pipeline.media.sound import Sound, SoundReader, encode_sound, measure
from pipeline.media.video import MediaError, Video

VERSION = 5  # raise it when the same span would be encoded to other bytes
CONTINUE = 2.0  # seconds: a span that starts this soon after the last one is reached by decoding on, not by seeking
JPEG_QUALITY = 95  # 0 to 100
LIMITED = 1  # AVCOL_RANGE_MPEG
# x264's AVX-512 code gives other bytes than its other code paths, and sometimes varies for the same frames.
AVX512 = cv2.checkHardwareSupport(13)  # CV_CPU_AVX_512F
X264 = {"x264-params": "asm=MMX2,SSE2Fast,SSSE3,SSE4.2,AVX,FMA3,BMI1,BMI2,AVX2,LZCNT"} if AVX512 else {}
SVT = "lp=1:asm=avx2" if AVX512 else "lp=1"
X265 = "pools=none:frame-threads=1:log-level=none:"
SPARSE = {"bf": "5", "b_strategy": "0", "b-pyramid": "none", "refs": "1"}
ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    # One thread, and only deterministic options. `fast_loading` trades bytes for a short distance from any frame back
    # to a keyframe. Five of six frames of its H.264 and H.265 are non-reference frames, so that a loader of few frames
    # need not decode them. See tests/benchmarks/media/pack_speed.py and load_speed.py for measurements.
    "h264 fast_loading": ("libx264", {"preset": "medium", "crf": "24", "g": "24", **SPARSE, "coder": "cavlc", **X264}),
    "h264 small": ("libx264", {"preset": "slow", "crf": "23", "g": "250", **X264}),
    "h265 fast_loading": (
        "libx265",
        {"preset": "medium", "crf": "24", "x265-params": X265 + "keyint=24:bframes=5:b-adapt=0:no-b-pyramid=1:ref=1"},
    ),
    "h265 small": ("libx265", {"preset": "medium", "crf": "26", "x265-params": X265 + "keyint=250"}),
    "av1 fast_loading": ("libsvtav1", {"preset": "8", "crf": "32", "g": "24", "svtav1-params": SVT + ":fast-decode=2"}),
    "av1 small": ("libsvtav1", {"preset": "6", "crf": "34", "g": "240", "svtav1-params": SVT}),
}
MP4 = {"movflags": "+faststart", "fflags": "+bitexact"}  # options of the muxer
os.environ.setdefault("SVT_LOG", "0")  # otherwise the AV1 encoder logs every clip to standard error


@dataclass(frozen=True)
class Cut:
    """A span and crop of a source: frames with start_pts <= pts < end_pts, and of them the part `crop` (x, y, width,
    height in pixels of the picture as displayed, whose size is `shown`), filling `size` (width, height)."""

    start_pts: int
    end_pts: int
    time_base: Fraction
    shown: tuple[int, int]
    crop: tuple[int, int, int, int]
    size: tuple[int, int]

    def part(self) -> tuple[float, float, float, float]:
        """Return x, y, width, height as fractions of the displayed picture: the centre of `crop` in the aspect ratio of
        `size`."""
        x, y, width, height = self.crop
        scale = max(self.size[0] / width, self.size[1] / height)
        w, h = self.size[0] / scale, self.size[1] / scale
        x0, y0 = x + (width - w) / 2, y + (height - h) / 2
        return x0 / self.shown[0], y0 / self.shown[1], w / self.shown[0], h / self.shown[1]


@dataclass(frozen=True)
class Encoded:
    """A finished sample. `fps` is its rate `without_gaps`, 0 for a still image; `duration` is in seconds. `sound`
    has the columns of `no_sound` where sound was asked for; `companions` are further files by member."""

    data: bytes
    media: Literal["mp4", "jpg"]
    frames: int
    fps: float
    width: int
    height: int
    duration: float
    sound: Mapping[str, Any] | None = None
    companions: Mapping[str, bytes] = field(default_factory=dict)


class SpanReader:
    """Spans of one open video, cheapest in order of time: consecutive spans are one decode."""

    def __init__(self, video: Video):
        self.video = video
        self._frames: Iterator[Frame] = iter(())
        self._ahead: Frame | None = None  # decoded but not yet returned

    def frames(self, start: int, end: int) -> Iterator[Frame]:
        """Frames with start <= pts < end, in the stream's time base. Raises MediaError."""
        base = self.video.probe.time_base
        limit = CONTINUE if self.video.is_seekable else math.inf
        near = self._ahead is not None and 0 <= (start - self._ahead.pts) * base < limit
        if not near:
            self._frames = self.video.frames(float((start + Fraction(1, 2)) * base))
            self._ahead = next(self._frames, None)
        while self._ahead is not None and self._ahead.pts < end:
            frame, self._ahead = self._ahead, None
            if frame.pts >= start:
                yield frame
            self._ahead = next(self._frames, None)


def encode_span(
    reader: SpanReader,
    cut: Cut,
    options: PackOptions,
    frames: int | None = None,
    sounds: SoundReader | None = None,
) -> Encoded:
    """Encode the span as an mp4 of `cut.size`: square pixels, upright, 8-bit 4:2:0, BT.709 in limited range,
    tone-mapped if the source is HDR, progressive. At a constant rate (`options.fps`) it has `frames` frames, or as many
    as its length gives. With `sounds` it has their sound of the same length; if that cannot be read, the columns say
    why. The same input and options give the same bytes. Raises MediaError if the source has no frame in the span or the
    encoder fails."""
    base = reader.video.probe.time_base
    start, end = (round(pts * cut.time_base / base) for pts in (cut.start_pts, cut.end_pts))
    decoded = _progressive(reader.frames(start, end), base)
    length = end - start
    rate = Fraction(options.fps or reader.video.probe.fps or 25).limit_denominator(1001)
    if options.fps:
        length = frames or max(1, round(length * base * rate))
        timed = _constant_rate(decoded, start, length, base * rate)
        base = 1 / rate
    else:
        timed = ((frame, frame.pts - start) for frame in decoded)
    encoder = ENCODERS[f"{options.codec} {options.preset}"]
    sound, about_sound = _sound(sounds, cut.start_pts * cut.time_base, length * base)
    with memory_file("clip") as (path, file):
        try:
            durations = _write_mp4(path, timed, length, rate, base, cut, encoder, sound)
        except av.error.FFmpegError as error:
            if is_machine_fault(error):
                raise
            raise MediaError(f"the encoder gave up ({error.strerror})") from error
        data = file.read()
    usual = without_gaps(durations)
    fps = float(len(usual) / (int(usual.sum()) * base))
    return Encoded(data, "mp4", len(durations), fps, *cut.size, float(length * base), about_sound)


def no_sound(error: str | None = None) -> dict[str, Any]:
    """Return the columns of a clip without sound; `error` says why it has none where its source has some."""
    return {"has_audio": False, "audio_loudness": None, "audio_silence": None, "audio_error": error}


def _sound(
    reader: SoundReader | None, start: Fraction, seconds: Fraction
) -> tuple[Sound | None, dict[str, Any] | None]:
    """Return the sound of a clip, and its columns."""
    if reader is None:
        return None, None
    try:
        sound = reader.read(start, seconds)
    except MediaError as error:
        return None, no_sound(str(error))
    if sound is None:
        return None, no_sound()
    loudness, silence = measure(sound)
    columns = {"has_audio": True, "audio_loudness": loudness, "audio_silence": silence, "audio_error": sound.error}
    return sound, columns


def encode_image(reader: SpanReader, cut: Cut) -> Encoded:
    """Encode a still image, or a span's first frame, as JPEG of `cut.size`. Raises MediaError."""
    frames = reader.video.frames() if reader.video.probe.image else reader.frames(cut.start_pts, cut.end_pts)
    frame = next(iter(frames), None)
    if frame is None:
        raise MediaError("no frame in the span")
    picture = picture_to_bt709(_fit(frame.rgb(), cut.part(), cut.size, 1), frame.colour)
    data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return Encoded(data.tobytes(), "jpg", 1, 0.0, *cut.size, 0.0)


def _write_mp4(
    path: str,
    frames: Iterator[tuple[Frame, int]],
    length: int,
    rate: Fraction,
    base: Fraction,
    cut: Cut,
    encoder: tuple[str, dict[str, str]],
    sound: Sound | None,
) -> list[int]:
    """Write frames and return their durations. Each lasts until the next, the last until `length`."""
    first = next(frames, None)
    if first is None:
        raise MediaError("no frame in the span")
    exact = {"movie_timescale": str(sound.rate)} if sound else {}  # for the length of the edit list, in samples
    with av.open(path, "w", format="mp4", options=MP4 | exact) as container:
        stream: Any = container.add_stream(encoder[0], rate=rate, options=encoder[1])
        describe(stream.codec_context, cut.size, base)
        durations = []
        sound_packets = encode_sound(container, sound) if sound else []
        shown, pts = first
        for frame, following in itertools.chain(frames, [(shown, length)]):
            picture = _picture(shown, cut)
            durations.append(max(1, following - pts))
            picture.pts, picture.time_base, picture.duration = pts, base, durations[-1]
            shown, pts = frame, following
            _mux(container, stream.encode(picture), sound_packets)
        _mux(container, stream.encode(None), sound_packets)
        container.mux(sound_packets)
    return durations


def _mux(container: Any, pictures: list[Any], sound: list[Any]) -> None:
    """Write packets of pictures, and before each the packets of sound that are decoded earlier, which leave `sound`."""
    for packet in pictures:
        while sound and sound[0].dts * sound[0].time_base <= packet.dts * packet.time_base:
            container.mux(sound.pop(0))
        container.mux(packet)


def describe(context: Any, size: tuple[int, int], base: Fraction) -> None:
    """Set the encoder's input format and the colour tags that it writes."""
    context.width, context.height = size
    context.pix_fmt = "yuv420p"
    context.time_base = base
    context.thread_count = 1
    context.flags |= Flags.bitexact | Flags.frame_duration
    context.color_range = LIMITED
    context.colorspace = context.color_primaries = context.color_trc = BT709


def _picture(frame: Frame, cut: Cut) -> av.VideoFrame:
    """Return the frame to encode: cropped, scaled by area, upright, 8-bit 4:2:0 of BT.709 in limited range."""
    width, height = cut.size
    native, colour = frame.native, frame.colour
    whole = cut.crop == (0, 0, *cut.shown) and cut.shown == cut.size == (native.width, native.height)
    upright = not (frame.rotation or frame.mirrored)
    if whole and upright and native.format.name == "yuv420p" and colour.is_bt709 and side_data(native) == {}:
        native.pict_type = PictureType.NONE  # otherwise the encoder copies the source's keyframe positions
        return native
    planes = [frame.upright(plane) for plane in frame.planes(deep=colour.is_wide)]
    part, half = cut.part(), (width // 2, height // 2)
    fitted = [_fit(planes[0], part, cut.size, 2), *(_fit(plane, part, half, 1) for plane in planes[1:])]
    if not colour.is_bt709:
        fitted = planes_to_bt709(fitted, colour)
    data = np.concatenate([np.ascontiguousarray(plane).ravel() for plane in fitted])
    return av.VideoFrame.from_ndarray(data.reshape(height * 3 // 2, width), format="yuv420p")


def _fit(plane: np.ndarray, part: tuple[float, float, float, float], size: tuple[int, int], even: int) -> np.ndarray:
    """Return the `part` (fractions) of a (h, w) or (h, w, 3) picture at `size` (width, height): cropped if its size
    matches to within a pixel, else scaled. Offsets are multiples of `even`, so that luma and chroma stay aligned."""
    height, width = plane.shape[:2]
    x, y = (int((part[i] * side + 1e-6) / even) * even for i, side in ((0, width), (1, height)))
    is_crop = abs(part[2] * width - size[0]) < 1 and abs(part[3] * height - size[1]) < 1
    if is_crop and size[0] <= width and size[1] <= height:
        x, y = min(x, width - size[0]), max(0, min(y, height - size[1]))
        inside = plane[y : y + size[1], x : x + size[0]]
    else:
        x_end = min(width, max(x + 1, round((part[0] + part[2]) * width)))
        y_end = min(height, max(y + 1, round((part[1] + part[3]) * height)))
        inside = plane[y:y_end, x:x_end]
    if inside.shape[:2] == size[::-1]:
        return inside
    return cv2.resize(np.ascontiguousarray(inside), size, interpolation=cv2.INTER_AREA)


def _constant_rate(frames: Iterator[Frame], start: int, count: int, steps: Fraction) -> Iterator[tuple[Frame, int]]:
    """Yield `count` frames at a constant rate, each the frame shown at its time; `steps` output frames are one tick."""
    shown: Frame | None = None
    emitted = 0
    for frame in frames:
        while shown is not None and emitted < count and emitted < (frame.pts - start) * steps:
            yield shown, emitted
            emitted += 1
        shown = frame
    while shown is not None and emitted < count:
        yield shown, emitted
        emitted += 1


def _progressive(frames: Iterator[Frame], base: Fraction) -> Iterator[Frame]:
    """Yield the frames, with interlaced ones deinterlaced from the first that is marked as interlaced on."""
    for frame in frames:
        if frame.native.interlaced_frame:
            yield from _deinterlaced(frame, frames, base)
            return
        yield frame


def _deinterlaced(first: Frame, frames: Iterator[Frame], base: Fraction) -> Iterator[Frame]:
    graph, waiting = _deinterlacer(first.native, base), []
    for frame in itertools.chain([first], frames, [None]):
        if frame is not None:
            waiting.append(frame)
        graph.push(None if frame is None else frame.native)
        while waiting:
            try:
                output: Any = graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            yield replace(waiting.pop(0), native=output)


def _deinterlacer(native: av.VideoFrame, base: Fraction) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(width=native.width, height=native.height, format=native.format, name="in", time_base=base)
    yadif, sink = graph.add("yadif", "deint=interlaced"), graph.add("buffersink")
    graph.link_nodes(source, yadif, sink).configure()
    return graph
