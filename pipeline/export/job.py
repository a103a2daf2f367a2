"""One export: the dataset, the folder, and what the exporter may rely on about model, frame counts and size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.video_models import VideoModel
from pipeline.export.layout import write_media
from pipeline.export.reader import Clip, Dataset
from pipeline.export.usability import Reads


@dataclass(frozen=True)
class Job:
    """`out` is absolute. `frames` are the frame counts to train on, ascending; `size` is (width, height) of most
    clips, in multiples that the model takes; `videos` and `stills` count clips."""

    dataset: Dataset
    out: Path
    model: VideoModel
    frames: list[int]
    size: tuple[int, int]
    videos: int
    stills: int
    control: str = ""  # the companion that is written as control video: canny, depth ...

    def clips(self) -> Iterator[Clip]:
        """Yield every clip; with a control video, those that have one, and so no stills."""
        return (clip for clip in self.dataset.clips() if not self.control or clip.has(self.control))

    def media(self, stills: bool = False, below: str = "") -> Iterator[tuple[str, Clip]]:
        """Write the clips' files to videos/, and with `stills` to images/, in the folder `below` of `out`. Yield each
        file's path in that folder, and its clip. Control videos go to a folder named like the companion."""
        for clip in self.clips():
            if stills or clip.media == "mp4":
                path = f"{'videos' if clip.media == 'mp4' else 'images'}/{clip.name}"
                write_media(clip, self.out / below / path)
                if self.control:
                    write_media(clip, self.out / below / self.control / clip.name, self.control)
                yield path, clip

    @property
    def longest(self) -> int:
        """The largest frame count; what is usual for the model where no clip is usable."""
        return self.frames[-1] if self.frames else self.model.usual

    @property
    def shortest(self) -> int:
        """The smallest frame count, for trainers that take one count and drop shorter clips."""
        return self.frames[0] if self.frames else self.model.usual

    @property
    def side(self) -> int:
        """Side of a square of about as many pixels as `size`, a multiple of 32."""
        return max(32, round((self.size[0] * self.size[1]) ** 0.5 / 32) * 32)


@dataclass(frozen=True)
class Exporter:
    """How one trainer's layout is written. `write` returns what to do next, a line each; `model` is the video model
    that the trainer is for, where there is only one; `reads` is None where nothing is dropped; `takes_control` says
    whether the layout has a place for control videos."""

    title: str
    write: Callable[[Job], list[str]]
    reads: Reads | None
    model: str | None = None
    takes_control: bool = False
