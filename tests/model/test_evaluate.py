"""The numbers of an evaluation on videos of known answer, and a whole evaluation of a run."""

import json
import re

import av
import cv2
import numpy as np
import pytest
import torch
from shards import clips_of, write_shards

from filters.encoders.base import EncoderOutput
from model import evaluate, train
from model.config import load_config
from model.errors import MeasureError
from model.evaluation.measures import I3D, consistency, frechet, look

torch.set_num_threads(1)


def test_consistency_of_a_still_a_sliding_and_a_flickering_video():
    rng = np.random.default_rng(0)
    wide = np.repeat(np.repeat(rng.integers(0, 255, (12, 40, 3), np.uint8), 8, 0), 8, 1)
    wide = cv2.GaussianBlur(wide, (0, 0), 3)
    stillness = consistency(np.stack([wide[:, :160]] * 5))
    sliding = consistency(np.stack([wide[:, 3 * i : 3 * i + 160] for i in range(5)]))
    flickering = consistency(
        np.stack([np.clip(wide[:, :160].astype(int) + 25 * (i % 2), 0, 255).astype(np.uint8) for i in range(5)])
    )
    assert stillness == {"motion": 0.0, "warp": 0.0, "flicker": 0.0}
    assert sliding["motion"] == pytest.approx(3 / 96, rel=0.15)
    assert sliding["warp"] < 0.02 < flickering["warp"]


class Colours:
    """An encoder of known answer: a picture is its mean colour, a text the colour that it names."""

    def look(self, frames: list[np.ndarray]) -> EncoderOutput:
        means = np.stack([frame.mean((0, 1)) for frame in frames]).astype(np.float32)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        return EncoderOutput(means, means, [])

    def texts(self, texts: list[str]) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[[("red", "green", "blue").index(text) for text in texts]]


def test_looks_are_compared_frame_by_frame_and_with_the_clips_own_caption():
    red, green = (np.zeros((8, 8, 3), np.uint8) + np.uint8(colour) for colour in ((200, 0, 0), (0, 200, 0)))
    constant = look(np.stack([red, red, red]), ["red", "green"], Colours())
    assert constant == {"same": pytest.approx(1), "text": pytest.approx(1), "others": pytest.approx(0)}
    jumping = look(np.stack([red, green, green]), ["green", "red", "blue"], Colours())
    assert jumping == {"same": 0.5, "text": pytest.approx(2 / 3), "others": pytest.approx(1 / 6)}
    assert np.isnan(look(np.stack([red, red]), ["red"], Colours())["others"])


def test_the_frechet_distance_of_gaussians_is_the_known_one():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a + torch.tensor([3.0, 0, 4])) == pytest.approx(25)
    assert frechet(a, 2 * a) == pytest.approx(
        3 + 5 * a.mean(0).square().sum().item() / 5, rel=0.05
    )  # (2 - 1)^2 an axis


class Interface(torch.nn.Module):
    """Not the network: what is called as it is, for the shape of things."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        return x.mean(dim=(1, 3, 4))[:, :10].repeat(1, self.width // 10)


def test_a_network_that_is_not_i3d_is_refused(tmp_path):
    torch.jit.script(Interface(300)).save(str(tmp_path / "narrow.pt"))
    (tmp_path / "text.pt").write_text("weights")
    for name, why in (("narrow.pt", "300 features"), ("text.pt", "is not the I3D"), ("none.pt", "is not the I3D")):
        with pytest.raises(MeasureError, match=why):
            I3D(tmp_path / name, torch.device("cpu"))


def test_a_run_is_measured_beside_real_clips_and_shown_on_a_page(sample_videos, tmp_path, capsys):
    clips = [clips_of(sample_videos[name], 1) for name in ("bikes", "bigbuckbunny")]
    root = write_shards(tmp_path / "dataset", [clips[0] + clips[1]])
    write_shards(root, clips, split="val")
    options = ["resolutions=48", "frame_counts=5", "fps=8", "latent_channels=8", "device=cpu", "tokens=48", "steps=2"]
    train.train(load_config(None, options, [str(root)]), tmp_path / "run")
    words = [str(tmp_path / "run"), "--device", "cpu", "--steps", "2", "--clips", "2"]
    assert evaluate.main(words) == 0
    out = tmp_path / "run" / "evaluation"
    scores = json.loads((out / "scores.json").read_text())
    assert scores["clips"] == 2
    assert scores["sampled_warp"] > scores["real_warp"]  # two steps make noise
    assert 0 < scores["real_same"] <= 1
    assert not any("frechet" in key for key in scores)
    with av.open(str(out / "samples.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    text = (out / "index.html").read_text()
    assert text.count("data:video/mp4;base64,") == 4
    assert "part 0 of bikes" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    torch.jit.script(Interface(400)).save(str(tmp_path / "i3d.pt"))
    assert evaluate.main([*words, "--i3d", str(tmp_path / "i3d.pt")]) == 0
    assert json.loads((out / "scores.json").read_text())["frechet_video_distance"] >= 0
    assert evaluate.main([*words[:1], str(tmp_path), "--device", "cpu"]) == 2
    assert "no val shards" in capsys.readouterr().err
