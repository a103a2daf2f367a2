"""Companions: files made of a packed clip beside it in the tar, with its size, frames and times."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import packing_rows
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from footage import videos

from filters.torchvision_ops import ensure_torchvision
from pipeline.config.recipe import PackOptions, Recipe, RecipeError, SelectOptions
from pipeline.media.packed_clip import PackedClip
from pipeline.media.video import Video
from pipeline.pack.companions import load_companions
from pipeline.pack.companions.depth import Depth
from pipeline.pack.parts import join_parts
from pipeline.pack.shards import ShardPlan, index_path, index_schema, plan_shards, stored_clips, write_shard
from pipeline.selection.select import select
from pipeline.storage.store import Store

SELECT = SelectOptions(duplicates=False, val_fraction=0.0)


@pytest.fixture(scope="module")
def depth_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DPT with random weights, in the hub's format."""
    ensure_torchvision()
    torch.manual_seed(3)
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        is_hybrid=False,
        initializer_range=0.1,  # else random depth is within 1e-9
    )
    folder = tmp_path_factory.mktemp("depth")
    transformers.DPTForDepthEstimation(config).save_pretrained(folder)
    transformers.DPTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Two clips of one video."""
    folder = tmp_path_factory.mktemp("sources")
    times = [0.04 * i + (0.01 if i % 3 else 0.0) for i in range(30)]
    moving = videos.pan(videos.texture(1, 108, 192), 30, 2)
    path = videos.write_video(folder / "a.mkv", moving, times=times)
    return select(packing_rows.clips_table(packing_rows.rows_of(path, [(0, 12), (12, 29)])), Recipe(select=SELECT))


def plan_of(kept: pa.Table, companions: dict[str, dict[str, Any]], **options: Any) -> ShardPlan:
    pack = PackOptions(heights=(96,), companions=companions, **options)
    table = select(
        kept.select([n for n in kept.column_names if n not in ("keep", "bucket", "split")]),
        Recipe(select=SELECT, pack=pack),
    )
    (plan,) = plan_shards(table, Recipe(select=SELECT, pack=pack))
    return plan


def frames_of(data: bytes) -> list[tuple[float, np.ndarray]]:
    with Video(io.BytesIO(data)) as video:
        return [(frame.time, frame.rgb()) for frame in video.frames()]


def members_of(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as file:
        return {member.name: file.extractfile(member).read() for member in file}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def written(kept: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardPlan, Path]:
    folder = tmp_path_factory.mktemp("dataset")
    plan = plan_of(kept, {"first_last": {}, "canny": {"low": 50}})
    assert write_shard(plan, folder).failures == []
    return plan, folder


def test_companions_have_the_size_frames_and_times_of_their_clip(written: tuple[ShardPlan, Path]) -> None:
    plan, folder = written
    members = members_of(folder / plan.path)
    for key in plan.rows()["clip_id"].to_pylist():
        clip = frames_of(members[f"{key}.mp4"])
        canny = frames_of(members[f"{key}.canny.mp4"])
        assert [time for time, _ in canny] == [time for time, _ in clip]
        assert canny[0][1].shape == clip[0][1].shape
        for (_, picture), (_, edges) in list(zip(clip, canny, strict=True))[::5]:
            expected = cv2.Canny(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 50, 200) > 0
            assert expected.mean() > 0.01
            assert ((edges[..., 0] > 128) == expected).mean() > 0.93  # after H.264
        for name, (_, picture) in (("first", clip[0]), ("last", clip[-1])):
            jpeg = cv2.imdecode(np.frombuffer(members[f"{key}.{name}.jpg"], np.uint8), cv2.IMREAD_COLOR)
            assert np.abs(jpeg[..., ::-1].astype(int) - picture).mean() < 3


def test_depth_is_what_the_model_says_scaled_to_the_range_of_the_clip(
    written: tuple[ShardPlan, Path], depth_model: Path
) -> None:
    plan, folder = written
    clip = members_of(folder / plan.path)[f"{plan.rows()['clip_id'][0].as_py()}.mp4"]
    pictures = [picture for _, picture in frames_of(clip)]
    depth_video = Depth(str(depth_model)).make(PackedClip(clip, plan.options))["depth"]
    assert Depth(str(depth_model)).make(PackedClip(clip, plan.options))["depth"] == depth_video
    assert [time for time, _ in frames_of(depth_video)] == [time for time, _ in frames_of(clip)]
    network = transformers.DPTForDepthEstimation.from_pretrained(depth_model)
    processor = transformers.DPTImageProcessor.from_pretrained(depth_model)
    with torch.inference_mode():
        depth = network(**processor(images=pictures, return_tensors="pt")).predicted_depth.numpy()
    scaled = 255 * (depth - depth.min()) / (depth.max() - depth.min())
    packed = np.stack([picture[..., 0] for _, picture in frames_of(depth_video)])
    height, width = packed.shape[1:]
    expected = np.stack([cv2.resize(picture, (width, height)) for picture in scaled])
    assert expected.std() > 10
    assert np.abs(expected - packed).mean() < 4


def test_the_index_finds_companions_and_they_are_copied_to_parts_and_shards(
    written: tuple[ShardPlan, Path], tmp_path: Path
) -> None:
    plan, folder = written
    index = pq.read_table(index_path(folder / plan.path))
    assert index.schema.remove_metadata() == index_schema(plan.options)
    data, members = (folder / plan.path).read_bytes(), members_of(folder / plan.path)
    for row in index.to_pylist():
        for member, ending in (("first", "first.jpg"), ("last", "last.jpg"), ("canny", "canny.mp4")):
            place = data[row[f"{member}_offset"] :][: row[f"{member}_size"]]
            assert place == members[f"{row['key']}.{ending}"]
    reuse = stored_clips(Store(str(folder)), [plan.path], index["key"])
    parts = [ShardPlan(f"parts/{i}.tar", plan.options, plan.rows(), np.array([i])) for i in range(2)]
    assert [write_shard(part, tmp_path, reuse).reused for part in parts] == [1, 1]
    join_parts(Store(str(tmp_path)), [part.path for part in parts], plan.name, plan.path, tmp_path)
    assert (tmp_path / plan.path).read_bytes() == data
    assert index_path(tmp_path / plan.path).read_bytes() == index_path(folder / plan.path).read_bytes()


def test_other_options_or_weights_are_another_shard_and_none_change_nothing(
    kept: pa.Table, written: tuple[ShardPlan, Path], depth_model: Path, tmp_path: Path
) -> None:
    plan, folder = written
    canny = plan_of(kept, {"canny": {}})
    assert len({plan_of(kept, options).name for options in ({}, {"canny": {"low": 50}}, {"canny": {}})}) == 3
    reuse = stored_clips(Store(str(folder)), [plan.path], plan.rows()["clip_id"])
    assert write_shard(canny, tmp_path, reuse).reused == 0
    other = tmp_path / "model"
    other.mkdir()
    for path in depth_model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    same = plan_of(kept, {"depth": {"model": str(depth_model)}}).name
    with open(other / "model.safetensors", "r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"\x01")
    assert plan_of(kept, {"depth": {"model": str(other)}}).name != same


@pytest.mark.parametrize(
    ("companions", "message"),
    [
        ({"cany": {}}, "pack.companions: unknown 'cany'; did you mean 'canny'?"),
        ({"canny": {"lo": 1}}, "'pack.companions.canny.lo'; did you mean 'low'"),
        ({"canny": {"low": 300}}, "pack.companions.canny: expected 0 <= low <= high"),
        ({"first_last": {"quality": 0}}, "pack.companions.first_last: quality: expected 1 to 100"),
        ({"depth": {"model": "/proc"}}, "pack.companions.depth: model: /proc has no config.json"),
    ],
)
def test_options_that_cannot_work_stop_before_any_work(companions: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_companions(PackOptions(companions=companions))
