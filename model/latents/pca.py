"""Principal components of small blocks of pixels: latents that are fitted in seconds and need no network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.errors import LatentError
from model.latents.pixels import from_blocks, to_blocks


class PCA:
    """Principal components of blocks of 4 frames x 8 x 8 pixels, fitted on the dataset in two passes; no network.

    The first frame counts as a block of four equal frames, so that a channel means the same in every latent frame.
    Component i is divided by its deviation to the power `whiten`: 1 would spend the model on the faint components, 0
    would let noise cover them. A block is decoded from its own components and those of the eight blocks around it, by
    least squares, which avoids visible block edges.
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
        """Fit on videos (b, 3, t, h, w) in [-1, 1] of any shapes that divide into blocks, the same on every call."""
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
        largest = values.argsort(descending=True)[:channels]
        basis = vectors[:, largest]
        basis = basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)  # an eigenvector's sign is arbitrary
        deviation = values[largest].clamp_min(1e-6).sqrt()
        gram = torch.zeros(9 * len(largest), 9 * len(largest)).double()
        cross = torch.zeros(9 * len(largest), size).double()
        for video in videos():
            rows = to_blocks(video, cls.stride).movedim(1, -1).double() - mean
            near = around((rows @ basis).movedim(-1, 1)).flatten(0, -2)
            gram += near.T @ near
            cross += near.T @ rows.reshape(-1, size)
        ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram)).double()
        decoder = torch.linalg.solve(gram + ridge, cross)
        tensors = {"basis": basis, "mean": mean, "deviation": deviation, "decoder": decoder}
        return cls({name: tensor.float().contiguous() for name, tensor in tensors.items()})

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
    """Return (b, t, h, w, 9c): each latent pixel of (b, c, t, h, w) and its eight neighbours; edges are repeated."""
    height, width = latents.shape[3:]
    padded = F.pad(latents, (1, 1, 1, 1, 0, 0), mode="replicate")
    near = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.cat(near, dim=1).movedim(1, -1)
