"""Clips of known answer, made from real frames: a camera that moves in a known way, objects pasted on, defects added.

What the filters are tested and calibrated on. Videos are (n, h, w, 3) uint8 RGB; distances are picture heights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from filters.base import ClipView
from filters.movement.flow import coarse_flow
from filters.picture.interlacing import field_columns, field_misfits, line_phases

Path = Callable[[float], tuple[float, float]]  # seconds -> x, y in picture heights from the picture's centre

MARGIN = 0.62  # share of the frame's sides that the camera sees, so that it can move without leaving the frame


def camera_move(
    frame: np.ndarray,
    seconds: float = 3.0,
    fps: float = 24.0,
    height: int = 180,
    pan: Callable[[float], float] = lambda t: 0.0,
    tilt: Callable[[float], float] = lambda t: 0.0,
    zoom: Callable[[float], float] = lambda t: 1.0,
    roll: Callable[[float], float] = lambda t: 0.0,
) -> np.ndarray:
    """A camera over one still `frame` (H, W, 3): (n, height, w, 3) uint8 with the frame's aspect ratio.

    `pan` and `tilt` say where the camera looks at a time (picture heights right and down of the middle), `zoom` how
    much larger the content is, `roll` by how many radians the camera is turned clockwise. Content beyond the frame's
    edge is mirrored.
    """
    rows, columns = frame.shape[:2]
    width = 2 * round(columns * height / rows / 2)
    out = np.empty((round(seconds * fps), height, width, 3), np.uint8)
    for k in range(len(out)):
        t = k / fps
        scale, cos, sin = MARGIN * rows / height / zoom(t), np.cos(roll(t)), np.sin(roll(t))
        matrix = scale * np.array([[cos, -sin], [sin, cos]])
        look = np.array([columns / 2 + pan(t) * MARGIN * rows, rows / 2 + tilt(t) * MARGIN * rows])
        affine = np.column_stack([matrix, look - matrix @ (width / 2, height / 2)])
        out[k] = _sample(frame, affine, (width, height), scale)
    return out


def dolly(
    background: np.ndarray,
    things: Sequence[np.ndarray],
    speed: float,
    seconds: float = 2.0,
    fps: float = 24.0,
    seed: int = 0,
) -> np.ndarray:
    """A camera that travels forward (back where `speed`, in picture heights per second, is negative) through 14 pieces
    of `things`, 1.3 to 2.6 picture heights away, before a `background` 3 away: (n, 180, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    height, rows, columns = 180, *background.shape[:2]
    width = 2 * round(columns * height / rows / 2)
    pieces = []
    for k, away in enumerate(np.sort(rng.uniform(1.3, 2.6, 14))[::-1]):
        tall, wide = things[k % len(things)].shape[:2]
        y, x = rng.integers(tall // 2), rng.integers(wide // 2)
        piece = things[k % len(things)][y : y + tall // 2, x : x + wide // 2]
        mask: np.ndarray = np.ones(piece.shape[:2], np.float32)
        if rng.random() < 0.5:
            axes = piece.shape[1] // 2, piece.shape[0] // 2
            mask = cv2.ellipse(0 * mask, axes, (axes[0] - 2, axes[1] - 2), 0, 0, 360, (1.0,), -1)
        place = np.array([rng.uniform(-0.5, 0.5) * width / height, rng.uniform(-0.5, 0.5)]) * away
        pieces.append((float(away), place, rng.uniform(0.25, 0.6) * away, piece, mask))
    out = np.empty((round(seconds * fps), height, width, 3), np.uint8)
    for k in range(len(out)):
        gone = (k / fps - seconds / 2) * speed
        scale = 0.55 * rows / height * (3 - gone) / 3
        affine = np.array([[scale, 0, (columns - scale * width) / 2], [0, scale, (rows - scale * height) / 2]])
        out[k] = _sample(background, affine, (width, height), scale)
        for away, place, tall, piece, mask in pieces:
            near = away - gone
            scale = piece.shape[0] * near / (tall * height)  # input pixels an output pixel
            centre = np.array([width, height]) / 2 + place / near * height
            left, top = np.array(piece.shape[1::-1]) / 2 - scale * centre
            affine = np.array([[scale, 0, left], [0, scale, top]])
            alpha = cv2.warpAffine(mask, affine, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)[
                ..., None
            ]
            view_of_piece = _sample(piece, affine, (width, height), scale)
            out[k] = (out[k] * (1 - alpha) + view_of_piece * alpha + 0.5).astype(np.uint8)
    return out


def _sample(frame: np.ndarray, affine: np.ndarray, size: tuple[int, int], scale: float) -> np.ndarray:
    """`frame` seen through `affine` (output to input pixels), smoothed first where it is shrunk."""
    if scale > 1.2:
        frame = cv2.GaussianBlur(frame, (0, 0), 0.45 * scale)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(frame, affine, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def paste(video: np.ndarray, patch: np.ndarray, path: Path, fps: float = 24.0, size: float = 0.3) -> np.ndarray:
    """`video` with an ellipse cut from `patch` (h, w, 3), `size` picture heights tall, moving along `path`."""
    height, width = video.shape[1:3]
    tall = max(4, round(size * height))
    wide = max(4, round(tall * patch.shape[1] / patch.shape[0]))
    sprite = cv2.resize(patch, (wide, tall), interpolation=cv2.INTER_AREA).astype(np.float32)
    mask = np.zeros((tall, wide), np.float32)
    cv2.ellipse(mask, (wide // 2, tall // 2), (wide // 2 - 1, tall // 2 - 1), 0, 0, 360, 1.0, -1, cv2.LINE_AA)
    out = video.copy()
    for k in range(len(out)):
        x, y = path(k / fps)
        shift = np.array([[1, 0, width / 2 + x * height - wide / 2], [0, 1, height / 2 + y * height - tall / 2]])
        alpha = cv2.warpAffine(mask, shift, (width, height))[..., None]
        moved = cv2.warpAffine(sprite, shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
        out[k] = (out[k] * (1 - alpha) + moved * alpha + 0.5).astype(np.uint8)
    return out


def view(video: np.ndarray, fps: float = 24.0, proxy: int = 90, luma_fps: float = 8.0) -> ClipView:
    """The ClipView of a synthetic video that fills its frame: luma with its short side `proxy` pixels at `luma_fps`,
    the flow between its neighbours, 16 frames in a row from the middle and how their fields fit, two patches of
    detail, four colour frames."""
    count, height, width = video.shape[:3]
    scale = min(1.0, proxy / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video]
    small = [cv2.resize(g, size, interpolation=cv2.INTER_AREA) for g in grey]
    kept = range(0, count, max(1, round(fps / luma_fps)))
    luma, times = [small[k] for k in kept], np.array(kept) / fps
    flow = [coarse_flow(a, b, dt) for a, b, dt in zip(luma[:-1], luma[1:], np.diff(times), strict=True)]
    first = max(0, min(count // 2 - 8, count - 16))
    fielded = [field_columns(g) for g in grey[first : first + 12]]
    triples = list(zip(fielded, fielded[1:], fielded[2:], strict=False))
    fits = [field_misfits(*triple) for triple in triples]
    picks = np.linspace(0, count - 1, min(4, count)).round().astype(int)
    side = min(256, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return ClipView(
        clip_id="synthetic",
        start=0.0,
        end=count / fps,
        fps=fps,
        width=width,
        height=height,
        luma=np.stack(luma),
        luma_times=times,
        flow=np.stack(flow) if flow else np.zeros((0, 0, 0, 2), np.float32),
        flow_times=np.stack([times[:-1], times[1:]], axis=1) if flow else np.zeros((0, 2)),
        burst=np.stack(small[first : first + 16]),
        fields=np.array(fits).reshape(-1, 2),
        line_phases=np.array([line_phases(*triple) for triple in triples]),
        detail=[grey[k][top : top + side, left : left + side] for k in picks[1:3]],
        frames=[video[k] for k in picks],
        frame_times=times[0] + picks / fps,
    )
