"""`clipmill encode`: the same bytes however it is run, and training on them as on the clips."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from shards import clips_of, still, write_shards

from model import encode, sample, train
from model.config import ConfigError, load_config
from model.data.index import make_schedule, read_index
from model.data.loader import Clips
from model.errors import DataError
from model.latents.base import to_signed
from model.latents.settle import load_latents
from model.text import HiddenStates
from model.training import checkpoint
from pipeline.storage.store import Store

torch.set_num_threads(1)
OPTIONS = ("resolutions=48", "frame_counts=5", "fps=8", "latent_channels=8", "device=cpu")


@pytest.fixture(scope="module")
def dataset(sample_videos, tmp_path_factory) -> Path:
    clips = clips_of(sample_videos["bigbuckbunny"], 3)  # 1.6 s each: two samples of 5 frames at 8 a second
    broken = ("mp4", b"\0" * 500, "broken", clips[0][3])
    root = write_shards(tmp_path_factory.mktemp("dataset"), [clips[:2], [broken, clips[2], still(0)]])
    index = next(root.glob("shards/*/train-000000.parquet"))
    pq.write_table(pq.read_table(index).slice(0, 0), index.with_name("train-000002.parquet"))  # all of its clips failed
    return root


@pytest.fixture(scope="module")
def latents(dataset, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "latents"
    assert encode.main([str(dataset), "--out", str(out), *OPTIONS]) == 0
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_bytes_do_not_depend_on_workers_or_on_an_interruption(dataset, latents, tmp_path, capsys):
    out = tmp_path / "again"
    shutil.copytree(latents, out)
    done = sorted(out.glob("shards/*/*"))
    done[0].with_suffix(".parquet").unlink()  # as if it had been killed between the tar and its index ...
    done[2].unlink()
    (out / "shards" / "16x9-90p" / ".train-000001.tar.7.tmp").write_bytes(b"half a tar")  # ... and within a tar
    done[3].unlink(missing_ok=True)
    assert encode.main([str(dataset), "--out", str(out), *OPTIONS, "workers=2"]) == 0
    assert "2 of 2" in capsys.readouterr().out
    assert files(out) == files(latents)
    assert encode.main([str(dataset), "--out", str(out), *OPTIONS]) == 0
    assert " of " not in capsys.readouterr().out


def test_a_sample_is_what_encoding_its_frames_gives_and_a_broken_clip_is_left_out(dataset, latents):
    config = load_config(None, OPTIONS, [str(latents)])
    index, source = read_index([str(latents)]), read_index([str(dataset)])
    assert index.key.tolist() == ["s0n0-00", "s0n0-01", "s0n1-00", "s0n1-01", "s1n1-00", "s1n1-01", "s1n2-00"]
    order = make_schedule(index, config, (4, 8, 8))
    draw = next(d for step in range(20) for batch in order.step(step) for d in batch if d.sample == 3)
    stored, stored_words = Clips(index, order, config).load(draw)
    frames = torch.from_numpy(Clips(source, None, config).frames(1, draw.shape, 5 / 8))
    saved = load_latents("pca", latents / "latents")
    assert torch.allclose(stored.float(), saved.encode(to_signed(frames[None]))[0], rtol=2e-3, atol=2e-3)
    caption = Clips(index, None, config).caption(3)
    assert caption == "part 1 of bigbuckbunny"
    expected = HiddenStates("minilm", 48).vectors([caption])[0]
    assert stored_words.keys() == expected.keys()
    assert torch.allclose(stored_words["text"].float(), expected["text"], rtol=2e-3, atol=2e-3)


def test_a_run_on_latents_learns_and_samples_without_the_clips(latents, tmp_path):
    config = load_config(None, ["steps=3", "tokens=48", "image_ratio=0.5", "device=cpu"], [str(latents)])
    assert (config.fps, config.latent_channels) == (8.0, 8)  # what was encoded need not be said again
    train.train(config, tmp_path / "run")
    assert (
        checkpoint.read_state(tmp_path / "run")["latents"]
        == json.loads((latents / "encoding.json").read_text())["latents"]
    )
    words = ["--prompt", "a rabbit", "--out", str(tmp_path / "x.mp4"), "--steps", "2", "--device", "cpu"]
    assert sample.main([str(tmp_path / "run"), *words]) == 0


def test_a_run_killed_while_it_copies_its_latents_can_start_again(latents, tmp_path, monkeypatch):
    config = load_config(None, ["steps=1", "tokens=48", "device=cpu"], [str(latents)])
    count = len(list((latents / "latents").iterdir()))
    fetch = Store.fetch
    for survived in range(count):
        calls = iter(range(count))

        def killed(self, name, path, calls=calls, survived=survived):
            if next(calls) == survived:
                raise KeyboardInterrupt
            fetch(self, name, path)

        monkeypatch.setattr(Store, "fetch", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, tmp_path / str(survived))
        assert not (tmp_path / str(survived) / "latents" / "id").exists()
        monkeypatch.setattr(Store, "fetch", fetch)
        train.train(config, tmp_path / str(survived))


def test_latents_that_do_not_fit_the_run_are_an_error(dataset, latents, tmp_path, sample_videos):
    with pytest.raises(ConfigError, match=r"fps=8\.0, not 5\.0"):
        train.train(load_config(None, ["fps=5", "device=cpu"], [str(latents)]), tmp_path / "a")
    other = write_shards(tmp_path / "clips", [clips_of(sample_videos["bikes"], 1)])
    assert encode.main([str(other), "--out", str(tmp_path / "other"), *OPTIONS]) == 0
    with pytest.raises(ConfigError, match="not encoded with the same"):
        load_config(None, [], [str(latents), str(tmp_path / "other")])
    with pytest.raises(ConfigError, match="not encoded with the same"):
        load_config(None, [], [str(latents), str(dataset)])
    words = [str(other), "--out", str(tmp_path / "alike"), *OPTIONS, f"latents=pca:{latents}"]
    assert encode.main(words) == 0
    both = load_config(None, ["steps=1", "tokens=48", "device=cpu"], [str(latents), str(tmp_path / "alike")])
    train.train(both, tmp_path / "run")
    with pytest.raises(ConfigError, match="another --out"):
        encode.prepare(tmp_path / "alike", load_config(None, [*OPTIONS, "text_tokens=9"], [str(other)]))
    part = tmp_path / "part"
    shutil.copytree(latents, part)
    next(part.glob("shards/*/train-000001.parquet")).unlink()
    with pytest.raises(DataError, match="1 of 2 shards are encoded"):
        read_index([str(part)])


def test_a_shard_that_changed_is_encoded_again_and_one_that_went_is_deleted(dataset, latents, tmp_path, sample_videos):
    root, out = tmp_path / "dataset", tmp_path / "latents"
    shutil.copytree(dataset, root)
    shutil.copytree(latents, out)
    clips = clips_of(sample_videos["bigbuckbunny"], 2)
    for path in root.glob("shards/*/*"):
        path.unlink()
    write_shards(root, [clips[1:]])
    assert encode.main([str(root), "--out", str(out), *OPTIONS]) == 0
    indexes = sorted(out.glob("shards/*/*.parquet"))
    assert [p.stem for p in indexes] == ["train-000000"]
    assert pq.read_table(indexes[0])["key"].to_pylist() == ["s0n0-00", "s0n0-01"]
