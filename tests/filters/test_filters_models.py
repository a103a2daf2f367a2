"""Filters with models of their own: aesthetics, safety, concepts, watermark."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from repository import ROOT, SHARED

from filters import load_filter
from filters.base import ClipView
from filters.content.aesthetics import load_head, rate
from filters.encoders.base import Declared, load_encoder
from pipeline.config.recipe import RecipeError, load_recipe
from pipeline.state.fingerprints import check

WEIGHTS = SHARED / "weights"
V2 = "sac+logos+ava1-l14-linearMSE.pth"
HEADS = {V2: 768, "sa_0_4_vit_l_14_linear.pth": 768, "sa_0_4_vit_b_32_linear.pth": 512}
CLIP = Declared("openclip:ViT-L-14:openai", 768)


def unit_rows(count: int, dim: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clip(**tracks: object) -> ClipView:
    return ClipView("c", 0, 2, 25, 640, 360, **tracks)  # type: ignore[arg-type]


@pytest.fixture
def small_head(tmp_path: Path) -> Path:
    """A head of two layers, in the format of LAION's V2."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))
    torch.save({f"layers.{k}": v for k, v in layers.state_dict().items()}, tmp_path / "head.pth")
    return tmp_path / "head.pth"


def test_aesthetics_are_the_layers_of_the_head(small_head: Path) -> None:
    state = torch.load(small_head, weights_only=True)
    rows = unit_rows(3, 8)
    hidden = torch.from_numpy(rows) @ state["layers.0.weight"].T + state["layers.0.bias"]
    expected = (hidden @ state["layers.2.weight"].T + state["layers.2.bias"])[:, 0].numpy()
    aesthetics = load_filter("aesthetics", {"head": str(small_head)}, Declared("openclip:tiny:1", 8))
    scores = aesthetics.score(clip(embedding=rows))
    assert scores["aesthetics_min"] == pytest.approx(expected.min(), abs=1e-5)
    assert scores["aesthetics_mean"] == pytest.approx(expected.mean(), abs=1e-5)
    assert scores["aesthetics_median"] == pytest.approx(np.median(expected), abs=1e-5)
    assert aesthetics.score(clip(embedding=unit_rows(2, 7)))["aesthetics_null"] == "no usable embedding"


@pytest.mark.parametrize("name", HEADS)
def test_laions_heads_load_and_rate_on_their_scale(name: str) -> None:
    if not (WEIGHTS / name).is_file():
        pytest.skip("LAION's heads are not here")
    layers = load_head(str(WEIGHTS / name))
    assert layers[0][0].shape[1] == HEADS[name]
    ratings = rate(layers, unit_rows(200, HEADS[name]))
    assert ratings.shape == (200,)
    assert 1 < ratings.mean() < 10  # random directions are no pictures, but stay on the scale


def test_aesthetics_want_the_encoder_that_the_head_was_trained_on(small_head: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ViT-L-14"):
        load_filter("aesthetics", {"head": str(small_head)}, Declared("conse:1", 384))
    with pytest.raises(ValueError, match="8 dimensions"):
        load_filter("aesthetics", {"head": str(small_head)}, CLIP)
    with pytest.raises(ValueError, match="no file"):
        load_filter("aesthetics", {"head": str(tmp_path / "missing.pth")}, CLIP)
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ValueError, match="holds no weights"):
        load_filter("aesthetics", {"head": str(tmp_path / "text.pth")}, CLIP)
    with pytest.raises(RecipeError, match="aesthetics reads OpenCLIP embeddings"):
        check(load_recipe("embedded", [f"filters.aesthetics.head={small_head}"]))
    torch.save({"a.weight": torch.zeros(3, 8), "a.bias": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not an aesthetics head"):
        load_filter("aesthetics", {"head": str(tmp_path / "other.pth")}, CLIP)


def test_the_standard_recipe_is_the_embedded_one_with_aesthetics() -> None:
    embedded, standard = load_recipe("embedded"), load_recipe("standard")
    assert [name for name in standard.filters if name != "aesthetics"] == list(embedded.filters)
    assert standard.encoder.name == "openclip"
    bounds = dict(standard.select.thresholds)
    assert bounds.pop("aesthetics_mean").min == 4.0
    assert bounds == embedded.select.thresholds


def test_harmless_footage_is_safe_in_any_shape(sample_videos: dict[str, Path]) -> None:
    frames = [f.to_ndarray(format="rgb24") for f in av.open(str(sample_videos["bikes"])).decode(video=0)][::60]
    odd = [np.zeros((1, 1, 3), np.uint8), np.zeros((9, 400, 3), np.uint8)]
    safe, shapes = map(load_filter("safety").score, [clip(frames=frames), clip(frames=odd)])
    assert 0 <= safe["safety_nsfw_mean"] <= safe["safety_nsfw"] < 0.5
    assert 0 <= shapes["safety_nsfw"] <= 1


def test_faces_are_counted(sample_videos: dict[str, Path]) -> None:
    frames = [f.to_ndarray(format="rgb24") for f in av.open(str(sample_videos["bikes"])).decode(video=0)]
    man, wall, shape = frames[36], frames[220], frames[36].shape
    person = man[:, 270:470]
    crowd = np.ascontiguousarray(np.hstack([person, person[:, ::-1], person]))
    faces = load_filter("faces")
    single, none, three = map(
        faces.score,
        [
            clip(frames=[man, wall]),
            clip(frames=[wall, np.zeros(shape, np.uint8)]),
            clip(frames=[crowd]),
        ],
    )
    assert single["faces_count"] == 1
    assert 0.001 < single["faces_area"] < 0.05
    assert none == {"faces_count": 0, "faces_area": 0}
    assert three["faces_count"] == 3


def test_objects_are_named_with_their_number(sample_videos: dict[str, Path]) -> None:
    frames = [f.to_ndarray(format="rgb24") for f in av.open(str(sample_videos["bikes"])).decode(video=0)]
    walker, street, cyclists, black = frames[190], frames[160], frames[130], np.zeros_like(frames[0])

    def seen(*chosen: np.ndarray) -> dict[str, tuple[float, float]]:
        columns = ("objects_labels", "objects_probabilities", "objects_counts")
        labels, chances, counts = (load_filter("objects").score(clip(frames=chosen))[name] for name in columns)
        assert list(chances) == sorted(chances, reverse=True)
        return dict(zip(labels, zip(chances, counts, strict=True), strict=True))

    assert seen(walker)["person"] == (pytest.approx(0.83, abs=0.05), 1)
    assert seen(walker, black)["person"] == (pytest.approx(0.83 / 2, abs=0.03), 1)
    assert next(iter(seen(street))) == "car"
    assert seen(street)["car"][1] == 3
    assert seen(cyclists)["person"][1] == 3
    assert seen(cyclists)["bicycle"][0] > 0.5
    assert seen(black, black) == {}


def test_concepts_find_what_they_name(sample_videos: dict[str, Path]) -> None:
    frames = [f.to_ndarray(format="rgb24") for f in av.open(str(sample_videos["bikes"])).decode(video=0)]
    encoder = load_encoder("conse")
    taxi, wall = (encoder.look([frames[i] for i in chosen]).embedding for chosen in ((60, 68, 74), (200, 220, 235)))
    concepts = load_filter(
        "concepts", {"prompts": {"car": "a car or taxi in traffic", "cat": "a cat on a sofa"}}, encoder
    )
    assert list(concepts.columns) == ["concepts_car", "concepts_cat"]
    cars, bicycle = map(concepts.score, [clip(embedding=taxi), clip(embedding=wall)])
    assert cars["concepts_car"] > 0.1
    assert cars["concepts_car"] > bicycle["concepts_car"] + 0.1
    assert cars["concepts_cat"] < cars["concepts_car"] - 0.1
    assert load_filter("concepts", {}, encoder).score(clip(embedding=taxi)) == {}
    with pytest.raises(ValueError, match="names a column"):
        load_filter("concepts", {"prompts": {"Talking Head": "x"}}, encoder)


def test_the_watermark_model_loads_in_laions_format(tmp_path: Path) -> None:
    from filters.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    import timm
    from torch import nn

    torch.manual_seed(0)
    model = timm.create_model("efficientnet_b3", pretrained=False, num_classes=2)
    head = [nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(0.3), nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)]
    model.classifier = nn.Sequential(*head)
    model.classifier[5].bias.data = torch.tensor([50.0, 0.0])  # everything is a watermark
    torch.save(model.state_dict(), tmp_path / "watermark.pt")
    watermark = load_filter("watermark", {"weights": str(tmp_path / "watermark.pt")})
    frames = [np.zeros((90, 160, 3), np.uint8)]
    marked = watermark.score(clip(frames=frames))
    assert marked["watermark_probability"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no file"):
        load_filter("watermark", {"weights": str(tmp_path / "missing.pt")})


def test_the_nsfw_detector_is_standardised_layers_with_relu_and_a_logistic_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mean, variance = torch.randn(768) * 0.01, torch.rand(768) * 0.001 + 0.0005
    widths = ((768, 64), (64, 512), (512, 256), (256, 1))  # LAION's for ViT-L/14
    layers = {f"linear_{i + 1}": torch.nn.Linear(a, b) for i, (a, b) in enumerate(widths)}
    state = {f"{name}.{k}": v for name, layer in layers.items() for k, v in layer.state_dict().items()}
    torch.save({"norm.mean": mean, "norm.variance": variance, **state}, tmp_path / "nsfw.pth")
    rows = unit_rows(5, 768)
    x = (torch.from_numpy(rows) - mean) / variance.sqrt()
    *inner, last = layers.values()
    for layer in inner:
        x = layer(x).relu()
    expected = last(x).sigmoid()[:, 0].detach().numpy()
    nsfw = load_filter("nsfw", {"weights": str(tmp_path / "nsfw.pth")}, CLIP)
    scores = nsfw.score(clip(embedding=rows))
    assert scores == pytest.approx({"nsfw_max": expected.max(), "nsfw_mean": expected.mean()}, abs=1e-5)
    with pytest.raises(ValueError, match="reads 768 dimensions"):
        load_filter("nsfw", {"weights": str(tmp_path / "nsfw.pth")}, Declared("openclip:ViT-B-32:openai", 512))
    with pytest.raises(ValueError, match="reads OpenCLIP embeddings"):
        load_filter("nsfw", {"weights": str(tmp_path / "nsfw.pth")}, Declared("conse:1", 384))
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="not LAION's NSFW detector"):
        load_filter("nsfw", {"weights": str(tmp_path / "bare.pth")}, CLIP)


def test_networks_of_onnx_are_run_without_reports_to_their_maker(tmp_path):
    code = "from filters.content.detector import Detector; Detector()"
    environment = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith(("ORT_", "XDG_"))}
    subprocess.run([sys.executable, "-c", code], env=environment | {"HOME": str(tmp_path)}, check=True, cwd=ROOT)
    assert list(tmp_path.rglob("*")) == []
