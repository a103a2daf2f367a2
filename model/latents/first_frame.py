"""What a base that continues a picture gets of each sample's first frame, encoded now or by `clipmill encode`."""

from __future__ import annotations

import torch
from torch import Tensor

from model.backbones.base import Words
from model.backbones.families.base import Picture
from model.backbones.pretrained import read_base
from model.backbones.prompts import PipelineText
from model.config import Config
from model.data.loader import Batch
from model.data.schedule import BatchSchedule
from model.encoding import Encoding
from model.errors import DataError
from model.latents.base import Latents, to_bytes, to_signed
from model.text import TextEncoder

CHANNELS = "channels"  # the input that follows the channels of the noisy latents, (b, c, t', h', w')


class FirstFrame:
    """The inputs of the base of a run; none, {} each, for a run without a base or on one of text alone."""

    def __init__(self, config: Config, latents: Latents, text: TextEncoder | None) -> None:
        """text: None where the datasets hold what it would give."""
        self.picture = picture_of(config)
        self._latents, self._text = latents, text

    def of_videos(self, videos: Tensor) -> Words:
        """Return the inputs for videos (b, 3, t, h, w) in [-1, 1]: CHANNELS, and embeddings by the names of the
        transformer's arguments."""
        if self.picture is None:
            return {}
        assert isinstance(self._text, PipelineText)
        first = videos[:, :, :1]
        embedded = self._text.embed_pictures(to_bytes(first)[:, 0])
        return {CHANNELS: self.picture.channels(self._latents, first, videos.shape[2]), **embedded}

    def of_batch(self, batch: Batch, device: torch.device) -> Words:
        """Return the inputs for a batch, on the device."""
        if self.picture is None:
            return {}
        if batch.words is None:
            return self.of_videos(to_signed(batch.inputs.to(device)))
        return {name: tensor.float().to(device) for name, tensor in batch.first_frame.items()}


def add_picture(x: Tensor, words: Words, picture: Words) -> tuple[Tensor, Words]:
    """Return noisy latents (b, c, t', h', w') with the channels of the first frame behind them, and the words with its
    embeddings; both as they are where `picture` is {}."""
    if not picture:
        return x, words
    embedded = {name: tensor for name, tensor in picture.items() if name != CHANNELS}
    return torch.cat([x, picture[CHANNELS]], dim=1), words | embedded


def picture_of(config: Config) -> Picture | None:
    """Return how the base of a run takes a picture; None for a run without a base or on one of text alone."""
    return read_base(config.base, config.expert).family.picture if config.base else None


def check_first_frames(
    config: Config, schedule: BatchSchedule, stride: tuple[int, int, int], encoding: Encoding | None
) -> None:
    """Raise DataError when a base that continues a picture cannot be trained on the data: shapes of the schedule that
    it cannot take, or encoded latents without first frames."""
    picture = picture_of(config)
    if picture is None:
        return
    if encoding and not encoding.first_frame:
        raise DataError(f"the latents were not encoded for {config.base}, which takes the first frame: encode again")
    shapes = [stream.shape for stream in schedule.streams]
    if any(shape.frames == 1 for shape in shapes):
        raise DataError(
            f"{config.base} continues a picture, so single frames teach it nothing: leave 1 out of frame_counts, "
            "set image_ratio=0, and leave out datasets with images"
        )
    if size := picture.size(read_base(config.base, config.expert).transformer):
        height, width = size[0] * stride[1], size[1] * stride[2]
        if wrong := [shape for shape in shapes if (shape.height, shape.width) != (height, width)]:
            raise DataError(
                f"{config.base} takes only frames of {height}x{width}, not {', '.join(map(str, wrong[:3]))}: set "
                f"resolutions=[{round((height * width) ** 0.5)}] and use clips of that aspect ratio"
            )
