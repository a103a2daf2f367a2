"""`clipmill encode`: a dataset of clips to a dataset of latents and caption vectors, which trains without decoding.

LATENTS/ has shards like the dataset's, one for each of its shards and under the same name: WebDataset tars of
KEY-NN.safetensors (latents (c, t', h', w') and text (tokens, width), both float16) and KEY-NN.txt, with indexes. A clip
gives as many samples as it has room for. A shard is there as a whole or not at all, and its bytes follow from the
dataset and the options.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.config import ENCODED, Config, ConfigError, Encoding, load_config, scored_by, to_dict
from model.data import Clips
from model.index import DataError, Index, assign_shapes, make_order, read_index
from model.latents import latent_stride, load_latents, settle_latents, to_signed
from model.order import Shape
from model.parallel import join
from model.text import TextEncoder
from model.train import ERRORS, parse
from pipeline.media.clip_reader import ClipError
from pipeline.storage.store import Store, atomic, remove_abandoned
from pipeline.tables.published import list_shards, open_published

SPLITS = ("train", "val")
INDEX = pa.schema(
    [("key", pa.string()), ("media", pa.string())]
    + [(f"{name}_{what}", pa.int64()) for name in ("media", "text") for what in ("offset", "size")]
    + [(name, pa.int32()) for name in ("frames", "width", "height")]
    + [("fps", pa.float64()), ("duration", pa.float64())]
)
MARK = b"clipmill"  # key of an index's metadata: which shard it was made from


def main(argv: Sequence[str] | None = None) -> int:
    """`clipmill encode`; 0 when every shard is encoded, 2 when that cannot be."""
    try:
        out, config = arguments("clipmill encode", argv)
        left = plan(out, config)
        encoder = Encoder(out, config)
        for number, shard in enumerate(left):
            began = time.monotonic()
            _, made, failed = encoder.encode(shard)
            rate = made / (time.monotonic() - began)
            print(f"{number + 1} of {len(left)}  {shard}  {made} samples, {failed} failed, {rate:.1f}/s", flush=True)
    except ERRORS as error:
        print(f"clipmill encode: {error}", file=sys.stderr)
        return 2
    print(f"the latents are in {out}; train with `clipmill train {out}`")
    return 0


def arguments(name: str, argv: Sequence[str] | None) -> tuple[Path, Config]:
    """Folder and config, whose `data` is the dataset, of a command line. Raises ConfigError."""
    description = "Encode a dataset into latents, to train on them. Run again with the same --out to go on."
    args = parse(argparse.ArgumentParser(prog=name, description=description), argv)
    if len(args.data) > 1:
        raise ConfigError(f"one dataset at a time, not {', '.join(args.data)}")
    return args.out, load_config(args.config, args.options, args.data, cuda=args.cuda)


def plan(folder: Path, config: Config) -> list[str]:
    """Settles the latents, writes encoding.json, deletes shards of what the dataset no longer has, and returns those
    that are still to encode ("BUCKET/SPLIT-NNNNNN"). Raises one of ERRORS."""
    source, path = config.data[0], folder / "encoding.json"
    if folder.exists() and any(folder.iterdir()) and not (folder / "latents").exists():
        raise ConfigError(f"{folder} holds something else; give an empty or new folder")
    there = shards_of(source)
    index = read_index([source])
    if index.encoded:
        raise DataError(f"{source} holds latents already")
    make_order(index, config, latent_stride(config))  # says what no clip fits before anything is written
    latents = settle_latents(config, folder, join(config.device), index)
    text = TextEncoder(config.text, config.text_tokens)
    counts = {split: sum(f"/{split}-" in name for name in there) for split in SPLITS}
    made = Encoding(source, scored_by(source), latents.id, latents.stride, text.id, text.width, options(config), counts)
    if path.exists():
        old = json.loads(path.read_text())
        new = json.loads(json.dumps(dataclasses.asdict(made)))
        if differing := [key for key in ("latents", "text", "options") if old[key] != new[key]]:
            raise ConfigError(f"{folder} was encoded with other {', '.join(differing)}; give another --out")
    with atomic(path) as part:
        part.write_text(json.dumps(dataclasses.asdict(made), indent=1))
    remove_abandoned(folder)
    for old_index in folder.glob("shards/*/*.parquet"):
        if there.get(f"{old_index.parent.name}/{old_index.stem}") != _mark(old_index):
            old_index.unlink()
            old_index.with_suffix(".tar").unlink(missing_ok=True)
    return [name for name, mark in there.items() if mark != _mark(folder / "shards" / f"{name}.parquet")]


def options(config: Config) -> dict[str, object]:
    """The config's values that decide what latents are made."""
    return {key: value for key, value in to_dict(config).items() if key in ENCODED}


def shards_of(source: str, shard: str = "*/*") -> dict[str, str]:
    """ "BUCKET/SPLIT-NNNNNN" of the dataset's shards that hold clips, in order, with a hash of each one's index; or of
    one shard."""
    store, found = Store(source), {}
    for tar in list_shards(store, f"shards/{shard}.tar"):
        name = tar.removesuffix(".tar")
        with open_published(store, f"{name}.parquet") as file:
            found[name.removeprefix("shards/")] = hashlib.sha256(file.read()).hexdigest()
    return found


class Encoder:
    """Encodes shards one after the other, on one device."""

    def __init__(self, folder: Path, config: Config) -> None:
        """After `plan`. Raises one of ERRORS."""
        self.source, self.folder, self.config = config.data[0], folder, config
        self.place = join(config.device)
        self.latents = load_latents(config.latents, self.folder / "latents").to(self.place.device)
        self.text = TextEncoder(config.text, config.text_tokens, str(self.place.device))

    def encode(self, shard: str) -> tuple[str, int, int]:
        """Writes one shard; returns it, its number of samples and of those that cannot be decoded. Raises DataError
        when the dataset's shard is gone."""
        mark = shards_of(self.source, shard).get(shard, "")  # before it is read: a change from now on is seen later
        index = read_index([self.source], shard=shard)
        samples = list(windows(index, self.config, self.latents.stride))
        clips = Windows(Clips(index, None, self.config), samples)
        target = self.folder / "shards" / f"{shard}.tar"
        target.with_suffix(".parquet").unlink(missing_ok=True)
        rows = []
        with atomic(target) as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            loaded = DataLoader(clips, batch_size=None, num_workers=self.config.workers)
            for (sample, shape, number, _), (frames, caption) in zip(samples, loaded, strict=True):
                if frames is not None:
                    row = self._add(tar, f"{index.key[sample]}-{number:02d}", frames, caption)
                    rows.append({**row, **_picture(shape, self.config.fps)})
        table = pa.Table.from_pylist(rows, schema=INDEX).replace_schema_metadata({MARK: mark})
        with atomic(target.with_suffix(".parquet")) as part:
            pq.write_table(table, part)
        return shard, len(rows), len(samples) - len(rows)

    def _add(self, tar: tarfile.TarFile, key: str, frames: Tensor, caption: str) -> dict[str, object]:
        """Encodes one sample into the tar; its row of the index."""
        latents = self.latents.encode(to_signed(frames[None].to(self.place.device)))[0]
        tensors = {"latents": latents.half().cpu().contiguous(), "text": self.text.vectors([caption])[0].half()}
        row: dict[str, object] = {"key": key, "media": "safetensors"}
        for name, ending, data in (("media", "safetensors", save(tensors)), ("text", "txt", caption.encode())):
            member = tarfile.TarInfo(f"{key}.{ending}")
            member.size = len(data)
            row |= {f"{name}_offset": tar.offset + tarfile.BLOCKSIZE, f"{name}_size": len(data)}
            tar.addfile(member, io.BytesIO(data))
        return row


def windows(index: Index, config: Config, stride: tuple[int, int, int]) -> Iterator[tuple[int, Shape, int, float]]:
    """Sample, shape, number and start (seconds) of everything that is encoded: a clip's parts that do not overlap."""
    numbers, shapes = assign_shapes(index, config, stride)
    for sample in np.flatnonzero(numbers >= 0).tolist():
        shape = shapes[numbers[sample]]
        seconds = shape.frames / config.fps
        room = 1 if shape.frames == 1 else max(1, int((index.duration[sample] + 0.5 / config.fps) / seconds))
        yield from ((sample, shape, i, i * seconds) for i in range(room))


class Windows(Dataset[tuple[Tensor | None, str]]):
    """Frames (t, h, w, 3) uint8 and captions of samples; None for frames that cannot be decoded."""

    def __init__(self, clips: Clips, samples: Sequence[tuple[int, Shape, int, float]]) -> None:
        self.clips, self.samples = clips, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, at: int) -> tuple[Tensor | None, str]:
        sample, shape, _, start = self.samples[at]
        try:
            return torch.from_numpy(self.clips.frames(sample, shape, start)), self.clips.caption(sample)
        except ClipError:
            return None, ""


def _picture(shape: Shape, fps: float) -> dict[str, float]:
    """A sample's columns of the index that say what it shows."""
    moving = shape.frames > 1
    rate, seconds = (fps, shape.frames / fps) if moving else (0.0, 0.0)
    return {"frames": shape.frames, "height": shape.height, "width": shape.width, "fps": rate, "duration": seconds}


def _mark(index: Path) -> str:
    """The hash of the index that an encoded shard was made from; "" where there is none."""
    if not index.exists():
        return ""
    return (pq.read_schema(index).metadata or {}).get(MARK, b"").decode()
