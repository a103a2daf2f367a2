"""Batches from shards: byte ranges, decoding, and the worker processes that load ahead."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.backbones.base import Words
from model.config import Config
from model.data.index import Index
from model.data.schedule import BatchSchedule, SampleRef, Shape
from model.errors import DataError
from pipeline.media.clip_reader import ClipError, frame_times, read_frames, read_image, shown_at
from pipeline.sources.downloads import downloaded
from pipeline.storage.store import locate
from pipeline.tables.published import retired_path

FIRST_FRAME = "first_frame."  # beginning of the names of a sample's tensors that are of its first frame
ATTEMPTS = 8  # samples tried in a row before the run stops: more is a broken dataset, not a corrupt clip


@dataclass(frozen=True)
class Batch:
    """One micro-batch. inputs: frames (b, t, h, w, 3) uint8, or encoded latents (b, c, t', h', w') float16. words: the
    encoded caption of each sample, unpadded, where the inputs are latents; else None. first_frame: what
    latents/first_frame.py made of the first frames, where the latents were encoded for that; else {}."""

    inputs: Tensor
    captions: list[str]
    words: list[Words] | None
    keys: list[str]
    refs: list[SampleRef]
    first_frame: Words
    replaced: int  # samples that another one replaced because they could not be decoded

    def pin_memory(self) -> Batch:
        """Pin the inputs; the DataLoader calls it so that the copy to a GPU does not wait."""
        return replace(self, inputs=self.inputs.pin_memory())


class Clips(Dataset[Batch]):
    """Micro-batches by their references. Reads byte ranges of the shards; holds one file handle a shard and process.

    If all clips fit in `memory_mb` at the training size, each is decoded once."""

    def __init__(self, index: Index, schedule: BatchSchedule | None, config: Config) -> None:
        """schedule: gives substitutes for corrupt samples; without it they are an error."""
        self.index, self.schedule, self.config = index, schedule, config
        self._files: dict[int, BinaryIO] = {}
        self._decoded: dict[tuple[int, Shape], tuple[np.ndarray, np.ndarray]] = {}  # times and frames
        pixels = 3 * max(config.resolutions) ** 2 * float(index.frames[index.media == "mp4"].sum())
        self._keep_decoded = pixels < config.memory_mb * 1e6

    def __getitem__(self, refs: Sequence[SampleRef]) -> Batch:  # type: ignore[override]
        samples, captions, keys, replaced = [], [], [], 0
        for ref in refs:
            for attempt in range(ATTEMPTS):
                current = ref if attempt == 0 or self.schedule is None else self.schedule.substitute(ref, attempt)
                try:
                    samples.append(self.load(current))
                    break
                except ClipError as error:
                    reason = error
            else:
                raise DataError(f"{ATTEMPTS} samples in a row cannot be read: {reason}")
            replaced += attempt > 0
            captions.append(self.caption(current.sample))
            keys.append(str(self.index.key[current.sample]))
        inputs = torch.stack([frames for frames, _ in samples])
        words, first_frames = zip(*(split_first_frame(tensors or {}) for _, tensors in samples), strict=True)
        first_frame = {name: torch.stack([tensors[name] for tensors in first_frames]) for name in first_frames[0]}
        return Batch(
            inputs, captions, list(words) if self.index.encoded else None, keys, list(refs), first_frame, replaced
        )

    def load(self, ref: SampleRef) -> tuple[Tensor, Words | None]:
        """Return frames (t, h, w, 3) uint8 and None, or latents and the encoded caption. Where in a clip the frames
        start is a function of the seed, the step and the slot. Raises ClipError when the sample cannot be decoded,
        DataError when its shard is gone."""
        if self.index.encoded:
            try:
                tensors = load_tensors(self.read(ref.sample, 0))
            except SafetensorError as error:
                raise ClipError(f"cannot read the latents: {error}") from error
            latents = tensors.pop("latents")
            return latents[:, : 1 if ref.shape.frames == 1 else None], tensors
        rng = np.random.default_rng((self.config.seed, ref.step, ref.slot))
        spare = float(self.index.duration[ref.sample]) - ref.shape.frames / self.config.fps
        return torch.from_numpy(self.frames(ref.sample, ref.shape, rng.random() * max(0.0, spare))), None

    def frames(self, sample: int, shape: Shape, start: float) -> np.ndarray:
        """Return (t, h, w, 3) uint8, from `start` seconds on at the config's rate. Raises ClipError and DataError."""
        if self.index.media[sample] == "jpg":
            return read_image(self.read(sample, 0), shape.height, shape.width)
        times = start + np.arange(shape.frames) / self.config.fps
        if not self._keep_decoded:
            return read_frames(self.read(sample, 0), times, shape.height, shape.width)
        if (sample, shape) not in self._decoded:
            data = self.read(sample, 0)
            every = frame_times(data)
            self._decoded[sample, shape] = every, read_frames(data, every, shape.height, shape.width)
        every, frames = self._decoded[sample, shape]
        return frames[shown_at(every, times)]

    def caption(self, sample: int) -> str:
        """Return the sample's text."""
        return self.read(sample, 2).decode("utf-8", "replace").strip()

    def read(self, sample: int, column: int) -> bytes:
        """Return the bytes of the media (column 0) or the text (column 2). Raises ClipError and DataError."""
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
                f"{self.index.shards[shard]}: {error.strerror}; the shard existed when the run started"
            ) from error
        if len(data) != size:
            raise ClipError(f"{self.index.shards[shard]} ends before sample {self.index.key[sample]}")
        return data

    def _open(self, shard: str) -> BinaryIO:
        """Open a shard; a remote one is copied to this machine once."""
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


def split_first_frame(tensors: Words) -> tuple[Words, Words]:
    """Split a sample's tensors into its encoded caption and what was made of its first frame."""
    words = {name: tensor for name, tensor in tensors.items() if not name.startswith(FIRST_FRAME)}
    names = tensors.keys() - words.keys()
    return words, {name.removeprefix(FIRST_FRAME): tensors[name] for name in sorted(names)}


def micro_batches(
    schedule: BatchSchedule, first_step: int, last_step: int, rank: int, world: int
) -> Iterator[list[SampleRef]]:
    """Yield the samples of one rank's micro-batches, of the steps from `first_step` up to but without `last_step`."""
    for step in range(first_step, last_step):
        yield from schedule.step(step)[rank::world]


def worker_count(config: Config) -> int:
    """Return the number of processes that load and decode: `workers` of the options, no more than there are cores."""
    return min(config.workers, len(os.sched_getaffinity(0)))


def make_loader(clips: Clips, batches: Iterator[list[SampleRef]], workers: int, pin: bool = False) -> DataLoader[Batch]:
    """Return micro-batches in order, loaded ahead by `workers` processes (0 loads in this process)."""
    return DataLoader(
        clips,
        sampler=batches,  # type: ignore[arg-type]  # its items are the lists of references that Clips takes
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        worker_init_fn=_one_thread,
    )


@contextmanager
def loading(loader: DataLoader[Batch]) -> Iterator[Iterator[Batch]]:
    """Start the loader's workers with SIGINT and SIGTERM blocked; end them after the block, also after an exception.

    Ctrl-C and a scheduler's SIGTERM reach the whole process group. The main process finishes its step and saves, for
    which it needs the workers. Because they ignore SIGTERM, Python would wait for them for ever at exit.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield batches
    finally:
        if loader.num_workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]  # torch has no public way


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
