"""What a video is measured by: how it moves, whether it stays the same thing, whether it shows its caption.

None of these numbers means much alone: `evaluate` puts those of real footage beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from filters.encoders.base import TextVideoEncoder
from model.errors import MeasureError

I3D_FEATURES = 400
I3D_FRAMES = 10  # the network needs at least these


def consistency(frames: np.ndarray) -> dict[str, float]:
    """Of a video (t, h, w, 3) uint8. motion: mean optical flow between frames, picture heights a frame (a frozen video
    has none). warp: mean absolute difference, 0 to 1, between a frame and its predecessor moved along the flow, where
    the flow there and back agrees (Lai et al., ECCV 2018). flicker: mean absolute difference, 0 to 1, where nothing
    moves."""
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    height, width = grey[0].shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    motion, warp, flicker = [], [], []
    for i in range(1, len(frames)):
        back = search.calc(grey[i], grey[i - 1], None)
        forth = search.calc(grey[i - 1], grey[i], None)
        at_x, at_y = x + back[..., 0], y + back[..., 1]
        moved = cv2.remap(frames[i - 1], at_x, at_y, cv2.INTER_LINEAR)
        returned = back + cv2.remap(forth, at_x, at_y, cv2.INTER_LINEAR)
        inside = (at_x >= 0) & (at_x <= width - 1) & (at_y >= 0) & (at_y <= height - 1)
        visible = inside & (np.linalg.norm(returned, axis=2) < 1)
        speed = np.linalg.norm(back, axis=2)
        motion.append(float(speed.mean()) / height)
        difference = np.abs(frames[i].astype(np.float32) - moved).mean(2) / 255
        warp.append(float(difference[visible].mean()) if visible.any() else 1.0)
        plain = np.abs(frames[i].astype(np.float32) - frames[i - 1]).mean(2) / 255
        still = speed < 0.1
        flicker.append(float(plain[still].mean()) if still.any() else 0.0)
    return {"motion": float(np.mean(motion)), "warp": float(np.mean(warp)), "flicker": float(np.mean(flicker))}


def look(frames: np.ndarray, captions: Sequence[str], encoder: TextVideoEncoder) -> dict[str, float]:
    """Of a video (t, h, w, 3) uint8, by the encoder that scored the dataset. same: mean cosine of what neighbouring
    frames look like. text: mean cosine of the frames with the first of `captions`, their own. others: with the rest of
    them, which is what `text` is worth where the caption made no difference (nan without others)."""
    output = encoder.look(list(frames))
    cosines = output.embedding @ encoder.texts(list(captions)).T  # (t, captions)
    same = (output.appearance[1:] * output.appearance[:-1]).sum(1)
    others = float(cosines[:, 1:].mean()) if len(captions) > 1 else float("nan")
    return {"same": float(same.mean()), "text": float(cosines[:, 0].mean()), "others": others}


class I3D:
    """The Inflated 3D network of Carreira and Zisserman (CVPR 2017), trained on Kinetics, from a TorchScript file with
    the interface of the one that StyleGAN-V made usual: called with (1, 3, t, h, w) of 0 to 255 and the flags rescale,
    resize and return_features, it gives (1, 400)."""

    def __init__(self, file: Path, device: torch.device) -> None:
        """Raises MeasureError when the file is not such a network."""
        try:
            self.network = torch.jit.load(str(file), map_location=device).eval()
            self.device = device
            width = self(np.zeros((I3D_FRAMES, 64, 64, 3), np.uint8)).shape[-1]
        except (RuntimeError, ValueError, OSError) as error:
            raise MeasureError(f"{file} is not the I3D network as TorchScript: {str(error).splitlines()[0]}") from error
        if width != I3D_FEATURES:
            raise MeasureError(f"{file} gives {width} features, the I3D network {I3D_FEATURES}")

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> Tensor:
        """Features (400,) of a video (t, h, w, 3) uint8; a short one is continued back and forth."""
        positions = np.arange(max(I3D_FRAMES, len(frames)))
        turns = np.abs((positions + len(frames) - 1) % max(1, 2 * len(frames) - 2) - (len(frames) - 1))
        video = torch.from_numpy(frames[turns]).permute(3, 0, 1, 2)[None].float().to(self.device)
        return self.network(video, rescale=True, resize=True, return_features=True)[0].double().cpu()


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of Gaussians fitted to features (n, d) and (m, d) fp64 (Dowson and Landau, 1982): that of I3D
    features is the Frechet video distance (Unterthiner et al., 2018)."""
    root = _root(a.T.cov())
    cross = torch.linalg.eigvalsh(root @ b.T.cov() @ root).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * cross)


def _root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
