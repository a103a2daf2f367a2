"""The objective against a plain reference, and samplers on a distribution whose answer is known."""

import math

import pytest
import torch

from model import flow


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_the_loss_is_that_of_a_plain_reference(path):
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 2, 3, 4, 5), torch.randn(2, 2, 3, 4, 5)
    t = torch.rand(2, 3)
    weight = torch.tensor([[0.0, 1, 1], [1, 1, 1]])
    x, target = flow.noisy(x0, noise, t, path)
    out = torch.randn_like(x)
    got = flow.loss_per_sample(out, target, weight)
    for b in range(2):
        errors = []
        for f in range(3):
            tt = float(t[b, f])
            a, s = (1 - tt, tt) if path == "linear" else (math.cos(math.pi * tt / 2), math.sin(math.pi * tt / 2))
            assert torch.allclose(x[b, :, f], a * x0[b, :, f] + s * noise[b, :, f], atol=1e-6)
            v = noise[b, :, f] - x0[b, :, f] if path == "linear" else a * noise[b, :, f] - s * x0[b, :, f]
            if weight[b, f]:
                errors.append(((out[b, :, f] - v) ** 2).mean())
        assert got[b] == pytest.approx(float(sum(errors) / len(errors)), rel=1e-5)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_data_and_noise_come_back_from_a_perfect_prediction(path):
    torch.manual_seed(0)
    x0, noise, t = torch.randn(2, 2, 3, 4, 5), torch.randn(2, 2, 3, 4, 5), torch.rand(2, 3)
    x, target = flow.noisy(x0, noise, t, path)
    data, eps = flow.split(x, target, t, path)
    assert torch.allclose(data, x0, atol=1e-5)
    assert torch.allclose(eps, noise, atol=1e-5)


def gaussian(path: str, mean: float, std: float) -> flow.Model:
    """The exact prediction when the data are N(mean, std^2) in every pixel."""

    def predict(x, t, _):
        a, s = (c[:, None, :, None, None] for c in flow.coefficients(t, path))
        variance = a**2 * std**2 + s**2
        data = mean + a * std**2 / variance * (x - a * mean)
        eps = s / variance * (x - a * mean)
        return eps - data if path == "linear" else a * eps - s * data

    return predict


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("dpm", 2)])
def test_samplers_reach_the_known_answer_at_their_order(path, sampler, order):
    torch.manual_seed(0)
    noise, text = torch.randn(1, 2, 2, 16, 16), torch.zeros(1, 1, 1)
    model = gaussian(path, 0.7, 0.4)
    answer = 0.7 + 0.4 * noise  # the flow of a Gaussian is this map
    errors = [
        float((flow.sample(model, noise, text, steps, sampler, 1.0, path) - answer).abs().mean()) for steps in (16, 64)
    ]
    assert errors[1] < 0.03
    if sampler == "dpm":  # its first step leaves from just before t = 1, which bounds how near it comes
        assert errors[0] < float((flow.sample(model, noise, text, 64, "euler", 1.0, path) - answer).abs().mean())
    else:
        assert errors[0] / errors[1] > 0.7 * 4**order


def test_given_frames_stay_and_are_shown_to_the_model_as_clean():
    seen = []

    def model(x, t, _):
        seen.append((x[:, :, :2].clone(), t.clone()))
        return torch.zeros_like(x)

    clean = torch.randn(1, 2, 2, 4, 4)
    out = flow.sample(model, torch.randn(1, 2, 5, 4, 4), torch.zeros(1, 1, 1), 4, "heun", clean=clean)
    assert torch.equal(out[:, :, :2], clean)
    assert all(torch.equal(x, clean) and bool((t[:, :2] == 0).all()) and bool((t[:, 2:] > 0).all()) for x, t in seen)


def test_guidance_acts_inside_its_interval_and_rescaling_restores_the_deviation():
    def model(x, t, text):
        return x * text.mean(dim=(1, 2))[:, None, None, None, None]

    text, null = torch.full((1, 1, 1), 2.0), torch.ones(1, 1, 1)
    x, t = torch.randn(1, 2, 3, 4, 4), torch.full((1, 3), 0.5)
    assert torch.allclose(flow.guided(model, text, null, 3.0)(x, t, text), x * 1.0 + 3 * (2 * x - x))
    assert torch.equal(flow.guided(model, text, null, 3.0, (0.6, 1.0))(x, t, text), 2 * x)
    assert flow.guided(model, text, null, 3.0, rescale=1.0)(x, t, text).std() == pytest.approx(float((2 * x).std()))


def test_times_are_logit_normal_and_shift_moves_them_towards_noise():
    quantiles = (torch.arange(1000) + 0.5) / 1000
    plain, shifted = (flow.sample_time(quantiles, 0.0, 1.0, f) for f in (1.0, 3.0))
    assert plain.median() == pytest.approx(0.5, abs=1e-3)
    assert torch.logit(plain).std() == pytest.approx(1.0, abs=0.02)
    assert shifted.median() == pytest.approx(0.75, abs=1e-3)
    assert flow.shift_factor(4 * 4096, 4096) == 2
