"""The index of a run: every sample of its shards, the shape each sample is given, and the schedule of batches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from model.config import Config
from model.data.schedule import BatchSchedule, Shape, Stream
from model.encoding import read_encoding, split_weight
from model.errors import DataError
from pipeline.storage.store import Store
from pipeline.tables.published import list_shards, open_published

COLUMNS = ("key", "media", "frames", "width", "height", "duration", "fps")
SPANS = ("media_offset", "media_size", "text_offset", "text_size")
NO_SHARDS = {  # what to do, by split
    "train": "`clipmill build` makes them",
    "val": "take --split train, or build again with a larger select.val_fraction",
}
ASPECTS = (16 / 9, 4 / 3, 1.0, 3 / 4, 9 / 16)


@dataclass(frozen=True)
class Index:
    """Every sample of the shards, one array a column; a sample's id is its row."""

    shards: tuple[str, ...]  # paths or URLs of the tars
    shard: np.ndarray  # (n,) which of them
    dataset: np.ndarray  # (n,) which dataset
    key: np.ndarray
    media: np.ndarray  # mp4, jpg, or safetensors: latents that `clipmill encode` made
    spans: np.ndarray  # (n, 4) int64: media offset, media size, text offset, text size
    frames: np.ndarray
    width: np.ndarray
    height: np.ndarray
    duration: np.ndarray  # seconds
    fps: np.ndarray

    @property
    def encoded(self) -> bool:
        """Whether the samples are latents; they all are, or none is."""
        return bool(self.media[0] == "safetensors")

    @property
    def still(self) -> np.ndarray:
        """(n,) bool: an image."""
        return np.asarray(self.frames == 1)

    def __len__(self) -> int:
        return len(self.key)


def read_index(datasets: Sequence[str], split: str = "train", shard: str = "") -> Index:
    """Return the samples of a split over datasets (folders or URLs, perhaps with @WEIGHT), or of one shard
    ("BUCKET/SPLIT-NNNNNN"). Raises DataError."""
    columns: dict[str, list[np.ndarray]] = {}
    shards: list[str] = []
    for number, dataset in enumerate(datasets):
        root = split_weight(dataset)[0]
        store, wanted = Store(root), f"shards/{shard}.tar" if shard else f"shards/*/{split}-*.tar"
        tars = list_shards(store, wanted)
        encoding = read_encoding([dataset])
        count = encoding.shards.get(split, 0) if encoding else 0
        if encoding:  # `clipmill encode` writes a shard's index last
            tars = [tar for tar in tars if store.exists(f"{tar.removesuffix('.tar')}.parquet")]
        if len(tars) < count:
            raise DataError(f"{root}: {len(tars)} of {count} shards are encoded; encode the rest")
        if not tars:
            raise DataError(f"{root}: no {split} shards in it; {NO_SHARDS[split]}")
        for tar in tars:
            with open_published(store, f"{tar.removesuffix('.tar')}.parquet") as file:
                table = pq.read_table(file, columns=[*COLUMNS, *SPANS]).to_pydict()
            if not table["key"]:  # none of its clips could be encoded
                continue
            table |= {"shard": [len(shards)] * len(table["key"]), "dataset": [number] * len(table["key"])}
            for key, values in table.items():
                columns.setdefault(key, []).append(np.asarray(values))
            shards.append(store.path(tar))
    if not shards:
        raise DataError(f"{' and '.join(datasets)}: no sample in the {split} shards")
    joined = {key: np.concatenate(parts) for key, parts in columns.items()}
    if len(set((joined["media"] == "safetensors").tolist())) > 1:
        raise DataError("latents of `clipmill encode` and clips cannot be mixed: encode all datasets or none")
    places = np.stack([joined.pop(c) for c in SPANS], axis=1).astype(np.int64)
    return Index(shards=tuple(shards), spans=places, **joined)


def shape_table(resolution: int, multiple: tuple[int, int]) -> np.ndarray:
    """Return heights and widths, (aspects, 2), of about resolution^2 pixels, multiples of `multiple`."""
    rows = [
        [max(1, round(resolution * r / m)) * m for r, m in zip((a**-0.5, a**0.5), multiple, strict=True)]
        for a in ASPECTS
    ]
    return np.array(rows)


def assign_shapes(index: Index, config: Config, stride: tuple[int, int, int]) -> tuple[np.ndarray, list[Shape]]:
    """Return the number of each sample's shape, -1 for a clip that is too short, and the shapes.

    A clip takes the largest resolution that it fills without being enlarged (the smallest if it fills none), the aspect
    ratio nearest its own, and the largest frame count that it is long enough for at the config's rate. Latents have the
    shape that they were made with.
    """
    if index.encoded:
        encoded, number = np.unique(np.stack([index.frames, index.height, index.width], 1), axis=0, return_inverse=True)
        return number.reshape(-1), [Shape(*row) for row in encoded.tolist()]
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


def make_schedule(index: Index, config: Config, stride: tuple[int, int, int]) -> BatchSchedule:
    """Return the schedule of a run over `index`. Raises DataError when no clip is long enough."""
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
    return BatchSchedule(streams, config.seed, config.micro_batches, config.shuffle_shards)


def samples_in(shape: Shape, config: Config, stride: tuple[int, int, int]) -> int:
    """Return how many samples of a shape fit into a micro-batch's token budget. Raises DataError when none fits."""
    tokens = token_count(shape, config, stride)
    if tokens > config.tokens:
        raise DataError(f"one sample of {shape} has {tokens} tokens, over tokens={config.tokens}: raise it")
    return config.tokens // tokens


def token_count(shape: Shape, config: Config, stride: tuple[int, int, int]) -> int:
    """Return the latent tokens of one sample."""
    frames, height, width = latent_size(shape, stride)
    return frames * (height // config.patch) * (width // config.patch)


def latent_size(shape: Shape, stride: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return frames, height and width of a sample's latents."""
    return 1 + (shape.frames - 1) // stride[0], shape.height // stride[1], shape.width // stride[2]


def describe(index: Index, schedule: BatchSchedule) -> str:
    """Return one line for the log: samples, shards and shapes."""
    shapes: Counter[str] = Counter()
    for stream in schedule.streams:
        shapes[str(stream.shape)] += len(stream.members)
    listed = json.dumps(dict(shapes)).strip("{}").replace('"', "")
    return f"{len(index)} samples in {len(index.shards)} shards; shapes (frames x height x width): {listed}"
