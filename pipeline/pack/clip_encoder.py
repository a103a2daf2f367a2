"""Encode clips in a child process, so that a clip that hangs, crashes or exhausts memory fails without the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

from pipeline.config.recipe import PackOptions, ScanOptions, SourceOptions
from pipeline.media import encode
from pipeline.media.faults import is_machine_fault
from pipeline.media.packed_clip import PackedClip
from pipeline.media.sound import SoundReader
from pipeline.media.video import MediaError, Video
from pipeline.pack.companions import load_companions
from pipeline.selection.buckets import bucket_size
from pipeline.sources.discover import open_media
from pipeline.sources.source_sandbox import SourceSandbox
from pipeline.state.error_log import LoggedError, logged_error
from pipeline.storage.store import Unreachable

ENCODE_FACTOR = 60.0  # deadline in seconds per second of video


class ClipEncoder:
    """Encodes clips in a child process, which keeps the source of the last clip open for the next one.

    The memory limit is the scan's `memory_mb`. The deadline of a clip is the scan's deadline for decoding up to the
    clip, plus `ENCODE_FACTOR` times its duration.
    """

    def __init__(self, limits: ScanOptions | None = None, sources: SourceOptions | None = None) -> None:
        self._limits, self._sources = limits or ScanOptions(), sources or SourceOptions()
        self._sandbox = SourceSandbox(self._limits.memory_mb)
        self.errors: list[LoggedError] = []  # errors of clips since the list was last cleared

    def encode_all(
        self, rows: Sequence[Mapping[str, Any]], options: PackOptions
    ) -> Iterator[tuple[str, encode.Encoded | str]]:
        """Yield (clip_id, media or the reason of the failure), ordered by source and time.

        In this order consecutive spans are decoded without a seek. Raises Unreachable if a source cannot be reached,
        and machine faults.
        """
        position = ("", 0.0)  # the source that the child has open, and the end of its last clip in seconds
        for row in sorted(rows, key=lambda row: (row["source_uri"], row["start_pts"], row["end_pts"])):
            uri, length = row["source_uri"], row["end"] - row["start"]
            ahead = row["end"] - (position[1] if position[0] == uri else 0.0)
            reach = min(max(0.0, ahead), 1.5 * self._limits.segment_seconds)  # no segment of the scan is longer
            deadline = self._limits.deadline_seconds + self._limits.deadline_factor * reach + ENCODE_FACTOR * length
            answer = self._encode(row, options, deadline)
            position = ("", 0.0) if isinstance(answer, str) else (uri, row["end"])
            yield row["clip_id"], answer

    def _encode(self, row: Mapping[str, Any], options: PackOptions, deadline: float) -> encode.Encoded | str:
        """Return the media of a clip, or the reason of the failure, which is also appended to `errors`.

        A clip that crashes the child or exceeds its deadline is encoded again without sound.
        """
        uri = row["source_uri"]
        try:
            return self._sandbox.call(uri, encode_clip, dict(row), options, self._sources, deadline=deadline)
        except Exception as error:
            if isinstance(error, Unreachable) or is_machine_fault(error):
                raise
            self.errors.append(entry := logged_error(uri, error, row["clip_id"], "encode"))
            reason = entry.failure.reason
            if options.audio == "drop" or isinstance(error, MediaError):
                return reason
        answer = self._encode(row, replace(options, audio="drop"), deadline)
        return answer if isinstance(answer, str) else replace(answer, sound=encode.no_sound(reason))

    def close(self) -> None:
        self._sandbox.close()

    def __enter__(self) -> ClipEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_open: dict[str, tuple[Video, encode.SpanReader, SoundReader]] = {}  # child process only: source of the last clip


def encode_clip(row: Mapping[str, Any], options: PackOptions, sources: SourceOptions) -> encode.Encoded:
    """Encode one clip; runs in the child process. Raises MediaError, or OSError if the source cannot be read."""
    uri = row["source_uri"]
    try:
        encoded = _encode(*_readers(uri, sources), row, options)
    except Exception:
        _close()  # the position of the readers is undefined after an error
        raise
    if not options.fps and encoded.frames != row["frames"]:
        raise MediaError(f"{encoded.frames} frames could be decoded where the scan saw {row['frames']}")
    if not options.companions or encoded.media != "mp4":
        return encoded
    clip, members = PackedClip(encoded.data, options), {}
    for companion in load_companions(options).values():
        members.update(companion.make(clip))
    return replace(encoded, companions=members)


def _readers(uri: str, sources: SourceOptions) -> tuple[encode.SpanReader, SoundReader]:
    """Return readers of the source `uri`, and close those of another source."""
    if uri not in _open:
        _close()
        try:
            video = Video(open_media(uri, sources))
        except (MediaError, OSError) as error:
            if isinstance(error, Unreachable) or is_machine_fault(error):
                raise
            raise MediaError(f"the source cannot be opened: {error}") from error
        _open[uri] = video, encode.SpanReader(video), SoundReader(partial(open_media, uri, sources))
    return _open[uri][1:]


def _close() -> None:
    while _open:
        video, _, sounds = _open.popitem()[1]
        video.__exit__()
        sounds.close()


def _encode(
    reader: encode.SpanReader, sounds: SoundReader, row: Mapping[str, Any], options: PackOptions
) -> encode.Encoded:
    base, end_pts, count = Fraction(row["time_base"]), row["end_pts"], row.get("pack_frames")
    if count and options.fps:  # do not decode frames after the last packed one
        rate = Fraction(options.fps).limit_denominator(1001)
        end_pts = min(end_pts, row["start_pts"] + math.ceil(count / (rate * base)))
    cut = encode.Cut(
        start_pts=row["start_pts"],
        end_pts=end_pts,
        time_base=base,
        shown=(row["width"], row["height"]),
        crop=(row["crop_x"], row["crop_y"], row["crop_w"], row["crop_h"]),
        size=bucket_size(row["bucket"]),
    )
    with_sound = options.audio == "keep"
    if row["frames"] == 1:
        return replace(encode.encode_image(reader, cut), sound=encode.no_sound() if with_sound else None)
    return encode.encode_span(reader, cut, options, count, sounds if with_sound else None)
