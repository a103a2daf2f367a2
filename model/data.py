"""Batches from shards: byte ranges, decoding, and the processes that load them ahead."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.config import Config
from model.index import DataError, Index
from model.order import Draw, Order, Shape
from pipeline.media.clip_reader import ClipError, read_frames, read_image
from pipeline.sources.downloads import downloaded
from pipeline.storage.store import locate
from pipeline.tables.published import retired_path

ATTEMPTS = 8  # samples tried in a row before the run stops: more is a broken dataset, not a corrupt clip


@dataclass(frozen=True)
class Batch:
    """One micro-batch. video: frames (b, t, h, w, 3) uint8, or encoded latents (b, c, t', h', w') float16; vectors: of
    encoded captions, (tokens, width) float16 each, else None."""

    video: Tensor
    captions: list[str]
    vectors: list[Tensor] | None
    keys: list[str]
    draws: list[Draw]
    replaced: int  # samples that another stood in for

    def pin_memory(self) -> Batch:
        """A DataLoader calls it, so that the copy to a GPU does not wait."""
        return replace(self, video=self.video.pin_memory())


class Clips(Dataset[Batch]):
    """Micro-batches by their draws. Reads byte ranges of the shards; holds one file handle a shard and process.

    Clips that all fit in `memory_mb` at the training size are decoded once."""

    def __init__(self, index: Index, order: Order | None, config: Config) -> None:
        """order gives substitutes for corrupt samples; without it they are an error."""
        self.index, self.order, self.config = index, order, config
        self._files: dict[int, BinaryIO] = {}
        self._decoded: dict[tuple[int, Shape], np.ndarray] = {}
        pixels = 3 * max(config.resolutions) ** 2 * float(index.frames[index.media == "mp4"].sum())
        self._keep_decoded = pixels < config.memory_mb * 1e6

    def __getitem__(self, draws: Sequence[Draw]) -> Batch:  # type: ignore[override]
        samples, captions, keys, replaced = [], [], [], 0
        for draw in draws:
            for attempt in range(ATTEMPTS):
                now = draw if attempt == 0 or self.order is None else self.order.substitute(draw, attempt)
                try:
                    samples.append(self.load(now))
                    break
                except ClipError as error:
                    reason = error
            else:
                raise DataError(f"{ATTEMPTS} samples in a row cannot be read: {reason}")
            replaced += attempt > 0
            captions.append(self.caption(now.sample))
            keys.append(str(self.index.key[now.sample]))
        vectors = [v for _, v in samples if v is not None]
        video = torch.stack([video for video, _ in samples])
        return Batch(video, captions, vectors or None, keys, list(draws), replaced)

    def load(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """Frames (t, h, w, 3) uint8, or latents and the caption's vectors; where in a clip the frames start follows
        from the seed, the step and the slot. Raises ClipError when it cannot be decoded, DataError when the shard is
        gone."""
        if self.index.encoded:
            try:
                tensors = load_tensors(self.read(draw.sample, 0))
            except SafetensorError as error:
                raise ClipError(f"cannot read the latents: {error}") from error
            return tensors["latents"][:, : 1 if draw.shape.frames == 1 else None], tensors["text"]
        rng = np.random.default_rng((self.config.seed, draw.step, draw.slot))
        spare = float(self.index.duration[draw.sample]) - draw.shape.frames / self.config.fps
        return torch.from_numpy(self.frames(draw.sample, draw.shape, rng.random() * max(0.0, spare))), None

    def frames(self, sample: int, shape: Shape, start: float) -> np.ndarray:
        """(t, h, w, 3) uint8, from `start` seconds on at the config's rate. Raises ClipError and DataError."""
        if self.index.media[sample] == "jpg":
            return read_image(self.read(sample, 0), shape.height, shape.width)
        times = start + np.arange(shape.frames) / self.config.fps
        if not self._keep_decoded:
            return read_frames(self.read(sample, 0), times, shape.height, shape.width)
        if (sample, shape) not in self._decoded:
            every = np.arange(self.index.frames[sample]) / self.index.fps[sample]
            self._decoded[sample, shape] = read_frames(self.read(sample, 0), every, shape.height, shape.width)
        frames = self._decoded[sample, shape]
        return frames[(times * self.index.fps[sample] + 1e-3).astype(int).clip(0, len(frames) - 1)]

    def caption(self, sample: int) -> str:
        """The sample's text."""
        return self.read(sample, 2).decode("utf-8", "replace").strip()

    def read(self, sample: int, column: int) -> bytes:
        """The bytes of the media (column 0) or the text (2)."""
        shard = int(self.index.shard[sample])
        offset, size = self.index.spans[sample, column : column + 2].tolist()
        try:
            if shard not in self._files:
                if len(self._files) >= 256:
                    self._files.pop(next(iter(self._files))).close()
                self._files[shard] = self._open(self.index.shards[shard])
            data = os.pread(self._files[shard].fileno(), size, offset)
        except OSError as error:
            raise DataError(
                f"{self.index.shards[shard]}: {error.strerror}; the shard was there at the start"
            ) from error
        if len(data) != size:
            raise ClipError(f"{self.index.shards[shard]} ends before sample {self.index.key[sample]}")
        return data

    def _open(self, shard: str) -> BinaryIO:
        """A remote shard is copied to this machine once."""
        if "://" not in shard:
            try:
                return open(shard, "rb")
            except FileNotFoundError:  # a newer build has replaced it since the index was read
                return open(retired_path(shard), "rb")
        store, name = locate(shard)
        if not store.exists(name):
            store, name = locate(retired_path(shard))
        return downloaded(f"{shard} {store.info(name)}", lambda path: store.fetch(name, path), self.config.cache_gb)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_files": {}, "_decoded": {}}


def micro_batches(order: Order, first_step: int, last_step: int, rank: int, world: int) -> Iterator[list[Draw]]:
    """The draws of one rank, from one step up to, without, another."""
    for step in range(first_step, last_step):
        yield from order.step(step)[rank::world]


def make_loader(clips: Clips, batches: Iterator[list[Draw]], workers: int, pin: bool = False) -> DataLoader[Batch]:
    """Micro-batches in order, loaded ahead by `workers` processes (0 loads in this one)."""
    return DataLoader(
        clips,
        sampler=batches,  # type: ignore[arg-type]  # its items are the lists of draws that Clips takes
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        worker_init_fn=_one_thread,
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
