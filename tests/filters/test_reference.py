"""Reference pictures: clips are scored by the picture that they resemble most; other pictures are other options."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from light_recipe import GOLDEN_OPTIONS

from filters import load_filter
from filters.base import ClipView, why_null
from filters.content.reference import pictures_digest
from filters.encoders.base import EncoderOutput
from pipeline.build import build
from pipeline.config.recipe import RecipeError, load_recipe
from pipeline.passes.embed import with_reference_digest
from pipeline.state.fingerprints import check, embed_fingerprint

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "yellow": (255, 255, 0)}  # RGB


class ColourEncoder:
    """The appearance of a picture is the direction of its mean colour."""

    id = "colours:1"
    dim = 3

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        raise NotImplementedError

    def frames(self, rgb: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def look(self, frames: Sequence[np.ndarray]) -> EncoderOutput:
        means = np.stack([frame.reshape(-1, 3).mean(axis=0) for frame in frames]).astype(np.float32)
        rows = means / np.linalg.norm(means, axis=1, keepdims=True)
        return EncoderOutput(rows, rows, [[] for _ in frames])


def pictures(folder: Path, *names: str) -> str:
    folder.mkdir(exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / f"{name}.png"), np.full((8, 8, 3), COLOURS[name][::-1], np.uint8))
    return str(folder)


def clip(*colours: str) -> ClipView:
    frames = [np.full((4, 4, 3), COLOURS[name], np.uint8) for name in colours]
    empty = ClipView("c", 0, 2, 25, 640, 360, frames=frames)
    return replace(empty, appearance=ColourEncoder().look(frames).appearance) if frames else empty


def test_each_frame_counts_by_the_picture_that_it_resembles_most(tmp_path: Path) -> None:
    scorer = load_filter("reference", {"folder": pictures(tmp_path / "a", "red", "green")}, ColourEncoder())
    half = 2**-0.5  # cosine of yellow with red, and with green
    for colours, mean, most in (
        (("red", "green"), 1.0, 1.0),
        (("yellow", "yellow"), half, half),
        (("red", "yellow"), (1 + half) / 2, 1),
    ):
        assert scorer.score(clip(*colours)) == pytest.approx({"reference_mean": mean, "reference_max": most}, abs=1e-5)
    unknown = scorer.score(clip())
    assert (unknown["reference_mean"], unknown[why_null("reference")]) == (None, "no usable embedding")


def test_other_pictures_are_other_options_and_the_same_under_other_names_are_not(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", "red")
    options = (f"filters.reference.folder={folder}", "select.thresholds.reference_mean.min=0.5")
    recipe = with_reference_digest(load_recipe("embedded", options))
    check(recipe)
    (tmp_path / "a" / "red.png").rename(tmp_path / "a" / "other.png")
    assert with_reference_digest(load_recipe("embedded", options)) == recipe
    pictures(tmp_path / "a", "green")
    changed = with_reference_digest(load_recipe("embedded", options))
    assert embed_fingerprint(changed) != embed_fingerprint(recipe)
    stale = load_filter("reference", recipe.filters["reference"], ColourEncoder())
    with pytest.raises(ValueError, match="other pictures here"):
        stale.score(clip("red"))


def test_a_folder_without_pictures_stops_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RecipeError, match="no folder with pictures"):
            with_reference_digest(load_recipe("embedded", [f"filters.reference.folder={folder}"]))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert len(pictures_digest(str(tmp_path))) == 16
    with pytest.raises(ValueError, match=r"broken\.jpg is not a picture"):
        load_filter("reference", {"folder": str(tmp_path)}, ColourEncoder()).score(clip("red"))


def test_without_a_folder_there_are_no_columns() -> None:
    scorer = load_filter("reference", {}, ColourEncoder())
    assert scorer.columns == {}
    assert scorer.score(clip("red")) == {}


def test_a_build_selects_the_clips_that_look_like_the_pictures(
    golden_dataset: Path, sample_videos: dict[str, Path], tmp_path: Path
) -> None:
    dataset, folder = shutil.copytree(golden_dataset, tmp_path / "dataset"), tmp_path / "like"
    folder.mkdir()
    with av.open(str(sample_videos["bigbuckbunny"])) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="bgr24")
    cv2.imwrite(str(folder / "rabbit.png"), frame)
    options = (*GOLDEN_OPTIONS, f"filters.reference.folder={folder}", "select.thresholds.reference_max.min=0.3")
    sources = [str(sample_videos[name]) for name in ("bikes", "bigbuckbunny")]
    built = build(sources, str(dataset), load_recipe("embedded", options), engine="local")
    clips = [row for row in built.clips.to_pylist() if "duplicates" not in row["rejected_by"]]
    for row in clips:
        assert row["keep"] == ("bigbuckbunny" in row["source_uri"]), (row["source_uri"], row["reference_max"])
        assert row["keep"] or row["rejected_by"] == ["reference_max"]
    assert {row["keep"] for row in clips} == {True, False}
