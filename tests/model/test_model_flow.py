"""The objective against a plain reference, and samplers on a distribution whose answer is known."""

import math

import pytest
import torch

from model import objective, sampler
from model.config import Config
from model.objective import COSINE, LINEAR, Path


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_the_loss_is_that_of_a_plain_reference(path):
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 2, 3, 4, 5), torch.randn(2, 2, 3, 4, 5)
    t = torch.rand(2, 3)
    weight = torch.tensor([[0.0, 1, 1], [1, 1, 1]])
    x, target = objective.noisy(x0, noise, t, path)
    out = torch.randn_like(x)
    got = objective.loss_per_sample(out, target, weight)
    for b in range(2):
        errors = []
        for f in range(3):
            tt = float(t[b, f])
            a, s = (1 - tt, tt) if path is LINEAR else (math.cos(math.pi * tt / 2), math.sin(math.pi * tt / 2))
            assert torch.allclose(x[b, :, f], a * x0[b, :, f] + s * noise[b, :, f], atol=1e-6)
            v = noise[b, :, f] - x0[b, :, f] if path is LINEAR else a * noise[b, :, f] - s * x0[b, :, f]
            if weight[b, f]:
                errors.append(((out[b, :, f] - v) ** 2).mean())
        assert got[b] == pytest.approx(float(sum(errors) / len(errors)), rel=1e-5)


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_data_and_noise_come_back_from_a_perfect_prediction(path):
    torch.manual_seed(0)
    x0, noise, t = torch.randn(2, 2, 3, 4, 5), torch.randn(2, 2, 3, 4, 5), torch.rand(2, 3)
    x, target = objective.noisy(x0, noise, t, path)
    data, eps = objective.split(x, target, t, path)
    assert torch.allclose(data, x0, atol=1e-5)
    assert torch.allclose(eps, noise, atol=1e-5)


def gaussian(path: Path, mean: float, std: float) -> sampler.Model:
    """The exact prediction when the data are N(mean, std^2) in every pixel."""

    def predict(x, t, _):
        a, s = (c[:, None, :, None, None] for c in path.coefficients(t))
        variance = a**2 * std**2 + s**2
        data = mean + a * std**2 / variance * (x - a * mean)
        eps = s / variance * (x - a * mean)
        return eps - data if path is LINEAR else a * eps - s * data

    return predict


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpm", 2)])
def test_samplers_reach_the_known_answer_at_their_order(path, name, order):
    torch.manual_seed(0)
    noise, text = torch.randn(1, 2, 2, 16, 16), {}
    model = gaussian(path, 0.7, 0.4)
    answer = 0.7 + 0.4 * noise  # the flow of a Gaussian is this map
    errors = [
        float((sampler.sample(model, noise, text, steps, name, 1.0, path) - answer).abs().mean()) for steps in (16, 64)
    ]
    assert errors[1] < 0.03
    if name == "dpm":  # its first step leaves from just before t = 1, which bounds how near it comes
        assert errors[0] < float((sampler.sample(model, noise, text, 64, "euler", 1.0, path) - answer).abs().mean())
    else:
        assert errors[0] / errors[1] > 0.7 * 4**order


def test_given_frames_stay_and_are_shown_to_the_model_as_clean():
    calls = []

    def model(x, t, _):
        calls.append((x[:, :, :2].clone(), t.clone()))
        return torch.zeros_like(x)

    clean = torch.randn(1, 2, 2, 4, 4)
    out = sampler.sample(model, torch.randn(1, 2, 5, 4, 4), {}, 4, "heun", clean=clean)
    assert torch.equal(out[:, :, :2], clean)
    assert all(torch.equal(x, clean) and bool((t[:, :2] == 0).all()) and bool((t[:, 2:] > 0).all()) for x, t in calls)


def test_guidance_acts_inside_its_interval_and_rescaling_restores_the_deviation():
    def model(x, t, text):
        return x * text["text"].mean(dim=(1, 2))[:, None, None, None, None]

    text, null = {"text": torch.full((1, 1, 1), 2.0)}, {"text": torch.ones(1, 1, 1)}
    x, t = torch.randn(1, 2, 3, 4, 4), torch.full((1, 3), 0.5)
    assert torch.allclose(sampler.guided(model, text, null, 3.0)(x, t, text), x * 1.0 + 3 * (2 * x - x))
    assert torch.equal(sampler.guided(model, text, null, 3.0, (0.6, 1.0))(x, t, text), 2 * x)
    assert sampler.guided(model, text, null, 3.0, rescale=1.0)(x, t, text).std() == pytest.approx(float((2 * x).std()))


def test_times_are_logit_normal_and_shift_moves_them_towards_noise():
    quantiles = (torch.arange(1000) + 0.5) / 1000
    plain, shifted = (objective.sample_time(quantiles, Config(), f) for f in (1.0, 3.0))
    assert plain.median() == pytest.approx(0.5, abs=1e-3)
    assert torch.logit(plain).std() == pytest.approx(1.0, abs=0.02)
    assert shifted.median() == pytest.approx(0.75, abs=1e-3)
    assert objective.shift_factor(4 * 4096, 4096) == 2
