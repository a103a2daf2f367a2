"""Sound of clips: with the picture to the sample, measured, the same bytes every time, and never a reason to fail."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import packing_rows
import pytest
from footage import videos

from pipeline.build import build
from pipeline.config.recipe import PackOptions, load_recipe
from pipeline.dataset.verify import verify
from pipeline.media.encode import Encoded
from pipeline.media.sound import Sound, SoundReader, measure
from pipeline.pack.clip_encoder import ClipEncoder
from pipeline.pack.shards import SOUND_INDEX

RATE, FPS, FLASHES = 48_000, 25, (10, 23, 36, 49)  # frames that are white; noise begins with each
OPTIONS = PackOptions(heights=(96,), audio="keep")
SIZE = (96, 160)


def bursts(seconds: float, rate: int = RATE) -> np.ndarray:
    """(n,) float32: 20 ms of noise at the time of each flash."""
    samples = np.zeros(round(seconds * rate), np.float32)
    for number, frame in enumerate(FLASHES):
        at = frame * rate // FPS
        samples[at : at + rate // 50] = np.random.default_rng(number).uniform(-0.8, 0.8, rate // 50)
    return samples


def film(
    path: Path,
    tracks: Mapping[str, np.ndarray],
    rate: int = RATE,
    codec: str = "pcm_s16le",
    delay: float = 0.0,
    start: float = 0.0,
) -> Path:
    """Write 60 frames of which FLASHES are white, from `start` seconds on, and sound: samples (channels, n) by layout,
    one track each, of which the second is the default. The sound's first `delay` seconds are left out."""
    with av.open(str(path), "w") as container:
        coder = "mpeg4" if path.suffix == ".avi" else "libx264"  # H.264 in AVI has no presentation times
        video = container.add_stream(coder, rate=FPS, options={"g": "12"})
        video.height, video.width, video.pix_fmt = *SIZE, "yuv420p"
        streams = [container.add_stream(codec, rate=rate, layout=layout) for layout in tracks]
        if len(streams) > 1:
            streams[0].disposition = av.stream.Disposition(0)
            streams[1].disposition = av.stream.Disposition.default
        for stream, samples in zip(streams, tracks.values(), strict=True):
            first = round(delay * rate)
            form = stream.codec_context.format.name
            values = samples if form == "fltp" else (samples.T * 32767).astype(np.int16).reshape(1, -1)
            values = values[:, first if form == "fltp" else first * len(samples) :]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(values), format=form, layout=stream.layout.name)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first + round(start * rate)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        for number in range(60):
            picture = np.full((*SIZE, 3), 255 if number in FLASHES else 16, np.uint8)
            native = av.VideoFrame.from_ndarray(picture, format="rgb24")
            native.pts, native.time_base = number + round(start * FPS), Fraction(1, FPS)
            container.mux(video.encode(native))
        container.mux(video.encode(None))
    return path


@pytest.fixture(scope="module")
def encoder() -> Iterator[ClipEncoder]:
    with ClipEncoder() as encoder:
        yield encoder


def packed(encoder: ClipEncoder, path: Path, first: int, end: int, options: PackOptions = OPTIONS) -> Encoded:
    (row,) = packing_rows.rows_of(path, [(first, end)])
    ((_, encoded),) = encoder.encode_all([{**row, "bucket": "16x9-96p"}], options)
    assert isinstance(encoded, Encoded), encoded
    return encoded


def decoded(encoded: Encoded) -> tuple[list[float], np.ndarray, int]:
    """Times of the white frames, seconds; (channels, n) samples; their rate."""
    with av.open(io.BytesIO(encoded.data)) as container:
        frames = [(frame.time, frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
    with av.open(io.BytesIO(encoded.data)) as container:
        stream = container.streams.audio[0]
        assert stream.start_time == 0
        assert stream.duration == round(encoded.duration * stream.rate)
        samples = np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], axis=1)
    return [time for time, light in frames if light > 128], samples, stream.rate


def lag(samples: np.ndarray, wanted: np.ndarray) -> int:
    """How many samples later than in `wanted` the noise is."""
    size = min(len(samples), len(wanted))
    shifts = range(-2000, 2001)
    padded = np.pad(samples[:size], 2000)
    return max(shifts, key=lambda shift: float(padded[2000 + shift : 2000 + shift + size] @ wanted[:size]))


@pytest.mark.parametrize(
    ("name", "codec", "delay", "start", "tolerance"),
    [
        ("a.mov", "pcm_s16le", 0.0, 0.0, 0),
        ("a.mp4", "aac", 0.0, 0.0, 0),
        ("later.mov", "pcm_s16le", 0.7, 0.0, 0),  # the sound begins after the picture
        ("later.ts", "aac", 0.0, 2.0, 1),  # time does not begin at 0, and has 90,000 ticks a second
        ("a.mkv", "pcm_s16le", 0.0, 0.0, 24),  # half a millisecond, the precision of its time stamps
        ("a.avi", "pcm_s16le", 0.0, 0.0, 0),
    ],
)
@pytest.mark.parametrize("first", [0, 7, 20])
def test_noise_begins_with_its_flash_in_clips_from_any_frame_on(
    encoder: ClipEncoder, tmp_path: Path, name: str, codec: str, delay: float, start: float, tolerance: int, first: int
) -> None:
    path = film(tmp_path / name, {"mono": bursts(2.4)[None]}, codec=codec, delay=delay, start=start)
    encoded = packed(encoder, path, first, 58)
    flashes, samples, rate = decoded(encoded)
    assert rate == RATE
    assert flashes == pytest.approx([(frame - first) / FPS for frame in FLASHES if frame >= first])
    sound = bursts(2.4)
    sound[: round(delay * RATE)] = 0
    assert abs(lag(samples[0], sound[first * RATE // FPS :])) <= tolerance
    assert encoded.sound is not None
    assert encoded.sound["has_audio"]
    assert encoded.sound["audio_error"] is None


def test_the_same_sound_has_the_same_bytes_whatever_was_read_before(encoder: ClipEncoder, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", {"mono": bursts(2.4)[None]}, codec="aac")
    with ClipEncoder() as fresh:
        alone = packed(fresh, path, 20, 50)
    rows = packing_rows.rows_of(path, [(0, 20), (20, 50), (3, 40)])
    together = dict(encoder.encode_all([{**row, "bucket": "16x9-96p"} for row in rows], OPTIONS))
    assert together[rows[1]["clip_id"]] == alone
    without = packed(encoder, path, 20, 50, PackOptions(heights=(96,)))
    assert without.sound is None
    assert len(without.data) < len(alone.data)


def test_at_a_constant_rate_the_sound_is_as_long_as_the_frames(encoder: ClipEncoder, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mov", {"mono": bursts(2.4)[None]})
    encoded = packed(encoder, path, 7, 50, PackOptions(heights=(96,), audio="keep", fps=16.0))
    assert encoded.duration == 28 / 16
    _, samples, _ = decoded(encoded)
    assert lag(samples[0], bursts(2.4)[7 * RATE // FPS :]) == 0


def test_the_default_track_is_taken_and_channels_are_mixed_down_to_two(encoder: ClipEncoder, tmp_path: Path) -> None:
    tone = 0.2 * np.sin(2 * np.pi * 440 * np.arange(round(2.4 * RATE)) / RATE).astype(np.float32)
    six = np.stack([tone * 0, tone * 0, tone, tone * 0, tone * 0, tone * 0])  # in the centre alone
    path = film(tmp_path / "a.mov", {"mono": tone[None] * 0, "5.1": six}, codec="pcm_s16le")
    encoded = packed(encoder, path, 0, 50)
    _, samples, _ = decoded(encoded)
    assert len(samples) == 2
    levels = np.sqrt(np.mean(samples[:, RATE // 2 : RATE] ** 2, axis=1))
    assert levels == pytest.approx(0.2 / np.sqrt(2) * 0.7071, rel=0.05)


@pytest.mark.parametrize(("rate", "kept"), [(44_100, 44_100), (96_000, 48_000), (37_800, 48_000), (8_000, 8_000)])
def test_rates_that_are_not_usual_become_48000(encoder: ClipEncoder, tmp_path: Path, rate: int, kept: int) -> None:
    path = film(tmp_path / "a.mov", {"mono": bursts(2.4, rate)[None]}, rate=rate)
    encoded = packed(encoder, path, 7, 50)
    _, samples, packed_rate = decoded(encoded)
    assert packed_rate == kept
    envelope = np.abs(samples[0])
    starts = [(frame - 7) * kept // FPS for frame in FLASHES if frame >= 7]
    for start in starts:
        first = start - kept // 100 + int(np.argmax(envelope[start - kept // 100 :] > 0.2))
        assert abs(first - start) <= max(8, kept // 2000)  # the pre-echo of AAC


def test_a_source_without_sound_and_a_still_picture_say_so(encoder: ClipEncoder, tmp_path: Path) -> None:
    import cv2

    silent = videos.write_video(tmp_path / "a.mp4", videos.pan(videos.texture(1, *SIZE), 30, 2))
    cv2.imwrite(str(tmp_path / "still.png"), videos.texture(2, *SIZE))
    empty = {"has_audio": False, "audio_loudness": None, "audio_silence": None, "audio_error": None}
    plain = PackOptions(heights=(96,))
    for path, end in ((silent, 30), (tmp_path / "still.png", 1)):
        assert packed(encoder, path, 0, end).sound == empty
        assert packed(encoder, path, 0, end).data == packed(encoder, path, 0, end, plain).data
    late = film(tmp_path / "late.mov", {"mono": bursts(2.4)[None]}, delay=2.0)
    assert packed(encoder, late, 0, 30).sound == empty


def test_broken_sound_is_a_reason_and_the_picture_is_packed(encoder: ClipEncoder, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", {"mono": bursts(2.4)[None]}, codec="aac")
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    data = path.read_bytes()
    damaged = data
    for packet in packets:
        damaged = damaged.replace(packet, bytes([0xFF]) * len(packet))
    path.write_bytes(damaged)
    encoded = packed(encoder, path, 0, 50)
    assert encoded.sound is not None
    assert not encoded.sound["has_audio"]
    assert "could not be decoded" in encoded.sound["audio_error"]
    assert encoded.frames == 50
    noise = max(packets, key=len)
    other = tmp_path / "b.mkv"
    other.write_bytes(data.replace(noise, bytes([0xFF]) * len(noise)))
    partly = packed(encoder, other, 0, 50).sound
    assert partly is not None
    assert partly["has_audio"]
    assert partly["audio_error"] == "1 packets of its sound could not be decoded"


def test_loudness_is_that_of_the_reference_tone_and_silence_a_share_of_windows() -> None:
    """EBU Tech 3341, case 1: a stereo sine of 1 kHz and -23 dB of full scale has -23.0 LUFS."""
    tone = 10 ** (-23 / 20) * np.sin(2 * np.pi * 1000 * np.arange(20 * RATE) / RATE).astype(np.float32)
    assert measure(Sound(np.stack([tone, tone]), RATE)) == (pytest.approx(-23.0, abs=0.1), 0.0)
    half = np.concatenate([tone[: 2 * RATE], np.zeros(2 * RATE, np.float32)])
    assert measure(Sound(half[None], RATE))[1] == 0.5
    assert measure(Sound(np.zeros((1, RATE), np.float32), RATE)) == (None, 1.0)
    assert measure(Sound(tone[None, : RATE // 10], RATE))[0] is None


def test_a_crash_while_sound_is_read_costs_the_sound_alone(
    encoder: ClipEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(tmp_path / "a.mov", {"mono": bursts(2.4)[None]})
    monkeypatch.setattr("pipeline.pack.clip_encoder.encode_clip", crash_with_sound)
    encoded = packed(encoder, path, 0, 30)
    assert encoded.sound is not None
    assert encoded.sound["audio_error"] == "the process crashed (SIGSEGV)"
    assert not encoded.sound["has_audio"]


def crash_with_sound(row: Mapping[str, Any], options: PackOptions, sources: Any) -> Encoded:
    import signal

    if options.audio == "keep":
        signal.raise_signal(signal.SIGSEGV)
    return original(row, options, sources)


from pipeline.pack.clip_encoder import encode_clip as original  # noqa: E402


def test_a_span_of_sound_ends_where_it_is_told_to_and_is_silent_where_there_is_none(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mov", {"mono": bursts(2.4)[None]})
    reader = SoundReader(lambda: str(path))
    sound = reader.read(Fraction(2), Fraction(1))
    assert sound is not None
    assert sound.samples.shape == (1, RATE)
    assert not sound.samples[:, round(0.4 * RATE) :].any()
    assert reader.read(Fraction(3), Fraction(1)) is None
    whole = reader.read(Fraction(0), Fraction(12, 5))
    assert whole is not None
    assert np.abs(whole.samples[0] - bursts(2.4)).max() < 1e-4


def test_a_build_with_sound_has_its_columns_and_is_verified(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    film(folder / "a.mov", {"mono": bursts(2.4)[None]})
    videos.write_video(folder / "silent.mp4", videos.pan(videos.texture(1, *SIZE), 60, 2))
    (folder / "list.csv").write_text("path,caption\na.mov,Flashes.\nsilent.mp4,A wall.\n")
    options = ["scan.shots=stride", "filters={}", "select.thresholds={}", "select.duplicates=false", "pack.heights=96"]
    options += ["caption.captioner=listed"]
    built = build(
        [str(folder / "list.csv")],
        str(tmp_path / "out"),
        load_recipe("embedded", [*options, "pack.audio=keep"]),
        cores=1,
        engine="local",
    )
    rows = {Path(row["source_uri"]).name: row for row in built.clips.to_pylist()}
    assert {name: row["keep"] for name, row in rows.items()} == {"a.mov": True, "silent.mp4": True}
    sound = {name: [rows[name][column] for column in SOUND_INDEX.names] for name in rows}
    assert sound["silent.mp4"] == [False, None, None, None]
    assert sound["a.mov"] == [True, pytest.approx(-20, abs=8), pytest.approx(0.9, abs=0.1), None]
    (tar,) = (tmp_path / "out" / "shards").rglob("*.tar")
    with tarfile.open(tar) as file:
        documents = [json.load(file.extractfile(m)) for m in file if m.name.endswith(".json")]  # type: ignore[arg-type]
    audio = {Path(document["source"]["source_uri"]).name: document["audio"] for document in documents}
    assert audio["silent.mp4"] == {"has_audio": False}
    assert audio["a.mov"]["audio_loudness"] == rows["a.mov"]["audio_loudness"]
    assert verify(tmp_path / "out", 1) == []
    again = build(
        [str(folder / "list.csv")], str(tmp_path / "out"), load_recipe("embedded", options), cores=1, engine="local"
    )
    assert "has_audio" not in again.clips.column_names
    assert verify(tmp_path / "out", 1) == []
