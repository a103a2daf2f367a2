"""The step: gradients are cut as one vector, and a step that cannot be taken changes nothing."""

import copy

import pytest
import torch

from model.config import Config
from model.errors import DeviceError
from model.training.memory import device_faults
from model.training.optimise import ClipRule, clipped_step, global_norm, make_optimizer


def with_gradients(scale: float) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Parameters of two sizes with gradients, twice."""
    generator = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in (3, 500)]
    theirs = copy.deepcopy(ours)
    for a, b in zip(ours, theirs, strict=True):
        a.grad = scale * torch.randn(a.shape, generator=generator)
        b.grad = a.grad.clone()
    return ours, theirs


@pytest.mark.parametrize("scale", [0.001, 10.0])
def test_a_step_is_that_of_adamw_on_the_gradient_cut_as_a_whole(scale):
    config = Config(lr=0.1, weight_decay=0.1)
    ours, theirs = with_gradients(scale)
    norm = global_norm(ours)
    assert clipped_step(make_optimizer(ours, config), norm, ClipRule(config, norm.device).limit(norm)) == 0
    assert torch.nn.utils.clip_grad_norm_(theirs, config.clip_norm) == pytest.approx(float(norm))
    plain = torch.optim.AdamW(theirs, config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay)
    plain.step()
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def test_one_gradient_that_is_not_finite_keeps_every_weight_and_moment_and_the_running_norm():
    config = Config(adaptive_clip=True)
    ours, before = with_gradients(1.0)
    optimizer, clip = make_optimizer(ours, config), ClipRule(config, torch.device("cpu"))
    norm = global_norm(ours)
    clipped_step(optimizer, norm, clip.limit(norm))
    before, moments = copy.deepcopy(ours), copy.deepcopy(optimizer.state_dict()["state"])
    running = clip.moments.clone()
    ours[1].grad[7] = float("inf")
    norm = global_norm(ours)
    assert clipped_step(optimizer, norm, clip.limit(norm)) == 1
    assert all(torch.equal(a, b) for a, b in zip(ours, before, strict=True))
    assert torch.equal(clip.moments, running)
    for i, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[i][name]) for name, value in state.items())


def test_a_step_without_memory_or_a_compiler_ends_in_one_line_and_an_error_in_the_program_as_it_is():
    def no_compiler(graph: object, inputs: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    failing = torch.compile(torch.nn.Linear(2, 2), backend=no_compiler)
    with (
        pytest.raises(DeviceError, match=r"^CUDA out of memory: lower tokens, .* last checkpoint is kept$"),
        device_faults(Config()),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has a total of 80 GiB.")
    with (
        pytest.raises(DeviceError, match=r"compile=false.*No working C\+\+ compiler found$"),
        device_faults(Config(compile=True)),
    ):
        failing(torch.ones(2))
    with pytest.raises(RuntimeError, match="shapes"), device_faults(Config(compile=True)):
        raise RuntimeError("shapes differ")
