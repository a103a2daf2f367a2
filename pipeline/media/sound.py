"""Sound of a span: cut with sample accuracy, mixed down to at most two channels, measured, and encoded as AAC."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import av.filter
import numpy as np
from av.codec.context import Flags
from av.stream import Disposition

from pipeline.media.container import MediaError, is_encrypted_stream, open_container, words
from pipeline.media.faults import is_machine_fault
from pipeline.media.video import UNSEEKABLE
from pipeline.storage.store import Unreachable

VERSION = 1  # increase when the encoded bytes or the measurements of the same sound change
RATES = frozenset((8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000))  # Hz; these are not resampled
OTHER_RATE = 48_000  # Hz; sources of other rates are resampled to this
PREROLL = Fraction(1, 2)  # seconds decoded before the span, because decoders need a few packets after a seek
GAP = 0.05  # seconds; a larger difference between a time stamp and the end of the previous samples is a gap
BIT_RATE = 64_000  # bits per second and channel
SILENCE = -60.0  # dB of full scale: windows with a lower RMS are silent
WINDOW = 0.05  # seconds; length of the windows whose RMS is measured
UNGATED = -70.0  # LUFS; result of FFmpeg's ebur128 if no block is above the absolute gate of BS.1770


@dataclass(frozen=True)
class Sound:
    """Sound of a span: (channels, n) float32 in [-1, 1], one or two channels, at `rate` Hz. `error` describes packets
    that could not be decoded and are silent."""

    samples: np.ndarray
    rate: int
    error: str | None = None


class SoundReader:
    """Reads spans of the default sound track of a file, or of its first; `opening` opens the file."""

    def __init__(self, opening: Callable[[], str | BinaryIO]) -> None:
        self._opening = opening
        self._container: Any = None
        self._stream: Any = None

    def read(self, start: Fraction, seconds: Fraction) -> Sound | None:
        """Return round(seconds * rate) samples from `start` on, None if the source has no sound in the span.

        `start` is in seconds of presentation time, on the same clock as the picture. Gaps in the source are silent. The
        position of a sample is as exact as the container's time stamps: half a sample in MP4, half a millisecond in
        Matroska. More than two channels are mixed down as by `ffmpeg -ac 2`: front, centre and surround with weights of
        1, 0.7071 and 0.7071 (ITU-R BS.775), no LFE. The result does not depend on earlier reads. Raises MediaError or
        Unreachable.
        """
        try:
            for begin in (start - PREROLL, None):  # second attempt without a seek, if the seek went past `start`
                self._open()
                if self._stream is None:
                    return None
                frames = self._frames(begin)
                first = next(frames, None)
                if begin is None or (first is not None and first.pts * first.time_base <= start):
                    break
            return self._cut(frames if first is None else itertools.chain([first], frames), start, seconds)
        except Unreachable:
            raise
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if is_machine_fault(error):
                raise
            raise MediaError(f"its sound cannot be read ({words(error)})") from error

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> None:
        if self._container is not None:
            return
        self._container, self._used = open_container(self._opening()), False
        tracks = self._container.streams.audio
        default = (track for track in tracks if Disposition.default in track.disposition)
        self._stream = next(default, tracks[0] if tracks else None)
        if self._stream is None:
            return
        if self._stream.codec_context is None:
            raise MediaError("the codec of its sound is not supported")
        if is_encrypted_stream(self._stream) or self._stream.codec_context.codec_tag == "enca":
            raise MediaError("its sound is encrypted")
        self._stream.codec_context.thread_count = 1

    def _frames(self, start: Fraction | None) -> Iterator[Any]:
        """Yield frames from `start` (seconds) or earlier; from the first packet if `start` is None or the format is not
        seekable. Packets that cannot be decoded are counted in `_errors`."""
        base, first, self._errors = self._stream.time_base, self._stream.start_time or 0, 0
        if start is not None and start > first * base and self._container.format.name not in UNSEEKABLE:
            self._container.seek(int(start / base), stream=self._stream, backward=True)
            self._stream.codec_context.flush_buffers()
        elif self._used:
            self.close()
            self._open()
        self._used = True
        for packet in self._container.demux(self._stream):
            try:
                yield from (frame for frame in packet.decode() if frame.pts is not None)
            except av.error.EOFError:
                return
            except av.error.FFmpegError as error:
                if is_machine_fault(error):
                    raise
                self._errors += 1

    def _cut(self, frames: Iterator[Any], start: Fraction, seconds: Fraction) -> Sound | None:
        """Return `seconds` of sound from `start` on. Raises MediaError if its rate or channels change."""
        samples, first, count, expected, is_empty = np.zeros((0, 0), np.float32), 0, 0, 0, True
        rate, mix = 0, None
        for frame in frames:
            if mix is None:
                rate, mix = frame.sample_rate, _mix(frame)
                first, count = round(start * rate), round(seconds * rate)
                samples = np.zeros((len(mix.layout.channels), count), np.float32)
                expected = round(frame.pts * frame.time_base * rate)
            if frame.sample_rate != rate:
                raise MediaError("the rate of its sound changes")
            position = round(frame.pts * frame.time_base * rate)  # samples
            if abs(position - expected) < GAP * rate:
                position = expected
            expected = position + frame.samples
            if position >= first + count:
                break
            if expected > first:
                for mixed in mix.resample(frame):
                    values = mixed.to_ndarray()[:, max(0, first - position) : first + count - position]
                    begin = max(0, position - first)
                    samples[:, begin : begin + values.shape[1]] = values
                    is_empty &= not values.shape[1]
        error = f"{self._errors} packets of its sound could not be decoded" if self._errors else None
        if is_empty:
            if error:
                raise MediaError(error)
            return None
        samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
        return _at_supported_rate(Sound(samples, rate, error), seconds)


def _mix(frame: Any) -> Any:
    """Return a resampler that converts frames of the format of `frame` to planar floats of one or two channels."""
    layout = "mono" if len(frame.layout.channels) == 1 else "stereo"
    return av.AudioResampler(format="fltp", layout=layout, rate=frame.sample_rate)


def _at_supported_rate(sound: Sound, seconds: Fraction) -> Sound:
    """Return `sound`, resampled to OTHER_RATE unless its rate is in RATES."""
    if sound.rate in RATES:
        return sound
    samples, count = np.zeros((len(sound.samples), round(seconds * OTHER_RATE)), np.float32), 0
    resampler = av.AudioResampler(format="fltp", layout=_layout(sound), rate=OTHER_RATE)
    for frame in (*resampler.resample(_frame(sound, 0, sound.samples.shape[1])), *resampler.resample(None)):
        values = frame.to_ndarray()[:, : samples.shape[1] - count]
        samples[:, count : count + values.shape[1]] = values
        count += values.shape[1]
    return Sound(samples, OTHER_RATE, sound.error)


def measure(sound: Sound) -> tuple[float | None, float]:
    """Return the integrated loudness in LUFS and the silent share of the sound, 0 to 1.

    Loudness is computed by FFmpeg's ebur128 filter (ITU-R BS.1770, EBU R128); None if the sound is shorter than a block
    of 0.4 s or no block is above -70 LUFS. A window of `WINDOW` seconds is silent if its RMS over all channels is below
    `SILENCE`.
    """
    graph = av.filter.Graph()
    graph.threads = 1
    base = Fraction(1, sound.rate)
    source = graph.add_abuffer(sample_rate=sound.rate, format="fltp", layout=_layout(sound), time_base=base)
    meter, sink = graph.add("ebur128", "metadata=1:framelog=quiet"), graph.add("abuffersink")
    graph.link_nodes(source, meter, sink).configure()
    graph.push(_frame(sound, 0, sound.samples.shape[1]))
    graph.push(None)
    integrated = UNGATED
    while True:
        try:
            integrated = float(graph.pull().metadata.get("lavfi.r128.I", integrated))  # missing for incomplete blocks
        except (av.error.BlockingIOError, av.error.EOFError):
            break
    length = max(1, round(WINDOW * sound.rate))
    power = np.square(sound.samples, dtype=np.float64).mean(axis=0)
    means = [power[i : i + length].mean() for i in range(0, len(power), length)]
    silent = np.mean(np.array(means) < 10 ** (SILENCE / 10)) if means else 1.0
    return (integrated if integrated > UNGATED else None), round(float(silent), 4)


def encode_sound(container: Any, sound: Sound) -> list[av.Packet]:
    """Add an AAC track to an MP4 container that is open for writing; return its packets.

    The encoder's priming samples have negative times, for which the muxer writes an edit list, so that playback of the
    first sample starts with the first frame.
    """
    stream = container.add_stream("aac", rate=sound.rate, layout=_layout(sound))
    context = stream.codec_context
    context.bit_rate = BIT_RATE * len(sound.samples)
    context.flags |= Flags.bitexact
    context.thread_count = 1
    context.open()
    size, length = context.frame_size, sound.samples.shape[1]
    packets = []
    for first in range(0, length, size):
        packets += stream.encode(_frame(sound, first, min(first + size, length)))
    return packets + stream.encode(None)


def _frame(sound: Sound, first: int, end: int) -> av.AudioFrame:
    samples = np.ascontiguousarray(sound.samples[:, first:end])
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=_layout(sound))
    frame.sample_rate, frame.pts, frame.time_base = sound.rate, first, Fraction(1, sound.rate)
    return frame


def _layout(sound: Sound) -> str:
    return "mono" if len(sound.samples) == 1 else "stereo"
