"""Training end to end on real clips: it learns, and it can be stopped and resumed without a trace."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from repository import ROOT
from shards import clips_of, still, write_shards

from model import sample, train
from model.config import Config, ConfigError, load_config
from model.data import loader as data
from model.data.index import make_schedule, read_index
from model.latents.base import to_bytes, to_signed
from model.network.dit import SIZES, DiT
from model.training import checkpoint
from model.training.memory import estimate_memory

torch.set_num_threads(1)
TINY = (
    "resolutions=48",
    "shift_tokens=64",
    "frame_counts=9",
    "fps=8",
    "workers=0",
    "latent_channels=8",
    "device=cpu",
    "log_every=5",
)
TEXT, STRIDE = {"text": (48, 384)}, (4, 8, 8)
COMMAND = (sys.executable, "-c", "import sys; from model.train import main; sys.exit(main(sys.argv[1:]))")


@pytest.fixture(autouse=True)
def few_fitting_videos(monkeypatch):
    """Fit principal components on 16 windows of the two clips: 256 take longer than most of the runs here."""
    monkeypatch.setattr("model.latents.settle.FITTING_VIDEOS", 16)


@pytest.fixture(scope="module")
def dataset(sample_videos, tmp_path_factory) -> Path:
    one_shot = sample_videos["bikes"].with_name("carphone_pristine.mp4")
    samples = clips_of(one_shot, 1) + clips_of(sample_videos["bigbuckbunny"], 1)
    return write_shards(tmp_path_factory.mktemp("dataset"), [samples[:1], samples[1:]])


def config(dataset: Path, *options: str) -> Config:
    return load_config(None, (*TINY, *options), [str(dataset)])


def weights(run: Path, which: str) -> dict[str, torch.Tensor]:
    return checkpoint.read_weights(run, which)


def test_it_overfits_a_few_clips_and_samples_look_like_them(dataset, tmp_path):
    run = tmp_path / "run"
    last = train.train(config(dataset, "steps=120", "tokens=96", "lr=4e-3", "ema=0.95", "frame_counts=5"), run)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert last["loss"] < 0.6 * rows[0]["loss"]
    trained = sample.Trained(run, "cpu")
    index = read_index([str(dataset)])
    clips = data.Clips(index, None, trained.config)
    shape = make_schedule(index, trained.config, (4, 8, 8)).streams[0].shape
    sampled = trained.generate(
        [clips.caption(i) for i in (0, 1)], 5, shape.height, shape.width, sample.Guidance(12, scale=1.0)
    )
    real = [clips.load(data.SampleRef(0, 0, i, shape, 0, 0))[0].float() for i in (0, 1)]
    noise = to_bytes(trained.latents.decode(torch.randn(1, 8, 2, shape.height // 8, shape.width // 8)))[0]
    for i in (0, 1):
        error = (sampled[i] - real[i]).abs().mean()
        assert error < 0.6 * (noise - real[i]).abs().mean()  # nearer than noise
        assert error < 0.6 * (sampled[i] - real[1 - i]).abs().mean()  # and the clip that was asked for


def test_a_run_stopped_and_resumed_is_bit_identical_to_one_that_was_not(dataset, tmp_path):
    options = ("steps=8", "tokens=48", "decay=constant", "adaptive_clip=true", "micro_batches=2")
    train.train(config(dataset, *options), tmp_path / "straight")
    train.train(config(dataset, *options, "steps=3"), tmp_path / "stopped")
    train.train(config(dataset, *options), tmp_path / "stopped")
    folders = [checkpoint.latest(tmp_path / name) for name in ("straight", "stopped")]
    for which in ("model", "ema"):
        a, b = (weights(tmp_path / name, which) for name in ("straight", "stopped"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    states = [json.loads((folder / "state.json").read_text()) for folder in folders if folder]
    assert states[0] == states[1]


def test_micro_batches_have_the_losses_and_gradients_of_one_large_batch(dataset, tmp_path):
    options = ("steps=2", "log_every=1", "decay=constant", "clip_norm=0.1", "latents=pixel")
    train.train(config(dataset, *options, "tokens=360"), tmp_path / "whole")
    train.train(config(dataset, *options, "tokens=180", "micro_batches=2"), tmp_path / "parts")
    rows = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    for whole, parts in zip(*(map(json.loads, lines) for lines in rows), strict=True):
        assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-4)
        assert parts["norm"] == pytest.approx(whole["norm"], rel=1e-3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_saves_a_run_with_loader_workers(number, dataset, tmp_path):
    run = tmp_path / "run"
    options = [*(o for o in TINY if not o.startswith("workers=")), "workers=2", "steps=100000", "tokens=160"]
    process = subprocess.Popen(
        [*COMMAND, str(dataset), "--out", str(run), *options, "log_every=1", "latents=pixel", "memory_mb=0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step      3"):
            break
    os.killpg(process.pid, number)  # as a terminal's Ctrl-C and a batch system's end of time do
    rest = process.stdout.read()
    assert process.wait() == 0
    assert "run again to continue" in rest
    assert checkpoint.read_state(run)["step"] >= 3


@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 1)])
def test_recomputation_does_not_show_in_a_checkpoint(before, after, dataset, tmp_path):
    options = ("steps=4", "tokens=48", "decay=constant", "frame_counts=1", "latents=pixel")
    train.train(config(dataset, *options, f"recompute={before}"), tmp_path / "straight")
    train.train(config(dataset, *options, "steps=2", f"recompute={before}"), tmp_path / "run")
    names = dict(DiT(SIZES["tiny"], 96, 384).named_parameters()).keys()
    for which in ("model", "ema"):
        assert weights(tmp_path / "run", which).keys() == names
    train.train(config(dataset, *options, f"recompute={after}"), tmp_path / "run")
    for which in ("model", "ema"):
        a, b = (weights(tmp_path / name, which) for name in ("straight", "run"))
        assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in names)
    words = ["--prompt", "x", "--out", str(tmp_path / "x.mp4"), "--steps", "2", "--device", "cpu"]
    assert sample.main([str(tmp_path / "run"), *words]) == 0
    video = ("latents=pixel", "attention=factorised", f"init_from={tmp_path / 'run'}", f"recompute={after}")
    train.train(config(dataset, "steps=1", "tokens=768", *video), tmp_path / "video")


def test_a_dataset_smaller_than_a_micro_batch_is_repeated_within_it(dataset, tmp_path):
    settings = config(dataset, "steps=2", "tokens=480", "frame_counts=1", "latents=pixel")
    schedule = make_schedule(read_index(settings.data), settings, (2, 4, 4))
    (batch,) = schedule.step(0)
    assert len(batch) > len(schedule.streams[0].members) == 2
    assert abs([ref.sample for ref in batch].count(0) - len(batch) / 2) < 1
    train.train(settings, tmp_path / "run")


def test_a_run_whose_shards_vanish_midway_stops_with_its_state_saved(dataset, tmp_path, monkeypatch, capsys):
    root, real, calls = tmp_path / "dataset", train.update_ema, []
    shutil.copytree(dataset, root)

    def vanishing(*args: object) -> None:
        real(*args)
        calls.append(1)
        if len(calls) == 3:
            for shard in root.glob("shards/*/*.tar"):
                os.truncate(shard, 0)  # what a process sees that holds a file which is deleted elsewhere

    monkeypatch.setattr(train, "update_ema", vanishing)
    words = [str(root), "--out", str(tmp_path / "run"), *TINY, "steps=9", "tokens=48", "memory_mb=0"]
    assert train.main(words) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a run gives the signals back
    assert "in a row cannot be read" in capsys.readouterr().err
    assert checkpoint.read_state(tmp_path / "run")["step"] == 3
    shutil.copytree(dataset, root, dirs_exist_ok=True)
    assert train.main(words) == 0
    assert checkpoint.read_state(tmp_path / "run")["step"] == 9


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_counted(dataset, tmp_path, monkeypatch):
    real = train.global_norm
    calls = iter([1.0, float("nan"), 1.0])
    monkeypatch.setattr(train, "global_norm", lambda parameters: real(parameters) * next(calls))
    train.train(config(dataset, "steps=3", "tokens=48"), tmp_path / "run")
    assert checkpoint.read_state(tmp_path / "run")["skipped"] == 1
    assert all(v.isfinite().all() for v in weights(tmp_path / "run", "model").values())


def test_inflating_an_image_run_into_a_video_run_starts_from_its_weights(dataset, tmp_path):
    train.train(config(dataset, "steps=2", "tokens=48", "frame_counts=1", "latents=pixel"), tmp_path / "image")
    video = ("latents=pixel", "attention=factorised", "train_only=temporal", f"init_from={tmp_path / 'image'}")
    train.train(config(dataset, "steps=2", "tokens=768", *video), tmp_path / "video")
    image, inflated = (weights(tmp_path / name, "model") for name in ("image", "video"))
    start = weights(tmp_path / "image", "ema")
    assert all(torch.equal(inflated[k], start[k]) for k in image)  # only the temporal layers were trained
    assert any(".temporal." in k for k in inflated)


def test_images_and_videos_train_together(dataset, tmp_path):
    root = write_shards(tmp_path / "stills", [[still(i) for i in range(3)]])
    settings = load_config(None, (*TINY, "steps=4", "tokens=96"), [str(dataset), f"{root}@4"])
    train.train(settings, tmp_path / "run")
    order = make_schedule(read_index(settings.data), settings, (4, 8, 8))
    assert {stream.shape.frames for stream in order.streams} == {1, 9}


def test_what_cannot_be_trained_is_said_before_the_first_step(dataset, tmp_path, capsys):
    def status(*options: str, data: Path = dataset, out: str = "run") -> tuple[int, str]:
        code = train.main([str(data), "--out", str(tmp_path / out), *TINY, "steps=1", *options])
        return code, capsys.readouterr().err

    assert "no clip is as long" in status("frame_counts=81")[1]
    assert "no train shards" in status(data=tmp_path)[1]
    assert "GB are free: lower tokens" in status("tokens=30000000", "latents=pixel", out="greedy")[1]
    code, message = status("setps=3", out="other")
    assert code == 2
    assert "did you mean 'steps'" in message
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("important")
    assert "holds something else" in status(out="full")[1]
    train.train(config(dataset, "steps=1", "tokens=48"), tmp_path / "done")
    with pytest.raises(ConfigError, match="another lr"):
        train.train(config(dataset, "steps=2", "tokens=48", "lr=1"), tmp_path / "done")
    shutil.copytree(tmp_path / "done", tmp_path / "mixed")
    (tmp_path / "mixed" / "latents" / "id").write_text("another")
    assert (
        sample.main([str(tmp_path / "mixed"), "--prompt", "x", "--out", str(tmp_path / "x.mp4"), "--device", "cpu"])
        == 2
    )
    assert "latents" in capsys.readouterr().err


def test_the_memory_needed_grows_with_tokens_and_shrinks_by_recomputing_and_sharding():
    sizes = load_config(None, ["size=S"])
    once, twice = (estimate_memory(sizes, TEXT, (n, 16, 3, 16, 16), STRIDE, 1) for n in (1, 2))
    saving = load_config(None, ["size=S", "recompute=1"])
    assert twice.activations == pytest.approx(2 * once.activations, rel=0.05)
    assert estimate_memory(saving, TEXT, (1, 16, 3, 16, 16), STRIDE, 1).activations < once.activations / 5
    assert estimate_memory(sizes, TEXT, (1, 16, 3, 16, 16), STRIDE, 4).training == once.training // 4
    sharded = estimate_memory(sizes, TEXT, (1, 16, 3, 16, 16), STRIDE, 4)
    model = DiT(SIZES["S"], 16, 384)
    blocks = sum(4 * p.numel() for block in model.blocks for p in block.parameters())
    assert sharded.gathered == blocks - 2 * blocks // len(model.blocks)
    assert once.weights + once.training == 20 * sum(p.numel() for p in model.parameters())


def test_a_video_is_sampled_to_the_asked_length_from_text_or_from_a_picture(dataset, tmp_path, sample_videos):
    import av
    import cv2

    train.train(config(dataset, "steps=2", "tokens=48"), tmp_path / "run")
    picture = tmp_path / "first.png"
    cv2.imwrite(str(picture), np.full((90, 160, 3), (200, 40, 40), np.uint8))
    out = tmp_path / "x.mp4"
    arguments = ["--prompt", "a bicycle", "--out", str(out), "--steps", "2", "--device", "cpu", "--image", str(picture)]
    assert sample.main([str(tmp_path / "run"), *arguments, "--seconds", "3"]) == 0
    with av.open(str(out)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(frames) == 24  # 3 s at 8 fps, from windows of 9
    assert np.abs(frames[0].astype(int) - (40, 40, 200)).mean() < 6  # BGR on disk


def test_signed_pixels_span_minus_one_to_one():
    frames = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 3)
    assert to_signed(frames).flatten().tolist() == [-1, 1] * 3
