"""The samples of an evaluation to look at: a film of all, and a page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.media.clip_reader import write_mp4

HEIGHT = 192  # of a clip as shown, pixels


@dataclass(frozen=True)
class Pair:
    """A sampled clip and the real one with its caption, after a round trip: (t, h, w, 3) uint8 each."""

    caption: str
    sampled: np.ndarray
    real: np.ndarray
    scores: Mapping[str, Mapping[str, float]]  # of "sampled" and of "real"


def grid(pairs: Sequence[Pair]) -> np.ndarray:
    """(t, h, w, 3) uint8: samples above the real clips, as many frames as the shortest has."""
    frames = min(len(pair.sampled) for pair in pairs)
    columns = [np.concatenate([_enlarged(v[:frames]) for v in (pair.sampled, pair.real)], axis=1) for pair in pairs]
    return np.concatenate(columns, axis=2)


def page(result: Mapping[str, float], pairs: Sequence[Pair], fps: float, split: str) -> str:
    """HTML with the scores and every pair of clips of a split inside it."""
    names = list(pairs[0].scores["sampled"])
    rows = "".join(
        f"<tr><th>{videos}</th>" + "".join(f"<td>{result[f'{videos}_{name}']:.4f}</td>" for name in names) + "</tr>"
        for videos in ("sampled", "real")
    )
    clips = "".join(
        f"<figure>{_video(pair.sampled, fps)}{_video(pair.real, fps)}<figcaption>{html.escape(pair.caption)}"
        f"<small>{_line(pair.scores['sampled'])}</small></figcaption></figure>"
        for pair in pairs
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Samples</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}
body {{ max-width: 75rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .8rem; text-align: right }} th {{ font-weight: 600 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.5rem; margin-top: 1.5rem }}
figure {{ margin: 0 }} video {{ width: 49%; margin-right: 1% }} small {{ display: block; opacity: .7 }}
</style>
<h1>Samples</h1>
<p>Loss on {result["clips"]:.0f} clips of the split {split}: {result["loss"]:.4f}. Left the sample, right the
real clip with the same caption, after a round trip through the latents.</p>
<p>motion: optical flow between frames, in picture heights. warp and flicker: differences between frames that
motion does not explain, where the picture moves and where it stands; lower is steadier. same: similarity of
neighbouring frames. text and others: similarity to the own caption and to those of the other clips. Compare with the
row of real clips.</p>
<table><tr><th></th>{"".join(f"<th>{name}</th>" for name in names)}</tr>{rows}</table>
<main>{clips}</main>
</html>
"""


def _video(frames: np.ndarray, fps: float) -> str:
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        write_mp4(file.name, _enlarged(frames), fps)
        data = base64.b64encode(Path(file.name).read_bytes()).decode()
    return f'<video autoplay loop muted playsinline src="data:video/mp4;base64,{data}"></video>'


def _enlarged(frames: np.ndarray) -> np.ndarray:
    size = (round(frames.shape[2] * HEIGHT / frames.shape[1] / 2) * 2, HEIGHT)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in frames])


def _line(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
