"""Shards to batches: the index of every clip, the shapes clips are given, and the processes that load them."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from model.config import Config
from model.order import Draw, Order, Shape, Stream
from pipeline.clip_reader import ClipError, read_frames, read_image

ASPECTS = (16 / 9, 4 / 3, 1.0, 3 / 4, 9 / 16)
ATTEMPTS = 8  # samples tried in a row before the run stops: more is a broken dataset, not a corrupt clip


class DataError(ValueError):
    """A dataset that cannot be trained on; the message says what is missing."""


@dataclass(frozen=True)
class Index:
    """Every sample of the shards, one array a column; a sample's id is its row."""

    shards: tuple[str, ...]  # paths or URLs of the tars
    shard: np.ndarray  # (n,) which of them
    dataset: np.ndarray  # (n,) which dataset
    key: np.ndarray
    still: np.ndarray  # (n,) bool: an image
    spans: np.ndarray  # (n, 4) int64: media offset, media size, text offset, text size
    width: np.ndarray
    height: np.ndarray
    duration: np.ndarray  # seconds
    fps: np.ndarray

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True)
class Batch:
    """One micro-batch: frames (b, t, h, w, 3) uint8, captions, and the draws they answer."""

    frames: torch.Tensor
    captions: list[str]
    keys: list[str]
    draws: list[Draw]
    replaced: int  # samples that another stood in for


def read_index(datasets: Sequence[str], split: str = "train") -> Index:
    """The samples of a split over datasets (folders or URLs, perhaps with @WEIGHT). Raises DataError."""
    columns: dict[str, list[np.ndarray]] = {}
    shards: list[str] = []
    wanted = [
        "key",
        "media",
        "media_offset",
        "media_size",
        "text_offset",
        "text_size",
        "width",
        "height",
        "duration",
        "fps",
    ]
    for number, dataset in enumerate(datasets):
        root = split_weight(dataset)[0]
        fs, path = fsspec.core.url_to_fs(root)
        indexes = sorted(fs.glob(f"{path}/shards/*/{split}-*.parquet"))
        if not indexes:
            raise DataError(f"{root}: no {split} shards in it; `clipmill build` makes them")
        for name in indexes:
            with fs.open(name) as file:
                table = pq.read_table(io.BytesIO(file.read()), columns=wanted).to_pydict()
            table["shard"] = [len(shards)] * len(table["key"])
            table["dataset"] = [number] * len(table["key"])
            for key, values in table.items():
                columns.setdefault(key, []).append(np.asarray(values))
            shards.append(fs.unstrip_protocol(name.removesuffix(".parquet") + ".tar"))
    joined = {key: np.concatenate(parts) for key, parts in columns.items()}
    spans = np.stack([joined[c] for c in ("media_offset", "media_size", "text_offset", "text_size")], axis=1)
    return Index(
        tuple(s.removeprefix("file://") for s in shards),
        joined["shard"],
        joined["dataset"],
        joined["key"],
        joined["media"] == "jpg",
        spans.astype(np.int64),
        joined["width"].astype(np.float64),
        joined["height"].astype(np.float64),
        joined["duration"].astype(np.float64),
        joined["fps"].astype(np.float64),
    )


def split_weight(dataset: str) -> tuple[str, float | None]:
    """PATH@WEIGHT into its parts."""
    path, at, weight = dataset.rpartition("@")
    try:
        return (path, float(weight)) if at else (dataset, None)
    except ValueError:
        return dataset, None


def shape_table(resolution: int, multiple: tuple[int, int]) -> np.ndarray:
    """Heights and widths of about resolution^2 pixels at each aspect ratio: (aspects, 2), multiples of `multiple`."""
    rows = [
        [max(1, round(resolution * r / m)) * m for r, m in zip((a**-0.5, a**0.5), multiple, strict=True)]
        for a in ASPECTS
    ]
    return np.array(rows)


def assign_shapes(index: Index, config: Config, stride: tuple[int, int, int]) -> tuple[np.ndarray, list[Shape]]:
    """For every sample the number of its shape, -1 for too short, and the shapes.

    A clip takes the largest resolution that it fills without being enlarged (the smallest if it fills none), the aspect
    ratio nearest its own, and the largest frame count that it is long enough for at the config's rate.
    """
    multiple = (stride[1] * config.patch, stride[2] * config.patch)
    for frames in config.frame_counts:
        if (frames - 1) % stride[0]:
            raise DataError(f"frame_counts: {frames} is not 1 + a multiple of {stride[0]}, which these latents need")
    aspect = np.abs(np.log(index.width / index.height)[:, None] - np.log(ASPECTS)).argmin(1)
    resolutions = sorted(config.resolutions)
    level = np.zeros(len(index), np.int64)
    for i, resolution in enumerate(resolutions):
        sizes = shape_table(resolution, multiple)[aspect]
        level[(index.height >= sizes[:, 0]) & (index.width >= sizes[:, 1])] = i
    counts = sorted(set(config.frame_counts) | {1})
    length = np.zeros(len(index), np.int64)
    for i, frames in enumerate(counts):
        enough = index.duration + 0.5 / config.fps >= frames / config.fps
        length[enough & ~index.still & (frames in config.frame_counts)] = i
    short = ~index.still & (length == 0) & (1 not in config.frame_counts)
    code = (level * len(counts) + length) * len(ASPECTS) + aspect
    shapes, number = np.unique(code, return_inverse=True)
    table = []
    for value in shapes.tolist():
        rest, a = divmod(value, len(ASPECTS))
        i, j = divmod(rest, len(counts))
        h, w = shape_table(resolutions[i], multiple)[a].tolist()
        table.append(Shape(counts[j], h, w))
    number[short] = -1
    return number, table


def make_order(index: Index, config: Config, stride: tuple[int, int, int]) -> Order:
    """The order of a run over `index`. Raises DataError when no clip is long enough."""
    number, shapes = assign_shapes(index, config, stride)
    if (number < 0).all():
        raise DataError(
            f"no clip is as long as {min(config.frame_counts)} frames at {config.fps} fps; the longest has "
            f"{index.duration.max():.1f} s. Lower frame_counts or fps"
        )
    weights = [split_weight(d)[1] for d in config.data]
    streams = []
    for dataset in np.unique(index.dataset).tolist():
        inside = (index.dataset == dataset) & (number >= 0)
        scale = 1.0 if weights[dataset] is None else float(weights[dataset] or 0) / max(1, int(inside.sum()))
        for i, shape in enumerate(shapes):
            members = np.flatnonzero(inside & (number == i))
            share = 1.0 if shape.frames == 1 or config.image_ratio == 0 else 1 - config.image_ratio
            still = Shape(1, shape.height, shape.width)
            for part, chance in ((shape, share), (still, 1 - share)):
                if len(members) and scale and chance:
                    batch = samples_in(part, config, stride)
                    streams.append(Stream(part, members, index.shard[members], scale * chance * len(members), batch))
    if not streams:
        raise DataError("every dataset has weight 0")
    return Order(streams, config.seed, config.micro_batches, config.shuffle_shards)


def samples_in(shape: Shape, config: Config, stride: tuple[int, int, int]) -> int:
    """Samples of a shape within a micro-batch's token budget. Raises DataError when not even one fits."""
    tokens = token_count(shape, config, stride)
    if tokens > config.tokens:
        raise DataError(f"one sample of {shape} has {tokens} tokens, over tokens={config.tokens}: raise it")
    return config.tokens // tokens


def token_count(shape: Shape, config: Config, stride: tuple[int, int, int]) -> int:
    """Latent tokens of one sample."""
    frames = 1 + (shape.frames - 1) // stride[0]
    return frames * (shape.height // stride[1] // config.patch) * (shape.width // stride[2] // config.patch)


class Clips(Dataset[Batch]):
    """Micro-batches by their draws. Reads byte ranges of the shards; holds one file handle a shard and process.

    Clips that all fit in `memory_mb` at the training size are decoded once."""

    def __init__(self, index: Index, order: Order | None, config: Config, folder: Path | None = None) -> None:
        """order gives substitutes for corrupt samples; without it they are an error. folder: where remote shards are
        copied to, at most `cache_gb` of them."""
        self.index, self.order, self.config, self.folder = index, order, config, folder
        self._files: dict[int, int] = {}
        self._decoded: dict[tuple[int, Shape], np.ndarray] = {}
        pixels = 3 * max(config.resolutions) ** 2 * float((index.duration * index.fps)[~index.still].sum())
        self._keep_decoded = pixels < config.memory_mb * 1e6

    def __getitem__(self, draws: Sequence[Draw]) -> Batch:  # type: ignore[override]
        frames, captions, keys, replaced = [], [], [], 0
        for draw in draws:
            for attempt in range(ATTEMPTS):
                now = draw if attempt == 0 or self.order is None else self.order.substitute(draw, attempt)
                try:
                    frames.append(self.load(now))
                    break
                except ClipError as error:
                    reason = error
            else:
                raise DataError(f"{ATTEMPTS} samples in a row cannot be read: {reason}")
            replaced += attempt > 0
            captions.append(self.caption(now.sample))
            keys.append(str(self.index.key[now.sample]))
        return Batch(torch.from_numpy(np.stack(frames)), captions, keys, list(draws), replaced)

    def load(self, draw: Draw) -> np.ndarray:
        """(t, h, w, 3) uint8; where in the clip it starts follows from the seed, the step and the slot. Raises
        ClipError when it cannot be decoded and DataError when the shard is gone."""
        sample, shape = draw.sample, draw.shape
        if self.index.still[sample]:
            return read_image(self.read(sample, 0), shape.height, shape.width)
        span = shape.frames / self.config.fps
        rng = np.random.default_rng((self.config.seed, draw.step, draw.slot))
        start = rng.random() * max(0.0, float(self.index.duration[sample]) - span)
        times = start + np.arange(shape.frames) / self.config.fps
        if not self._keep_decoded:
            return self._decode(sample, times, shape)
        if (sample, shape) not in self._decoded:
            every = np.arange(max(1, round(self.index.duration[sample] * self.index.fps[sample])))
            self._decoded[sample, shape] = self._decode(sample, every / self.index.fps[sample], shape)
        frames = self._decoded[sample, shape]
        return frames[(times * self.index.fps[sample] + 1e-3).astype(int).clip(0, len(frames) - 1)]

    def _decode(self, sample: int, times: np.ndarray, shape: Shape) -> np.ndarray:
        source = (int(self.index.height[sample]), int(self.index.width[sample]))
        data = self.read(sample, 0)
        return read_frames(data, times, shape.height, shape.width, self.config.decoder, source)

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
                    os.close(self._files.pop(next(iter(self._files))))
                self._files[shard] = os.open(self.local(self.index.shards[shard]), os.O_RDONLY)
            data = os.pread(self._files[shard], size, offset)
        except OSError as error:
            raise DataError(
                f"{self.index.shards[shard]}: {error.strerror}; the shard was there at the start"
            ) from error
        if len(data) != size:
            raise ClipError(f"{self.index.shards[shard]} ends before sample {self.index.key[sample]}")
        return data

    def local(self, shard: str) -> str:
        """The shard's path here; a remote one is copied once, and the oldest copies make room."""
        if "://" not in shard:
            return shard
        folder = self.folder or Path.home() / ".cache" / "clipmill"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / shard.replace("/", "_").replace(":", "_")
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}.part")
            fs, name = fsspec.core.url_to_fs(shard)
            fs.get_file(name, str(part))
            part.rename(path)
            copies = sorted(folder.glob("*.tar"), key=lambda p: p.stat().st_atime)
            room = sum(p.stat().st_size for p in copies) - int(self.config.cache_gb * 1e9)
            for copy in copies:
                if room > 0 and copy != path:
                    room -= copy.stat().st_size
                    copy.unlink(missing_ok=True)
        return str(path)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_files": {}, "_decoded": {}}


class MicroBatches:
    """The draws of one rank from a step on, for ever: a DataLoader's batch sampler."""

    def __init__(self, order: Order, first_step: int, last_step: int, rank: int, world: int) -> None:
        self.order, self.steps, self.rank, self.world = order, range(first_step, last_step), rank, world

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in self.steps:
            yield from self.order.step(step)[self.rank :: self.world]


def make_loader(clips: Clips, batches: MicroBatches, workers: int, pin: bool = False) -> DataLoader[Batch]:
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


def describe(index: Index, order: Order) -> str:
    """One line for the log: samples, datasets and shapes."""
    shapes: Counter[str] = Counter()
    for stream in order.streams:
        shapes[str(stream.shape)] += len(stream.members)
    listed = json.dumps(dict(shapes)).strip("{}").replace('"', "")
    return f"{len(index)} samples in {len(index.shards)} shards; shapes (frames x height x width): {listed}"
