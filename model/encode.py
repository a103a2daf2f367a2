"""`clipmill encode`: a dataset of clips to a dataset of latents and encoded captions, which trains without decoding.

LATENTS/ has one shard for each of the dataset's, under the same name: WebDataset tars of KEY-NN.safetensors and
KEY-NN.txt, with indexes. The tensors, all float16, are `latents` (c, t', h', w'), the encoded caption and, for a base
that continues a picture, what it takes of the first frame. A clip gives as many samples as fit into it. A shard is
complete or absent, and its bytes are a function of the dataset and the options.
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
from safetensors.torch import save, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.cli import ERRORS, parse
from model.config import Config, load_config, to_dict
from model.data.index import Index, assign_shapes, make_schedule, read_index
from model.data.loader import FIRST_FRAME, Clips, worker_count
from model.data.schedule import Shape
from model.encoding import ENCODED, Encoding, scored_by
from model.errors import DataError
from model.latents.base import to_signed
from model.latents.first_frame import FirstFrame, check_first_frames, picture_of
from model.latents.settle import EMPTY_CAPTION, check_base, latent_stride, load_latents, settle_latents
from model.text import describe_text, load_text
from model.training.parallel import join
from pipeline.config.options import OptionError as ConfigError
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
MARK = b"clipmill"  # key in an index's metadata: hash of the index that it was made from


def main(argv: Sequence[str] | None = None) -> int:
    """`clipmill encode`; 0 when every shard is encoded, 2 when that cannot be."""
    try:
        out, config = arguments("clipmill encode", argv)
        pending = prepare(out, config)
        encoder = Encoder(out, config)
        for number, shard in enumerate(pending):
            began = time.monotonic()
            _, count, failed = encoder.encode(shard)
            rate = count / (time.monotonic() - began)
            print(
                f"{number + 1} of {len(pending)}  {shard}  {count} samples, {failed} failed, {rate:.1f}/s", flush=True
            )
    except ERRORS as error:
        print(f"clipmill encode: {error}", file=sys.stderr)
        return 2
    print(f"the latents are in {out}; train with `clipmill train {out}`")
    return 0


def arguments(name: str, argv: Sequence[str] | None) -> tuple[Path, Config]:
    """Return the folder and the config, whose `data` is the dataset, of a command line. Raises ConfigError."""
    description = "Encode a dataset into latents, to train on them. Run again with the same --out to continue."
    args = parse(argparse.ArgumentParser(prog=name, description=description), argv)
    if len(args.data) > 1:
        raise ConfigError(f"one dataset at a time, not {', '.join(args.data)}")
    return args.out, load_config(args.config, args.options, args.data, cuda=args.cuda, preset=args.preset)


def prepare(folder: Path, config: Config) -> list[str]:
    """Settle the latents, write encoding.json, delete shards that the dataset no longer has, and return the shards that
    are still to encode ("BUCKET/SPLIT-NNNNNN"). Raises one of ERRORS."""
    source, path = config.data[0], folder / "encoding.json"
    if folder.exists() and any(folder.iterdir()) and not (folder / "latents").exists():
        raise ConfigError(f"{folder} holds something else; give an empty or new folder")
    marks = shards_of(source)
    index = read_index([source])
    if index.encoded:
        raise DataError(f"{source} holds latents already")
    check_base(config, None)
    stride = latent_stride(config)
    check_first_frames(config, make_schedule(index, config, stride), stride, None)  # before anything is written
    latents = settle_latents(config, folder, join(config.device), index)
    text, layout = describe_text(config.text, config.text_tokens)
    counts = {split: sum(f"/{split}-" in name for name in marks) for split in SPLITS}
    encoding = Encoding(
        source, scored_by(source), latents.id, latents.stride, text, layout, options(config), counts,
        first_frame=picture_of(config) is not None,
    )  # fmt: skip
    if path.exists():
        old = json.loads(path.read_text())
        new = json.loads(json.dumps(dataclasses.asdict(encoding)))
        if differing := [
            key for key in ("latents", "text", "options", "first_frame") if old.get(key, False) != new[key]
        ]:
            raise ConfigError(f"{folder} was encoded with other {', '.join(differing)}; give another --out")
    with atomic(path) as part:
        part.write_text(json.dumps(dataclasses.asdict(encoding), indent=1))
    remove_abandoned(folder)
    for old_index in folder.glob("shards/*/*.parquet"):
        if marks.get(f"{old_index.parent.name}/{old_index.stem}") != _mark(old_index):
            old_index.unlink()
            old_index.with_suffix(".tar").unlink(missing_ok=True)
    return [name for name, mark in marks.items() if mark != _mark(folder / "shards" / f"{name}.parquet")]


def options(config: Config) -> dict[str, object]:
    """Return the config's values that decide what is encoded."""
    return {key: value for key, value in to_dict(config).items() if key in ENCODED}


def shards_of(source: str, shard: str = "*/*") -> dict[str, str]:
    """Return a hash of the index of each of the dataset's shards that hold clips, or of one shard, by
    "BUCKET/SPLIT-NNNNNN" and in order."""
    store, marks = Store(source), {}
    for tar in list_shards(store, f"shards/{shard}.tar"):
        name = tar.removesuffix(".tar")
        with open_published(store, f"{name}.parquet") as file:
            index = file.read()
        if pq.read_metadata(io.BytesIO(index)).num_rows:
            marks[name.removeprefix("shards/")] = hashlib.sha256(index).hexdigest()
    return marks


class Encoder:
    """Encodes shards one after the other, on one device."""

    def __init__(self, folder: Path, config: Config) -> None:
        """After `prepare`. Raises one of ERRORS."""
        self.source, self.folder, self.config = config.data[0], folder, config
        self.context = join(config.device)
        self.latents = load_latents(config.latents, self.folder / "latents").to(self.context.device)
        self.text = load_text(config.text, config.text_tokens, str(self.context.device))
        self.first_frame = FirstFrame(config, self.latents, self.text)
        if not (folder / "latents" / EMPTY_CAPTION).exists():
            empty = {name: tensor.half().contiguous() for name, tensor in self.text.vectors([""])[0].items()}
            with atomic(folder / "latents" / EMPTY_CAPTION) as part:
                save_file(empty, part)

    def encode(self, shard: str) -> tuple[str, int, int]:
        """Write one shard; return its name, the number of its samples and of those that could not be decoded. Raises
        DataError when the dataset's shard is gone."""
        mark = shards_of(self.source, shard).get(shard, "")  # before it is read, so that a later change is noticed
        index = read_index([self.source], shard=shard)
        samples = list(windows(index, self.config, self.latents.stride))
        clips = Windows(Clips(index, None, self.config), samples)
        target = self.folder / "shards" / f"{shard}.tar"
        target.with_suffix(".parquet").unlink(missing_ok=True)
        rows = []
        with atomic(target) as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            loaded = DataLoader(clips, batch_size=None, num_workers=worker_count(self.config))
            for (sample, shape, number, _), (frames, caption) in zip(samples, loaded, strict=True):
                if frames is not None:
                    row = self._add(tar, f"{index.key[sample]}-{number:02d}", frames, caption)
                    rows.append({**row, **_picture(shape, self.config.fps)})
        table = pa.Table.from_pylist(rows, schema=INDEX).replace_schema_metadata({MARK: mark})
        with atomic(target.with_suffix(".parquet")) as part:
            pq.write_table(table, part)
        return shard, len(rows), len(samples) - len(rows)

    def _add(self, tar: tarfile.TarFile, key: str, frames: Tensor, caption: str) -> dict[str, object]:
        """Encode one sample into the tar; return its row of the index."""
        video = to_signed(frames[None].to(self.context.device))
        tensors = {"latents": self.latents.encode(video)[0], **self.text.vectors([caption])[0]}
        tensors |= {f"{FIRST_FRAME}{name}": tensor[0] for name, tensor in self.first_frame.of_videos(video).items()}
        tensors = {name: tensor.half().cpu().contiguous() for name, tensor in tensors.items()}
        row: dict[str, object] = {"key": key, "media": "safetensors"}
        for name, ending, data in (("media", "safetensors", save(tensors)), ("text", "txt", caption.encode())):
            member = tarfile.TarInfo(f"{key}.{ending}")
            member.size = len(data)
            row |= {f"{name}_offset": tar.offset + tarfile.BLOCKSIZE, f"{name}_size": len(data)}
            tar.addfile(member, io.BytesIO(data))
        return row


def windows(index: Index, config: Config, stride: tuple[int, int, int]) -> Iterator[tuple[int, Shape, int, float]]:
    """Yield sample, shape, number and start (seconds) of all that is encoded: parts of clips that do not overlap."""
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
    """Return a sample's columns of the index that describe its frames."""
    moving = shape.frames > 1
    rate, seconds = (fps, shape.frames / fps) if moving else (0.0, 0.0)
    return {"frames": shape.frames, "height": shape.height, "width": shape.width, "fps": rate, "duration": seconds}


def _mark(index: Path) -> str:
    """Return the hash of the index that an encoded shard was made from; "" where there is none."""
    if not index.exists():
        return ""
    return (pq.read_schema(index).metadata or {}).get(MARK, b"").decode()
