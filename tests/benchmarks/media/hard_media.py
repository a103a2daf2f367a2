"""Every file of a folder of hard media: what FFmpeg decodes of it, and what the reader and the encoder make of it.

    python tests/benchmarks/media/hard_media.py ../shared/hard

FFmpeg is PyAV's decoder without this project's code: of the same stream, in order of decoding, each time a frame's own
where those rise, else evenly spread. The table has one line a file: frames of FFmpeg and of the reader, the largest
difference of their times from the first frame on, frames of an encoded span from the first to the last frame, and what
the reader says of the file. Ends with status 1 where a line has a difference.
"""

from __future__ import annotations

import hashlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from pipeline.config.recipe import PackOptions
from pipeline.media.encode import Cut, SpanReader, encode_image, encode_span
from pipeline.media.video import MediaError, Video
from pipeline.selection.buckets import bucket_names, bucket_size

MOST_FRAMES = 100  # of a file, so that one film does not take minutes
HEIGHTS = (1080, 720, 480, 360, 240)


@dataclass(frozen=True)
class Decoded:
    """Digests of small luma pictures in order, and times in seconds, NaN where there is none."""

    pictures: list[str]
    times: np.ndarray


def digest(native: av.VideoFrame) -> str:
    small = cv2.resize(native.to_ndarray(format="gray"), (64, 36), interpolation=cv2.INTER_AREA)
    return hashlib.sha256(small.tobytes()).hexdigest()


def by_ffmpeg(path: Path, stream: int) -> Decoded:
    """What the decoder gives of a stream, errors skipped. Raises av.FFmpegError where the file cannot be opened."""
    pictures, times = [], []
    with av.open(str(path), metadata_errors="ignore") as container:
        video = container.streams[stream]
        context = video.codec_context
        context.thread_count, context.thread_type = 1, "NONE"
        for packet in container.demux(video):
            try:
                frames = context.decode(packet if packet.size else None)
            except av.FFmpegError:
                continue
            for frame in frames:
                if frame.is_corrupt and not frame.key_frame and not pictures:
                    continue
                pictures.append(digest(frame))
                times.append(float("nan") if frame.pts is None else float(frame.pts * video.time_base))
            if len(pictures) >= MOST_FRAMES:
                break
    return Decoded(pictures[:MOST_FRAMES], np.array(times[:MOST_FRAMES]))


def by_reader(path: Path) -> tuple[Decoded, str, int, str]:
    """The reader's frames, what it says, its stream, and frames of the encoded whole. Raises MediaError."""
    pictures, times, problem = [], [], ""
    with Video(str(path)) as video:
        probe, stream = video.probe, video.stream_index
        facts = f"{probe.codec} {probe.width}x{probe.height} {probe.fps:.4g} fps {probe.duration:.3f} s"
        pts: list[int] = []
        try:
            for frame in video.frames():
                pictures.append(digest(frame.native))
                times.append(frame.time)
                pts.append(frame.pts)
                if len(pictures) >= MOST_FRAMES:
                    break
        except MediaError as error:
            problem = str(error)
        encoded = encode(video, pts[0], pts[-1] + 1)
    return Decoded(pictures, np.array(times)), f"{facts} {problem}".strip(), stream, encoded


def encode(video: Video, start: int, end: int) -> str:
    probe = video.probe
    shown = (probe.width, probe.height)
    name = bucket_names(np.array([shown[0]]), np.array([shown[1]]), np.array([False]), HEIGHTS)[0].as_py()
    if name is None:
        return "too small"
    cut = Cut(start, end, probe.time_base, shown, (0, 0, *shown), bucket_size(name))
    try:
        reader = SpanReader(video)
        result = encode_image(reader, cut) if probe.image else encode_span(reader, cut, PackOptions())
    except MediaError as error:
        return str(error)
    if probe.image:
        return "1"
    with av.open(io.BytesIO(result.data)) as container:
        return str(sum(1 for _ in container.decode(video=0)))


def line(path: Path) -> tuple[str, bool]:
    """The table's line of a file, and whether the reader differs."""
    try:
        ours, facts, stream, encoded = by_reader(path)
    except MediaError as error:
        try:
            with av.open(str(path), metadata_errors="ignore") as container:
                streams = [s.index for s in container.streams.video if s.codec_context is not None]
            count = len(by_ffmpeg(path, streams[0]).pictures) if streams else 0
        except av.FFmpegError:
            count = 0
        return f"{count:6} {0:6} {'':>9} {'':>9}  {error}", count > 0
    theirs = by_ffmpeg(path, stream)
    rising = bool(np.all(np.diff(theirs.times) > 0))
    same = theirs.pictures == ours.pictures
    apart = 0.0
    if same and rising and len(ours.times) > 1:
        apart = float(np.abs((ours.times - ours.times[0]) - (theirs.times - theirs.times[0])).max())
    elif same and len(ours.times) > 1:
        gaps = np.diff(ours.times)
        apart = float(np.abs(gaps - np.median(gaps)).max())
    notes = ["" if same else "OTHER PICTURES", "" if rising else "evenly spread", facts]
    text = f"{len(theirs.pictures):6} {len(ours.pictures):6} {apart * 1000:9.3f} {encoded:>9}  "
    different = not same or apart > 1e-3 or encoded not in (str(len(ours.pictures)), "too small")
    return text + "; ".join(note for note in notes if note), different


def main(folder: Path) -> int:
    print(f"{'file':60} FFmpeg reader  ms apart   encoded  what")
    differences = 0
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        text, different = line(path)
        differences += different
        print(f"{path.name[:60]:60} {text}{'  <--' if different else ''}", flush=True)
    print(f"{differences} differences")
    return int(differences > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
