"""What the diffusion model works on: video to latents and back.

All of them are causal in time: the first frame is encoded by itself and every following group of `stride[0]` frames
becomes one latent frame, so a video of 1 + 4k frames has 1 + k latent frames and an image is a video of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import Config, read_encoding, split_weight
from model.data import Batch, Clips
from model.hub_latents import HubLatents
from model.index import Index, make_order
from model.parallel import Place, barrier
from model.vae import VAELatents
from pipeline.storage.store import Store


class LatentError(ValueError):
    """Latents that do not fit: of another kind than the run's, or a shape that cannot be encoded."""


class Latents(Protocol):
    """Videos are (b, 3, t, h, w) fp32 in [-1, 1]; latents (b, c, t', h', w') fp32 with a deviation of about 1."""

    id: str  # kind and a hash of the weights; shards of latents and checkpoints carry it
    stride: tuple[int, int, int]  # frames, rows and columns a latent pixel
    channels: int

    def encode(self, video: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def to(self, device: torch.device) -> Latents: ...

    def save(self, folder: Path) -> None: ...


class Pixels:
    """Space-time to depth, nothing lost: for tests and very small videos."""

    id = "pixel-2x4x4"
    stride = (2, 4, 4)
    channels = 2 * 4 * 4 * 3

    def encode(self, video: Tensor) -> Tensor:
        return to_blocks(video, self.stride)

    def decode(self, latents: Tensor) -> Tensor:
        return from_blocks(latents, self.stride)

    def to(self, device: torch.device) -> Pixels:
        return self

    def save(self, folder: Path) -> None:
        """There is nothing to save."""


class PCA:
    """Principal components of blocks of 4 frames x 8 x 8 pixels, fitted on the dataset in two passes; no network.

    The first frame counts as a block of four equal frames, so that a channel means the same in every latent frame.
    Component i is divided by its deviation to the power `whiten`: all of it would make the model spend itself on the
    faint components, none of it would drown them in noise. A block is decoded from its own components and those of the
    eight around it, by least squares, so that the picture does not fall into blocks.
    """

    stride = (4, 8, 8)
    whiten = 0.5

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """basis (768, c) with orthonormal columns, mean (768,), deviation (c,) of the components, decoder (9c, 768)."""
        self.tensors = dict(tensors)
        deviation = tensors["deviation"]
        self.channels = len(deviation)
        scale = deviation**self.whiten
        self.tensors["scale"] = scale * (deviation / scale).square().mean().sqrt()
        digest = hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors)))
        self.id = f"pca{self.channels}-{digest.hexdigest()[:12]}"

    @classmethod
    def fit(cls, videos: Callable[[], Iterable[Tensor]], channels: int) -> PCA:
        """From videos (b, 3, t, h, w) in [-1, 1] of any shapes that divide into blocks, the same on every call."""
        size = 3 * cls.stride[0] * cls.stride[1] * cls.stride[2]
        total, square, count = torch.zeros(size).double(), torch.zeros(size, size).double(), 0
        for video in videos():
            rows = to_blocks(video, cls.stride).movedim(1, -1).reshape(-1, size).double()
            total += rows.sum(0)
            square += rows.T @ rows
            count += len(rows)
        if count == 0:
            raise LatentError("no video to fit the principal components on")
        mean = total / count
        values, vectors = torch.linalg.eigh(square / count - mean[:, None] * mean)
        order = values.argsort(descending=True)[:channels]
        basis = vectors[:, order]
        basis = basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)  # an eigenvector's sign is arbitrary
        deviation = values[order].clamp_min(1e-6).sqrt()
        seen = torch.zeros(9 * len(order), 9 * len(order)).double()
        wanted = torch.zeros(9 * len(order), size).double()
        for video in videos():
            rows = to_blocks(video, cls.stride).movedim(1, -1).double() - mean
            near = around((rows @ basis).movedim(-1, 1)).flatten(0, -2)
            seen += near.T @ near
            wanted += near.T @ rows.reshape(-1, size)
        ridge = 1e-3 * seen.diagonal().mean() * torch.eye(len(seen)).double()
        decoder = torch.linalg.solve(seen + ridge, wanted)
        found = {"basis": basis, "mean": mean, "deviation": deviation, "decoder": decoder}
        return cls({name: tensor.float().contiguous() for name, tensor in found.items()})

    def encode(self, video: Tensor) -> Tensor:
        blocks = to_blocks(video, self.stride).movedim(1, -1) - self.tensors["mean"]
        return ((blocks @ self.tensors["basis"]) / self.tensors["scale"]).movedim(-1, 1).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        near = around(latents * self.tensors["scale"].view(-1, 1, 1, 1))
        return from_blocks((near @ self.tensors["decoder"] + self.tensors["mean"]).movedim(-1, 1), self.stride)

    def to(self, device: torch.device) -> PCA:
        self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return self

    def save(self, folder: Path) -> None:
        tensors = {name: tensor for name, tensor in self.tensors.items() if name != "scale"}
        save_file(tensors, folder / "pca.safetensors")

    @classmethod
    def load(cls, folder: Path) -> PCA:
        return cls(load_file(folder / "pca.safetensors"))


def around(latents: Tensor) -> Tensor:
    """(b, c, t, h, w) to (b, t, h, w, 9c): a latent pixel beside those around it in its frame, edges repeated."""
    height, width = latents.shape[3:]
    padded = F.pad(latents, (1, 1, 1, 1, 0, 0), mode="replicate")
    near = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.cat(near, dim=1).movedim(1, -1)


def make_latents(config: Config, videos: Callable[[], Iterable[Tensor]]) -> Latents:
    """New latents for a run; `videos()` yields what principal components are fitted on. Raises LatentError."""
    kind, _, source = config.latents.partition(":")
    if kind == "pixel":
        return Pixels()
    if kind == "pca":
        return PCA.load(_saved(source, "pca")) if source else PCA.fit(videos, config.latent_channels)
    if kind == "vae":
        return VAELatents.load(_saved(source, "vae"))
    if kind == "diffusers":
        try:
            return HubLatents(source)
        except (OSError, ValueError) as error:
            raise LatentError(f"cannot load the autoencoder {source}: {error}") from error
    raise LatentError(f"no latents called {config.latents!r}: pixel, pca, pca:RUN, vae:RUN or diffusers:FOLDER_OR_REPO")


def latent_stride(config: Config) -> tuple[int, int, int]:
    """Of the latents that `settle_latents` will settle on, before they are fitted. Raises LatentError."""
    if encoding := read_encoding(config.data):
        a, b, c = encoding.stride
        return a, b, c
    return PCA.stride if config.latents == "pca" else make_latents(config, tuple).stride


def load_latents(name: str, folder: Path) -> Latents:
    """The latents that a run saved in `folder`; name: its config's `latents`."""
    kind = name.partition(":")[0]
    kinds: dict[str, Callable[[Path], Latents]] = {
        "pixel": lambda _: Pixels(),
        "pca": PCA.load,
        "vae": VAELatents.load,
        "diffusers": HubLatents.load,
    }
    return kinds[kind](folder)


def _saved(run: str, kind: str) -> Path:
    """The folder of latents that a run, or `clipmill encode`, left in `run`."""
    folder = Path(run) / "latents"
    if not (folder / f"{kind}.safetensors").exists():
        how = "`clipmill train-vae DATASET --out RUN` makes one" if kind == "vae" else "`clipmill train` fits them"
        raise LatentError(f"{run}: no {kind} latents in it; {how}")
    return folder


def settle_latents(config: Config, out: Path, place: Place, index: Index) -> Latents:
    """The latents in `out`, put there on the first call: those that encoded datasets were made with, or new ones.
    Raises LatentError where `out` has others than the datasets."""
    folder, encoding = out / "latents", read_encoding(config.data)
    if place.main and not (folder / "id").exists():
        folder.mkdir(parents=True, exist_ok=True)
        if encoding:
            store = Store(split_weight(config.data[0])[0])
            for name in reversed(store.list("latents")):  # `id` last: with it they are all there
                store.fetch(name, folder / Path(name).name)
        else:
            made = make_latents(config, lambda: fitting_videos(config, index))
            made.save(folder)
            (folder / "id").write_text(made.id)
    barrier()
    latents = load_latents(config.latents, folder)
    if encoding and encoding.latents != latents.id:
        raise LatentError(f"the datasets were encoded with {encoding.latents}, {out} has latents {latents.id}")
    return latents if encoding else latents.to(place.device)


def fitting_videos(config: Config, index: Index) -> Iterator[Tensor]:
    """256 videos (b, 3, t, h, w) in the order of the run, for fitting principal components on."""
    order = make_order(index, config, PCA.stride)
    clips = Clips(index, order, config)
    step, left = 0, 256
    while left:
        for draws in order.step(step):
            if few := draws[:left]:
                yield to_signed(clips[few].video)
            left -= len(few)
        step += 1


def encode_batch(latents: Latents, batch: Batch, device: torch.device) -> Tensor:
    """The batch's latents (b, c, t', h', w') fp32 on `device`, encoded now or taken as they are."""
    video = batch.video.to(device, non_blocking=True)
    return latents.encode(to_signed(video)) if batch.vectors is None else video.float()


def to_blocks(video: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """(b, c, 1 + st*k, h, w) to (b, c*st*sh*sw, 1 + k, h/sh, w/sw), the first frame repeated to fill its block."""
    st, sh, sw = stride
    b, c, t, h, w = video.shape
    if (t - 1) % st or h % sh or w % sw:
        raise LatentError(f"{t} frames of {h}x{w} do not divide into blocks of {st}x{sh}x{sw} after the first frame")
    video = torch.cat([video[:, :, :1].expand(-1, -1, st - 1, -1, -1), video], dim=2)
    video = video.reshape(b, c, (t - 1) // st + 1, st, h // sh, sh, w // sw, sw)
    return video.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * st * sh * sw, (t - 1) // st + 1, h // sh, w // sw)


def from_blocks(blocks: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """The inverse of `to_blocks`; the first frame is the mean of its block."""
    st, sh, sw = stride
    b, n, t, h, w = blocks.shape
    c = n // (st * sh * sw)
    video = blocks.reshape(b, c, st, sh, sw, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    video = video.reshape(b, c, t * st, h * sh, w * sw)
    return torch.cat([video[:, :, :st].mean(2, keepdim=True), video[:, :, st:]], dim=2)


def to_signed(frames: Tensor) -> Tensor:
    """(b, t, h, w, 3) uint8 to (b, 3, t, h, w) fp32 in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_bytes(video: Tensor) -> Tensor:
    """(b, 3, t, h, w) in [-1, 1] to (b, t, h, w, 3) uint8."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1)
