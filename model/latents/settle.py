"""The latents of a run: fitted, loaded, or taken from encoded datasets on the first start, then kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.backbones.base import Words
from model.backbones.pretrained import read_base
from model.backbones.prompts import text_id
from model.config import Config
from model.data.index import Index, latent_size, make_schedule
from model.data.loader import Batch, Clips
from model.encoding import Encoding, read_encoding, split_weight
from model.errors import BaseError, LatentError
from model.latents.base import Latents, to_signed
from model.latents.hub import HubLatents
from model.latents.pca import PCA
from model.latents.pixels import Pixels
from model.training.parallel import RankContext, barrier
from pipeline.storage.store import Store, atomic

FITTING_VIDEOS = 256  # that principal components are fitted on, at most
FITTING_BLOCKS = 250_000  # after which no further video is taken: 325 for each of the 768 numbers of a block
EMPTY_CAPTION = "empty_caption.safetensors"  # of datasets of latents: what a dropped caption becomes
MARKER = "id"  # written last: a folder with it holds everything else


def settle_latents(config: Config, out: Path, context: RankContext, index: Index) -> Latents:
    """Return the latents in `out`, written there on the first call: those that encoded datasets were made with, or new
    ones. Raises LatentError where `out` has other latents than the datasets."""
    folder, encoding = out / "latents", read_encoding(config.data)
    if context.main and not (folder / MARKER).exists():
        folder.mkdir(parents=True, exist_ok=True)
        if encoding:
            store = Store(split_weight(config.data[0])[0])
            for name in sorted(store.list("latents"), key=lambda name: Path(name).name == MARKER):
                store.fetch(name, folder / Path(name).name)
        else:
            print("making latents", flush=True)
            fitted = make_latents(config, lambda: fitting_videos(config, index))
            fitted.save(folder)
            with atomic(folder / MARKER) as part:
                part.write_text(fitted.id)
    barrier()
    latents = load_latents(config.latents, folder)
    if encoding and encoding.latents != latents.id:
        raise LatentError(f"the datasets were encoded with {encoding.latents}, {out} has latents {latents.id}")
    return latents if encoding else latents.to(context.device)


def make_latents(config: Config, videos: Callable[[], Iterable[Tensor]]) -> Latents:
    """Return new latents for a run; `videos()` yields what principal components are fitted on. Raises LatentError."""
    name, _, path = config.latents.partition(":")
    if name == "pixel":
        return Pixels()
    if name == "pca":
        return PCA.load(_saved_pca(path)) if path else PCA.fit(videos, config.latent_channels)
    if name == "diffusers":
        return HubLatents(path)
    raise LatentError(f"no latents called {config.latents!r}: pixel, pca, pca:RUN or diffusers:FOLDER_OR_REPO")


def latent_stride(config: Config) -> tuple[int, int, int]:
    """Return the stride of what `settle_latents` will return, before it is fitted. Raises LatentError."""
    if encoding := read_encoding(config.data):
        a, b, c = encoding.stride
        return a, b, c
    return PCA.stride if config.latents == "pca" else make_latents(config, tuple).stride


def load_latents(name: str, folder: Path) -> Latents:
    """Return the latents that a run saved in `folder`; name: its config's `latents`."""
    loaders: dict[str, Callable[[Path], Latents]] = {
        "pixel": lambda _: Pixels(),
        "pca": PCA.load,
        "diffusers": HubLatents.load,
    }
    return loaders[name.partition(":")[0]](folder)


def fitting_videos(config: Config, index: Index) -> Iterator[Tensor]:
    """Yield videos (b, 3, t, h, w) in [-1, 1] in the order of the run, until FITTING_VIDEOS or FITTING_BLOCKS are
    reached."""
    schedule = make_schedule(index, config, PCA.stride)
    clips = Clips(index, schedule, config)
    step, videos, blocks = 0, FITTING_VIDEOS, FITTING_BLOCKS
    while True:
        for refs in schedule.step(step):
            if not videos or blocks <= 0:
                return
            few = refs[:videos]
            yield to_signed(clips[few].inputs)
            videos -= len(few)
            blocks -= len(few) * math.prod(latent_size(few[0].shape, PCA.stride))
        step += 1


def encode_batch(latents: Latents, batch: Batch, device: torch.device) -> Tensor:
    """Return the batch's latents (b, c, t', h', w') fp32 on `device`, encoded now or taken as they are."""
    inputs = batch.inputs.to(device, non_blocking=True)
    return latents.encode(to_signed(inputs)) if batch.words is None else inputs.float()


def check_base(config: Config, encoding: Encoding | None) -> None:
    """Raise LatentError or BaseError when encoded datasets do not fit the base: other latents or other texts."""
    if not config.base:
        return
    base = read_base(config.base, config.expert)
    latents, text = (
        (encoding.options["latents"], encoding.options["text"]) if encoding else (config.latents, config.text)
    )
    if latents != config.base and (not encoding or HubLatents(base.path).id != encoding.latents):
        raise LatentError(f"{config.base} works on its own latents, not on latents={latents}")
    if text != config.base and (not encoding or text_id(base, config.text_tokens) != encoding.text):
        raise BaseError(f"{config.base} needs its own text encoders, not text={text}")


def empty_caption(out: Path) -> Words:
    """Return the encoded empty caption of the datasets that a run trains on; none of our transformer's words."""
    file = out / "latents" / EMPTY_CAPTION
    return dict(load_file(file)) if file.exists() else {}


def _saved_pca(run: str) -> Path:
    """The folder of principal components that a run, or `clipmill encode`, wrote in `run`."""
    folder = Path(run) / "latents"
    if not (folder / "pca.safetensors").exists():
        raise LatentError(f"{run}: no principal components in it; `clipmill train` fits them")
    return folder
