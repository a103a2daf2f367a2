"""Every filter on clips that nothing can be said of: a null with a reason, never an exception, never a silent pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from footage.synthetic import view

from filters import FILTERS, load_filter
from filters.base import ClipView, Filter, score, unknown, why_null
from filters.encoders.base import EncoderOutput
from pipeline.config.recipe import Bounds

DIM = 8
SAYS_NOTHING = {"motion_x", "motion_y", "logo_corner", "interlacing_order", "marks_text"}  # null: none


class Encoder:
    """Gives every frame and text the same vector."""

    id, dim = "openclip:tiny:1", DIM

    def __init__(self, value: float = 1.0) -> None:
        self.row = np.full(DIM, value / math.sqrt(DIM), np.float32)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.tile(self.row, (len(texts), 1))

    frames = texts

    def look(self, frames: Sequence[np.ndarray]) -> EncoderOutput:
        rows = self.texts([""] * len(frames))
        return EncoderOutput(rows, rows, [[("dog", float(rows[0, 0]))]] * len(frames))


def embedded(clip: ClipView, encoder: Encoder) -> ClipView:
    if not clip.frames:
        return clip
    embedding, appearance, tags = encoder.look(clip.frames)
    return replace(clip, embedding=embedding, appearance=appearance, tags=tags, caption="A dog runs.")


def bad_clips() -> dict[str, ClipView]:
    black, noise = np.zeros((30, 90, 160, 3), np.uint8), np.random.default_rng(0).integers(0, 255, (30, 90, 160, 3))
    noise = noise.astype(np.uint8)
    viewed = view(noise)
    return {
        "nothing at all": ClipView("c", 0.0, 0.0, 0.0, 0, 0, box=(0, 0, 0, 0)),
        "one frame": embedded(view(noise[:1]), Encoder()),
        "black": embedded(view(black), Encoder()),
        "white": embedded(view(black + 255), Encoder()),
        "16 pixels wide": embedded(view(noise[:, :, :16].copy()), Encoder()),
        "2 pixels": embedded(view(noise[:, :2, :2].copy()), Encoder()),
        "NaN embedding and flow": embedded(replace(viewed, flow=np.full_like(viewed.flow, np.nan)), Encoder(math.nan)),
        "no time": embedded(replace(viewed, flow_times=np.zeros_like(viewed.flow_times)), Encoder()),
    }


BAD = bad_clips()


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Options of the filters that need files: small random weights, in the formats that LAION published, a picture."""
    from filters.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    import timm
    from torch import nn

    folder: Path = tmp_path_factory.mktemp("heads")
    torch.manual_seed(0)
    torch.save({f"layers.{k}": v for k, v in nn.Linear(DIM, 1).state_dict(prefix="0.").items()}, folder / "head.pth")
    layers = {"linear_1": nn.Linear(DIM, 6), "linear_2": nn.Linear(6, 1)}
    state = {f"{name}.{k}": v for name, layer in layers.items() for k, v in layer.state_dict().items()}
    torch.save({"norm.mean": torch.zeros(1, DIM), "norm.variance": torch.ones(1, DIM), **state}, folder / "nsfw.pth")
    model = timm.create_model("efficientnet_b3", pretrained=False, num_classes=2)
    widths = [nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(0.3), nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)]
    model.classifier = nn.Sequential(*widths)
    torch.save(model.state_dict(), folder / "watermark.pt")
    cv2.imwrite(str(folder / "reference.png"), np.zeros((8, 8, 3), np.uint8))
    return {
        "aesthetics": {"head": str(folder / "head.pth")},
        "nsfw": {"weights": str(folder / "nsfw.pth")},
        "watermark": {"weights": str(folder / "watermark.pt")},
        "concepts": {"prompts": {"dog": "a dog"}},
        "reference": {"folder": str(folder)},
    }


def construct(name: str, heads: dict[str, dict[str, Any]], encoder: Encoder | None = None) -> Filter:
    return load_filter(name, heads.get(name), encoder or Encoder())


@pytest.mark.parametrize("name", FILTERS)
def test_what_cannot_be_scored_is_null_for_a_reason(name: str, heads: dict[str, dict[str, Any]]) -> None:
    clip_filter = construct(name, heads)
    for what, answer in zip(BAD, score(clip_filter, list(BAD.values())), strict=True):
        why = answer.pop(why_null(name), None)
        assert set(answer) == set(clip_filter.columns), what
        missing = [column for column, value in answer.items() if value is None and column not in SAYS_NOTHING]
        assert bool(missing) == bool(why), (what, answer, why)
        assert all(math.isfinite(value) for value in answer.values() if isinstance(value, float)), what
        assert not any(Bounds(min=-1e9).admit(answer[column]) for column in missing)
    assert set(score(clip_filter, [BAD["nothing at all"]])[0].values()) == {
        None,
        clip_filter.score(BAD["nothing at all"])[why_null(name)],
    }


def test_a_model_that_gives_nan_gives_no_score(heads: dict[str, dict[str, Any]]) -> None:
    clip = embedded(view(np.random.default_rng(1).integers(0, 255, (30, 270, 480, 3)).astype(np.uint8)), Encoder())
    nan = SimpleNamespace(
        run=lambda _, given: [np.full((1, 9, 9, 4), np.nan), np.full((1, 9, 9, 4), np.nan)],
        get_inputs=lambda: [SimpleNamespace(name="x")],
    )
    text, faces, safety = construct("text", heads), construct("faces", heads), construct("safety", heads)
    marks, objects = construct("marks", heads), construct("objects", heads)
    text.detector.session = marks.detector.session = faces.detector.propose = objects.detector.session = nan
    safety.classifier = SimpleNamespace(classify=lambda _: SimpleNamespace(nsfw=math.nan))
    watermark = construct("watermark", heads)
    with torch.no_grad():
        next(watermark.model.parameters()).fill_(math.nan)
    deaf = Encoder(math.nan)
    for clip_filter in (
        text,
        marks,
        faces,
        objects,
        safety,
        watermark,
        construct("concepts", heads, deaf),
        construct("similarity", heads, deaf),
    ):
        (answer,) = score(clip_filter, [clip])
        assert answer[why_null(clip_filter.name)] == "the result is not a finite number", clip_filter.name
        assert not any(isinstance(value, float) for value in answer.values()), answer


def test_a_reason_is_a_column_of_its_own(heads: dict[str, dict[str, Any]]) -> None:
    assert unknown(construct("logo", heads), "why") == {"logo_area": None, "logo_corner": None, "logo_null": "why"}
