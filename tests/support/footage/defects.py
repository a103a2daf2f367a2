"""Defects to put into a good clip, each with a filter that must see it.

Videos are (n, h, w, 3) uint8 RGB and keep their shape; the input is left alone.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np


def letterbox(video: np.ndarray, share: float = 0.25, level: int = 0) -> np.ndarray:
    """The picture shrunk to 1 - `share` of the height, and cut to the frame's width, between two bands of one grey."""
    height, width = video.shape[1:3]
    band = round(height * share / 2)
    out = np.full_like(video, level)
    inner = height - 2 * band
    out[:, band : height - band] = video[:, band : band + inner, :width]
    return out


def pillarbox(video: np.ndarray, share: float = 0.4, level: int = 0) -> np.ndarray:
    """The same with bands to the left and right."""
    return letterbox(video.transpose(0, 2, 1, 3), share, level).transpose(0, 2, 1, 3)


def framed(video: np.ndarray, share: float = 0.6) -> np.ndarray:
    """Picture in picture: the video, `share` of its size, on a drawn backdrop that stands still."""
    height, width = video.shape[1:3]
    y, x = np.mgrid[:height, :width]
    backdrop = (90 + 60 * np.sin(x / 23 + np.sin(y / 31)) + 40 * ((x // 17 + y // 17) % 2)).astype(np.uint8)
    out = np.repeat(np.repeat(backdrop[..., None], 3, axis=2)[None], len(video), axis=0)
    size = (round(width * share), round(height * share))
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    for frame, picture in zip(out, video, strict=True):
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        frame[top : top + size[1], left : left + size[0]] = small
    return out


def underexpose(video: np.ndarray, gain: float = 0.06) -> np.ndarray:
    return (video * gain).astype(np.uint8)


def overexpose(video: np.ndarray, gain: float = 6.0) -> np.ndarray:
    return np.clip(video * gain + 60.0, 0, 255).astype(np.uint8)


def blur(video: np.ndarray, sigma: float = 0.01) -> np.ndarray:
    """Out of focus: a Gaussian of `sigma` picture heights."""
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma * video.shape[1]) for frame in video])


def motion_blur(video: np.ndarray, length: float = 0.05) -> np.ndarray:
    """Dragged sideways over `length` picture heights."""
    return np.stack([cv2.blur(frame, (max(2, round(length * video.shape[1])), 1)) for frame in video])


def freeze(video: np.ndarray, share: float = 1.0) -> np.ndarray:
    """The last `share` of the clip shows one frame."""
    out = video.copy()
    first = round(len(video) * (1 - share))
    out[first:] = video[min(first, len(video) - 1)]
    return out


def slideshow(video: np.ndarray, stills: int = 3) -> np.ndarray:
    """`stills` of the clip's frames, one after the other."""
    shown = (np.arange(len(video)) * stills // len(video)) * len(video) // stills
    return video[shown]


def repeat_frames(video: np.ndarray, times: int = 2) -> np.ndarray:
    """Half (a third ...) of the frame rate, filled up with copies."""
    return video[np.arange(len(video)) // times * times]


def flicker(video: np.ndarray, depth: float = 0.08, seed: int = 0) -> np.ndarray:
    """Each frame's brightness off by a random factor with this standard deviation."""
    gains = 1 + depth * np.random.default_rng(seed).standard_normal(len(video))
    return np.clip(video * gains[:, None, None, None], 0, 255).astype(np.uint8)


def interlace(video: np.ndarray) -> np.ndarray:
    """Odd lines from the next frame: two fields woven into one picture."""
    out = video.copy()
    out[:-1, 1::2] = video[1:, 1::2]
    return out


def blocks(video: np.ndarray, quality: int = 8) -> np.ndarray:
    """Every frame through JPEG of this quality (1 to 100)."""
    out = np.empty_like(video)
    for frame, damaged in zip(video, out, strict=True):
        decoded = cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
        assert decoded is not None
        damaged[:] = decoded
    return out


def grain(video: np.ndarray, sigma: float = 12.0, seed: int = 0) -> np.ndarray:
    """White noise of `sigma` grey levels."""
    noise = np.random.default_rng(seed).standard_normal(video.shape, np.float32) * sigma
    return np.clip(video + noise, 0, 255).astype(np.uint8)


def watermark(video: np.ndarray, text: str = "CH 7", opacity: float = 0.8, corner: int = 1) -> np.ndarray:
    """White `text` in a corner (0 to 3: top left, top right, bottom left, bottom right), a tenth of the height tall."""
    height, width = video.shape[1:3]
    scale, thick = height / 280, max(1, round(height / 120))
    (wide, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    x = round(0.04 * height) if corner % 2 == 0 else width - wide - round(0.04 * height)
    y = tall + round(0.05 * height) if corner < 2 else height - round(0.05 * height)
    mask = np.zeros((height, width), np.uint8)
    cv2.putText(mask, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    alpha = opacity * mask[..., None].astype(np.float32) / 255
    return np.stack([(frame + (255 - frame.astype(np.float32)) * alpha).astype(np.uint8) for frame in video])


def grey(video: np.ndarray) -> np.ndarray:
    return np.stack([cv2.cvtColor(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) for f in video])


# Defect -> the column that must tell it from a good clip, and whether the defect makes it larger.
DEFECTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, bool]] = {
    "letterbox": (letterbox, "borders_area", False),
    "pillarbox": (pillarbox, "borders_area", False),
    "underexposed": (underexpose, "exposure_luma", False),
    "overexposed": (overexpose, "exposure_luma", True),
    "blurred": (blur, "sharpness_detail", False),
    "motion blur": (motion_blur, "sharpness_detail", False),
    "frozen": (freeze, "frozen_share", True),
    "half frozen": (lambda video: freeze(video, 0.5), "frozen_longest", True),
    "slideshow": (slideshow, "frozen_share", True),
    "frames repeated": (repeat_frames, "frozen_repeats", True),
    "flicker": (flicker, "flicker_luma", True),
    "interlaced": (interlace, "interlacing_share", True),
    "blocks": (blocks, "blockiness_grid", True),
    "grain": (grain, "noise_sigma", True),
    "logo": (watermark, "logo_area", True),
    "grey": (grey, "colour_saturation", False),
}
