"""OpenCLIP as the encoder of frames and texts (Radford et al., ICML 2021; https://github.com/mlfoundations/open_clip).

Runs in half precision on a GPU; on a CPU in float32 on one thread.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from filters.encoders.base import EncoderOutput, FrameTags, one_thread
from filters.encoders.imagenet import imagenet_classes
from filters.torchvision_ops import ensure_torchvision

BATCH = 64  # pictures or texts in a forward pass
TOP = 10  # tags per frame
# Functions of torch.nn.init, and methods of tensors, that fill a tensor with random numbers.
RANDOM = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_"})


class OpenClip:
    """Encoder with an OpenCLIP model, on the GPU if there is one.

    `model` is an architecture of OpenCLIP ("ViT-L-14"), "local-dir:FOLDER" or "hf-hub:OWNER/NAME"; `pretrained` is a
    tag ("openai") or a checkpoint file, and ignored for the latter two. A checkpoint file by OpenAI requires an
    architecture whose name ends in "-quickgelu". Raises RuntimeError if the weights are not available; random weights
    are never used.
    """

    def __init__(self, model: str, pretrained: str, device: str | None = None):
        ensure_torchvision()
        import open_clip

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = torch.float16 if self.device.type == "cuda" else torch.float32
        # OpenAI's and some other weights were trained with a different GELU than the architecture's default.
        quick_gelu = open_clip.get_pretrained_cfg(model, pretrained).get("quick_gelu", False)
        hashing = ThreadPoolExecutor(1).submit(_weights_id, model, pretrained)  # takes as long as loading does
        try:
            with _NotInitialized():
                self.model: Any = open_clip.create_model(
                    model,
                    pretrained,
                    precision="fp16" if self.precision == torch.float16 else "fp32",
                    device=self.device,
                    force_quick_gelu=quick_gelu,
                    require_pretrained=True,
                ).eval()
            self.tokenizer: Any = open_clip.get_tokenizer(model)
        except Exception as error:  # hub, file and configuration errors are of many types
            raise RuntimeError(
                f"OpenCLIP {model} with the weights {pretrained!r} could not be loaded ({error}). "
                "Where the hub cannot be reached, give encoder.pretrained the path of a checkpoint file."
            ) from error
        self.id = f"openclip:{model.removeprefix('local-dir:')}:{hashing.result()}"
        settings = self.model.visual.preprocess_cfg
        size = settings["size"]
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.squash = settings.get("resize_mode", "shortest") == "squash"
        self.interpolation = settings.get("interpolation", "bicubic")
        self.mean = torch.tensor(settings["mean"], device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(settings["std"], device=self.device).view(1, 3, 1, 1)
        self.dim = len(self.texts(["a"])[0])
        self.labels = [label for label, _ in imagenet_classes()]
        self.classes: torch.Tensor | None = None  # (d, 1000), computed by the first call of `look`

    @torch.inference_mode()
    def frames(self, rgb: np.ndarray) -> np.ndarray:
        return self._embed(list(rgb)).float().cpu().numpy()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = []
        with one_thread():
            for i in range(0, len(texts), BATCH):
                tokens = self.tokenizer(list(texts[i : i + BATCH])).to(self.device)
                rows.append(F.normalize(self.model.encode_text(tokens).float(), dim=1))
        return torch.cat(rows).cpu().numpy() if rows else np.zeros((0, self.dim), np.float32)

    @torch.inference_mode()
    def look(self, frames: Sequence[np.ndarray]) -> EncoderOutput:
        embedding = self._embed(frames)
        if self.classes is None:
            names = self.texts([f"a photo of a {label}." for label in self.labels])
            self.classes = torch.from_numpy(names).to(self.device).T
        probability, index = (self.model.logit_scale.exp().float() * embedding @ self.classes).softmax(1).topk(TOP)
        tags: list[FrameTags] = [
            [(self.labels[i], p) for i, p in zip(row, chances, strict=True)]
            for row, chances in zip(index.tolist(), probability.tolist(), strict=True)
        ]
        rows = embedding.cpu().numpy()
        return EncoderOutput(rows, rows, tags)

    def _embed(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        """Embed frames of any shapes: (n, d) float32 with rows of unit norm, on the device."""
        rows = [torch.zeros(0, self.dim, device=self.device)]
        order = sorted(range(len(frames)), key=lambda i: frames[i].shape)
        with one_thread():
            for _, group in itertools.groupby((frames[i] for i in order), key=lambda frame: frame.shape):
                rows.append(self._same_shape(list(group), BATCH))
        back = torch.from_numpy(np.argsort(order).astype(np.int64))
        return torch.cat(rows)[back.to(self.device)]

    def _same_shape(self, frames: Sequence[np.ndarray], size: int) -> torch.Tensor:
        """Embed frames of one shape, `size` per forward pass: (n, d) float32 with rows of unit norm.

        `size` is halved after out-of-memory errors. Raises torch.OutOfMemoryError if a single frame does not fit.
        """
        try:
            parts = [frames[i : i + size] for i in range(0, len(frames), size)]
            return torch.cat([self._forward(part, size) for part in parts])
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        torch.cuda.empty_cache()
        return self._same_shape(frames, size // 2)

    def _forward(self, frames: Sequence[np.ndarray], size: int) -> torch.Tensor:
        pictures = self._input(frames)
        if pictures.is_cuda:  # pad to `size`, so that the result does not depend on the number of frames in a pass
            pictures = F.pad(pictures, (0, 0, 0, 0, 0, 0, 0, size - len(frames)))
        return F.normalize(self.model.encode_image(pictures)[: len(frames)].float(), dim=1)

    def _input(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        """Convert n frames (h, w, 3) uint8 to (n, 3, *size), resized and cropped on the device as by OpenCLIP."""
        # Pinned memory, so that the copy to the GPU is asynchronous.
        rgb = torch.empty(len(frames), *frames[0].shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        np.stack(frames, out=rgb.numpy())
        x = rgb.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        if x.is_cuda:  # torch resizes uint8 on a CPU only, where it is faster than float32
            x = x.float()
        height, width = x.shape[2:]
        target = self.size
        if not self.squash:
            scale = max(self.size[0] / height, self.size[1] / width)
            target = (max(self.size[0], int(height * scale)), max(self.size[1], int(width * scale)))
        x = F.interpolate(x, target, mode=self.interpolation, antialias=True, align_corners=False)
        y0, x0 = round((target[0] - self.size[0]) / 2), round((target[1] - self.size[1]) / 2)
        x = x[:, :, y0 : y0 + self.size[0], x0 : x0 + self.size[1]]
        x = x.float().round().clamp(0, 255) / 255  # as eight-bit pictures come out of a resize
        return ((x - self.mean) / self.std).to(self.precision)


class _NotInitialized(TorchFunctionMode):
    """Leaves out random initialization, which takes seconds on a CPU, where all weights are loaded afterwards."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in RANDOM:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _weights_id(model: str, pretrained: str) -> str:
    """Return the tag, or 16 hex digits of a content hash if the weights are local files."""
    folder = Path(model.removeprefix("local-dir:")) if model.startswith("local-dir:") else None
    files = sorted(folder.glob("open_clip*")) if folder else [Path(pretrained)]
    if not all(file.is_file() for file in files):
        return pretrained
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]
