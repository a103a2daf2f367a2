"""From shards to batches: shapes, contents, crops that are functions, corrupt samples, shards that vanish."""

import io
import itertools
import multiprocessing
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from shards import clips_of, still, write_shards

from model.config import Config, from_dict
from model.data import loader as data
from model.data.index import assign_shapes, make_schedule, read_index
from model.data.schedule import SampleRef, Shape
from model.errors import DataError
from pipeline.media.clip_reader import ClipError, frame_times, read_frames
from pipeline.media.encode import ENCODERS

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clips(sample_videos) -> list:
    return clips_of(sample_videos["bigbuckbunny"], 3)


def setting(root: Path, **options: object) -> Config:
    return from_dict({"data": [str(root)], "resolutions": 48, "frame_counts": 5, "fps": 8, "tokens": 48} | options)


SETTINGS = ENCODERS | {
    "no keyframe but the first": ("libx264", {"g": "250"}),
    "keyframes that later frames are shown before": (
        "libx264",
        {"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"},
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_few_frames_are_those_of_a_whole_decode(name, sample_videos):
    with av.open(str(sample_videos["bikes"])) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in itertools.islice(container.decode(video=0), 60)]
    file, (encoder, options) = io.BytesIO(), SETTINGS[name]
    with av.open(file, "w", format="mp4") as mp4:
        stream = mp4.add_stream(encoder, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        for picture in pictures:
            mp4.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        mp4.mux(stream.encode(None))
    everything = read_frames(file.getvalue(), np.arange(60) / 25, 48, 80)
    assert len(np.unique(everything.reshape(60, -1), axis=0)) == 60
    rng = np.random.default_rng(0)
    for count in (1, 3, 16):
        at = np.sort(rng.uniform(0, 2.6, count))  # the clip ends at 2.4
        few = read_frames(file.getvalue(), at, 48, 80)
        assert np.array_equal(few, everything[(at * 25 + 0.025).astype(int).clip(0, 59)])


def test_what_cannot_be_decoded_is_a_clip_error(clips):
    whole = clips[0][1]
    for damaged in (b"not a video", whole[: len(whole) // 2]):
        with pytest.raises(ClipError):
            read_frames(damaged, np.arange(5) / 8, 48, 80)


def test_batches_do_not_depend_on_workers_or_on_what_is_kept_in_memory(clips, tmp_path):
    root = write_shards(tmp_path, [clips])
    batches = []
    for workers, memory in ((0, 1000.0), (2, 1000.0), (0, 0.0)):
        config = setting(root, memory_mb=memory)
        index = read_index(config.data)
        order = make_schedule(index, config, (4, 8, 8))
        loader = data.make_loader(data.Clips(index, order, config), data.micro_batches(order, 2, 5, 0, 1), workers)
        batches.append(list(loader))
    for other in batches[1:]:
        for a, b in zip(batches[0], other, strict=True):
            assert torch.equal(a.inputs, b.inputs)
            assert (a.captions, a.keys, a.refs) == (b.captions, b.keys, b.refs)


def fail_after_a_batch(loader: torch.utils.data.DataLoader) -> None:
    with data.loading(loader) as batches:
        next(batches)
        assert multiprocessing.active_children()
        raise ArithmeticError


def test_loader_processes_end_when_the_run_that_reads_from_them_fails(clips, tmp_path):
    config = setting(write_shards(tmp_path, [clips]))
    index = read_index(config.data)
    order = make_schedule(index, config, (4, 8, 8))
    loader = data.make_loader(data.Clips(index, order, config), data.micro_batches(order, 0, 100, 0, 1), 2)
    with pytest.raises(ArithmeticError) as failure:  # its traceback still holds the loader
        fail_after_a_batch(loader)
    assert not multiprocessing.active_children(), failure


def test_decoded_clips_in_memory_show_the_frames_that_decoding_shows_at_variable_frame_rates(sample_videos, tmp_path):
    with av.open(str(sample_videos["bikes"])) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in itertools.islice(container.decode(video=0), 24)]
    ticks = np.cumsum([0, *([10] * 8), *([70] * 8), *([25] * 7)])  # 100, 14 and 40 frames a second
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as mp4:
        stream = mp4.add_stream("libx264", rate=25, options={"g": "6", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, tick in zip(pictures, ticks.tolist(), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            mp4.mux(stream.encode(frame))
        mp4.mux(stream.encode(None))
    assert frame_times(file.getvalue()) == pytest.approx(ticks / 1000, abs=1e-4)
    duration = (ticks[-1] + 25) / 1000
    columns = {"frames": 24, "fps": 24 / duration, "duration": duration, "width": 160, "height": 90}
    root = write_shards(tmp_path, [[("mp4", file.getvalue(), "variable", columns)]])
    index = read_index([str(root)])
    kept, decoded = (data.Clips(index, None, setting(root, memory_mb=mb)) for mb in (1000.0, 0.0))
    shape = Shape(5, 48, 80)
    rows = [clips.frames(0, shape, start) for start in (0.0, 0.02, 0.1, 0.3) for clips in (kept, decoded)]
    assert kept._decoded
    assert not decoded._decoded
    for a, b in zip(rows[::2], rows[1::2], strict=True):
        assert np.array_equal(a, b)
    assert len({row.tobytes() for row in rows}) == 4


def test_a_corrupt_sample_is_replaced_by_the_next_of_its_stream_and_counted(clips, tmp_path):
    broken = ("mp4", b"\0" * 500, "broken", clips[0][3])
    root = write_shards(tmp_path, [[broken, *clips[:2]]])
    config = setting(root)
    index = read_index(config.data)
    order = make_schedule(index, config, (4, 8, 8))
    loader = data.Clips(index, order, config)
    batches = [loader[batch] for step in range(3) for batch in order.step(step)]
    assert sum(batch.replaced for batch in batches) == sum(d.sample == 0 for batch in batches for d in batch.refs) > 0
    assert all("broken" not in batch.captions for batch in batches)
    with pytest.raises(DataError, match="in a row"):
        data.Clips(index, None, config)[[SampleRef(0, 0, 0, Shape(5, 32, 64), 0, 0)]]


def test_clips_take_the_largest_shape_that_they_fill(clips, tmp_path):
    root = write_shards(tmp_path, [[*clips, still(0, (200, 100))]])
    config = setting(root, resolutions=[48, 96, 400], frame_counts=[1, 5, 9, 81], tokens=10_000)
    index = read_index(config.data)
    number, shapes = assign_shapes(index, config, (4, 8, 8))
    kinds = [(shapes[n].frames, shapes[n].height < shapes[n].width) for n in number]
    assert kinds == [(9, True)] * 3 + [(1, False)]
    assert all(s.height % 16 == s.width % 16 == 0 for s in shapes)
    assert all(shapes[n].height <= h for n, h in zip(number, index.height, strict=True))


def test_weights_and_the_share_of_images_decide_what_is_drawn(clips, tmp_path):
    roots = [write_shards(tmp_path / name, [clips]) for name in "ab"]
    config = from_dict(
        {"data": [f"{roots[0]}@3", f"{roots[1]}@1"], "resolutions": 48, "frame_counts": 5, "fps": 8, "tokens": 16,
         "image_ratio": 0.25}
    )  # fmt: skip
    index = read_index(config.data)
    order = make_schedule(index, config, (4, 8, 8))
    draws = [d for step in range(400) for batch in order.step(step) for d in batch]
    assert np.mean([index.dataset[d.sample] == 0 for d in draws]) == pytest.approx(0.75, abs=0.02)
    assert np.mean([d.shape.frames == 1 for d in draws]) == pytest.approx(0.25, abs=0.02)


def test_a_shard_that_vanishes_stops_the_run_with_its_name(clips, tmp_path):
    root = write_shards(tmp_path, [clips])
    config = setting(root)
    index = read_index(config.data)
    Path(index.shards[0]).unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar"):
        data.Clips(index, None, config).read(0, 0)


def test_remote_shards_are_copied_once_and_the_oldest_make_room(clips, tmp_path, monkeypatch):
    import fsspec

    root = write_shards(tmp_path / "here", [[clip] for clip in clips])
    memory = fsspec.filesystem("memory")
    memory.put(str(root / "shards"), "/set/shards", recursive=True)
    index = read_index(["memory://set"])
    size = Path(root / "shards" / "16x9-90p" / "train-000000.tar").stat().st_size
    for room, kept in ((3.5, 3), (1.5, 1)):
        config = setting(root, data=["memory://set"], cache_gb=room * size / 1e9)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / str(kept)))
        loader = data.Clips(index, None, config)
        assert [loader.caption(i) for i in (0, 1, 2, 0)] == [clips[i][2] for i in (0, 1, 2, 0)]
        assert len([p for p in (tmp_path / str(kept)).rglob("*") if p.is_file() and p.suffix != ".lock"]) == kept
    media, video, caption, shape = clips[0]
    other = write_shards(tmp_path / "other", [[(media, video, caption[::-1] + 20_000 * ".", shape)]])
    memory.put(next(map(str, other.rglob("*.tar"))), "/set/shards/16x9-90p/train-000000.tar")
    assert data.Clips(index, None, config).caption(0) == caption[::-1]  # no old copy of a shard that has changed
