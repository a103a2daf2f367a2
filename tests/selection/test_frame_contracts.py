"""Frame contracts: every clip has the model's rate and a count of frames that its trainers use whole."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import packing_rows as rows
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from footage import videos
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.recipe import FrameOptions, PackOptions, Recipe, RecipeError, SelectOptions, load_recipe
from pipeline.config.video_models import MODELS, resolved, video_model
from pipeline.media.video import Video
from pipeline.pack.clip_encoder import ClipEncoder
from pipeline.pack.shards import index_path, plan_shards, stored_clips, write_shard
from pipeline.selection.frame_contracts import packed_frames
from pipeline.selection.select import select
from pipeline.state.fingerprints import check
from pipeline.storage.store import Store

RATES = {"film": 24000 / 1001, "pal": 25, "ntsc": 30000 / 1001, "fast": 60}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Clips of sources with five rates and three time bases, one of them variable, some too short for some models."""
    folder = tmp_path_factory.mktemp("sources")
    clip_rows: list[dict[str, Any]] = []
    for seed, (name, fps) in enumerate(RATES.items()):
        moving = videos.pan(videos.texture(seed, 96, 160), 100, 2)
        ending = "avi" if name == "pal" else "mp4"  # AVI's time base is one frame
        path = videos.write_video(folder / f"{name}.{ending}", moving, fps=fps, g="20", preset="ultrafast", bf="0")
        clip_rows += rows.rows_of(path, [(0, 97), (0, 100), (3, 30), (50, 56)])
    times = np.cumsum(np.random.default_rng(5).uniform(0.01, 0.09, 90)).round(3).tolist()
    moving = videos.pan(videos.texture(9, 96, 160), 90, 2)
    path = videos.write_video(folder / "phone.mkv", moving, times=times, preset="ultrafast")
    clip_rows += rows.rows_of(path, [(0, 60), (10, 89)])
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(folder / "still.png"), videos.texture(8, 96, 160))
    return rows.clips_table([*clip_rows, *rows.rows_of(folder / "still.png", [(0, 1)])])


@pytest.fixture(scope="module")
def encoder() -> Iterator[ClipEncoder]:
    with ClipEncoder() as encoder:
        yield encoder


def recipe(**pack: Any) -> Recipe:
    options = PackOptions(heights=(96,), **pack)
    return Recipe(select=SelectOptions(duplicates=False, val_fraction=0.0), pack=options)


def decoded(folder: Path, model: str) -> dict[str, tuple[int, float]]:
    """Frames and mean rate of every packed clip, by its key, from the decoder."""
    frames_by_clip = {}
    for tar in sorted(folder.rglob("*.tar")):
        data = tar.read_bytes()
        for row in pq.read_table(index_path(tar)).to_pylist():
            if row["media"] == "mp4":
                with Video(io.BytesIO(data[row["media_offset"] :][: row["media_size"]])) as video:
                    pts = [frame.pts for frame in video.frames()]
                    steps = set(np.diff(pts).tolist())
                    assert len(steps) == 1, (model, row["key"])  # one constant rate
                    frames_by_clip[row["key"]] = len(pts), float(1 / (steps.pop() * video.probe.time_base))
                assert row["frames"] == len(pts)
    return frames_by_clip


@pytest.mark.parametrize("model", ["wan2.1", "ltx", "hunyuan", "framepack", "cogvideox", "mochi", "minimax-h3"])
def test_every_packed_clip_decodes_to_the_models_rate_and_count_with_one_frame_to_spare(
    clips, encoder, model, tmp_path
):
    contract = MODELS[model]
    chosen = select(clips, recipe(model=model))
    for plan in plan_shards(chosen.filter(chosen["keep"]), recipe(model=model)):
        assert write_shard(plan, tmp_path, None, encoder).failures == []
    packed = decoded(tmp_path, model)
    moving = {row["clip_id"]: row for row in chosen.to_pylist() if row["frames"] > 1}
    assert set(packed) == {key for key, row in moving.items() if row["keep"]}
    assert len(packed) >= 5
    for key, (frames, fps) in packed.items():
        row = moving[key]
        assert fps == pytest.approx(contract.fps)
        assert frames == row["pack_frames"]
        assert (frames - 1 - contract.extra) % contract.multiple == 0
        assert frames > contract.least
        assert 0 <= (row["end"] - row["start"]) * fps - frames + 0.5 <= contract.multiple + 0.5
    for row in moving.values():
        short = round((row["end"] - row["start"]) * contract.fps) < contract.least + 1
        assert (row["rejected_by"] == ["frame_contract"]) == short
        assert row["keep"] != short
    assert [row["keep"] for row in chosen.to_pylist() if row["frames"] == 1] == [True]


def test_clips_keep_their_ids_and_the_same_rows_give_the_same_bytes(clips, tmp_path):
    free, bound = select(clips, recipe()), select(clips, recipe(model="wan2.1"))
    assert bound["clip_id"] == free["clip_id"]
    contents = []
    for number in range(2):
        order = pa.array(np.random.default_rng(number).permutation(len(bound)))
        chosen = select(clips.take(order), recipe(model="wan2.1"))
        folder = tmp_path / str(number)
        for plan in plan_shards(chosen.filter(chosen["keep"]), recipe(model="wan2.1")):
            write_shard(plan, folder)
        contents.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert contents[0] == contents[1]


def test_media_of_another_contract_is_not_reused(clips, encoder, tmp_path):
    results = {}
    for spare in (0, 1, 1):
        options = recipe(fps=16, frames=FrameOptions(4, 1, spare))
        chosen = select(clips, options)
        (plan,) = [p for p in plan_shards(chosen.filter(chosen["keep"]), options) if "still" not in p.path]
        store, ids = Store(str(tmp_path)), plan.rows()["clip_id"]
        lent = stored_clips(store, [plan.path], ids) if results else {}
        results[spare] = write_shard(plan, tmp_path, lent, encoder)
    assert results[1].reused == results[1].clips  # of the second time with one contract
    assert results[0].clips >= results[1].clips > 0


@given(
    st.floats(0, 400), st.integers(1, 40), st.integers(0, 3), st.integers(0, 2), st.sampled_from([8.0, 16.0, 23.976])
)
def test_a_count_meets_its_contract_and_no_larger_one_fits(seconds, multiple, extra, spare, fps):
    options = PackOptions(fps=fps, frames=FrameOptions(multiple, extra, spare))
    (frames,) = packed_frames(np.array([seconds]), np.array([False]), options).tolist()
    available = int(np.floor(seconds * fps + 0.5 + 1e-6))
    if frames:
        assert (frames - extra - spare) % multiple == 0
        assert multiple + extra + spare <= frames <= available < frames + multiple
    else:
        assert available < multiple + extra + spare


def test_clips_too_short_for_a_contract_are_counted_in_the_funnel(clips):
    chosen = select(clips, recipe(model="cosmos-predict2"))
    reasons = chosen["rejected_by"].to_pylist()
    assert sum(reason == ["frame_contract"] for reason in reasons) == len([r for r in reasons if r]) > 0


def test_a_model_sets_rate_and_frames_and_options_beside_it_come_first():
    assert resolved(PackOptions(model="wan2.1")) == PackOptions(fps=16, frames=FrameOptions(4, 1, 1))
    assert resolved(PackOptions(model="ltx", fps=25)).fps == 25
    assert resolved(PackOptions(model="ltx", frames=FrameOptions(16, 1, 0))).frames == FrameOptions(16, 1, 0)
    loaded = load_recipe("embedded", ["pack.fps=24", "pack.frames={multiple: 8, extra: 1, spare: 0}"])
    assert resolved(loaded.pack).frames == FrameOptions(8, 1, 0)


def test_a_wrong_model_names_the_nearest_and_frames_without_a_rate_stop_before_any_work():
    with pytest.raises(RecipeError, match=r"unknown video model 'wan2\.2'; did you mean 'wan2\.(1|2-5b)'"):
        check(load_recipe("embedded", ["pack.model=wan2.2"]))
    with pytest.raises(RecipeError, match=r"give pack\.fps too"):
        check(load_recipe("embedded", ["pack.frames.multiple=4"]))
    with pytest.raises(RecipeError, match=r"expected one of wan2\.1"):
        video_model("zzz")


def test_every_model_says_where_its_rule_is_from_and_is_usual_by_its_own_rule():
    for name, model in MODELS.items():
        assert model.source, name
        assert (model.usual - model.extra) % model.multiple == 0, name
        assert all(side % 16 == 0 for side in model.size), name
        assert Fraction(model.fps).denominator == 1, name
    shared = MODELS["any"]
    frames = np.arange(1, 9) * shared.multiple + shared.extra
    assert all(((frames - 1) % step == 0).all() for step in (4, 8, 16))
