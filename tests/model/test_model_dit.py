"""The transformer: inflation, causes of its output, operation counts, and the block of a public model."""

import copy
import shutil

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from filters.torchvision_ops import ensure_torchvision
from model.config import Config
from model.network.dit import SIZES, Block, DiT, Size, axis_angles, inflate, rotate, rotation
from model.training.parallel import RankContext, distribute

torch.set_num_threads(1)  # how threads share a sum out changes its last bits

SMALL = Size(96, 2, 2, 192)


def awake(model: torch.nn.Module) -> torch.nn.Module:
    """With no zero-initialised weight left, so that every part acts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def inputs(frames: int = 3, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 8, frames, 4, 6, generator=generator)
    return x, torch.rand(batch, frames, generator=generator), torch.randn(batch, 5, 24, generator=generator)


@pytest.mark.parametrize("attention", ["full", "factorised"])
def test_a_new_model_predicts_zero_and_every_block_is_the_identity(attention):
    torch.manual_seed(0)
    model = DiT(SMALL, 8, 24, attention=attention)
    x, t, text = inputs()
    assert torch.equal(model(x, t, text), torch.zeros_like(x))
    rope, time_rope = model.rotary(3, 2, 3, x.device)
    tokens = torch.randn(2, 3, 6, SMALL.width)
    assert torch.equal(
        model.blocks[0](tokens, torch.zeros(2, 3, 6, 96), torch.randn(2, 5, 96), rope, time_rope), tokens
    )


def test_an_image_model_inflates_to_a_video_model_that_is_that_model_on_an_image():
    torch.manual_seed(0)
    image_model = awake(DiT(SMALL, 8, 24))
    for attention in ("full", "factorised"):
        video_model = DiT(SMALL, 8, 24, attention=attention)
        inflate(video_model, image_model.state_dict())
        x, t, text = inputs(frames=1)
        assert torch.equal(video_model(x, t, text), image_model(x, t, text))


def test_an_inflated_factorised_model_is_the_image_model_on_every_frame():
    torch.manual_seed(0)
    image_model = awake(DiT(SMALL, 8, 24))
    video_model = DiT(SMALL, 8, 24, attention="factorised")
    inflate(video_model, image_model.state_dict())
    x, t, text = inputs(frames=4, batch=1)
    frames = image_model(x.transpose(0, 2), t.T, text.expand(4, -1, -1))  # the four frames as a batch of images
    assert torch.equal(video_model(x, t, text), frames.transpose(0, 2))


def test_weights_of_another_geometry_are_refused():
    with pytest.raises(ValueError, match="another model"):
        inflate(DiT(SMALL, 8, 24), DiT(Size(64, 2, 2, 128), 8, 24).state_dict())


def test_a_frame_is_told_its_own_timestep_and_frames_see_each_other():
    torch.manual_seed(0)
    model = awake(DiT(SMALL, 8, 24, attention="factorised"))
    x, t, text = inputs()
    changed = t.clone()
    changed[:, 1] += 0.2
    difference = (model(x, t, text) - model(x, changed, text)).abs().amax(dim=(0, 1, 3, 4))
    assert difference[1] > 2 * difference[0] > 0


def test_rotation_keeps_products_of_tokens_equally_far_apart():
    rope = rotation(axis_angles(torch.arange(12), 8))
    q, k = torch.randn(2, 16)
    turned = [rotate(v.expand(1, 12, 1, 16), rope)[0, :, 0] for v in (q, k)]
    products = turned[0] @ turned[1].T
    assert torch.allclose(products[0, 3], products[7, 10], atol=1e-5)
    assert not torch.allclose(products[0, 3], products[0, 4], atol=1e-3)


@pytest.mark.parametrize(("name", "attention"), [("tiny", "full"), ("S", "full"), ("S", "factorised")])
def test_counted_operations_are_those_that_torch_counts(name, attention):
    model = DiT(SIZES[name], 16, 384, attention=attention)
    shape = (1, 16, 3, 8, 12)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(shape), torch.zeros(1, 3), torch.zeros(1, 48, 384))
    assert model.forward_flops(shape, 48) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_largest_size_has_the_geometry_of_wan_1_3b():
    with torch.device("meta"):
        blocks = torch.nn.ModuleList(Block(SIZES["XXL"], False) for _ in range(SIZES["XXL"].depth))
    assert sum(p.numel() for p in blocks.parameters()) == pytest.approx(1.385e9, rel=0.01)


def test_a_block_computes_what_diffusers_wan_block_computes():
    ensure_torchvision()
    wan = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    torch.manual_seed(0)
    size = Size(256, 1, 2, 448)
    theirs = wan.WanTransformerBlock(256, 448, 2, cross_attn_norm=True).eval()
    ours = awake(Block(size, False))
    assert isinstance(ours, Block)
    head = torch.arange(128).view(64, 2).T.flatten()  # they turn neighbours, we turn the halves of a head
    swap = torch.cat([head + 128 * i for i in range(2)])
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.zero_() if name.endswith("bias") else parameter.normal_(std=0.05)
        theirs.norm2.weight.fill_(1)
        a, b = theirs.attn1, theirs.attn2
        ours.attention.qkv.weight.copy_(torch.cat([a.to_q.weight[swap], a.to_k.weight[swap], a.to_v.weight]))
        ours.attention.q_norm.weight.copy_(a.norm_q.weight[swap])
        ours.attention.k_norm.weight.copy_(a.norm_k.weight[swap])
        ours.attention.out.weight.copy_(a.to_out[0].weight)
        ours.cross.q.weight.copy_(b.to_q.weight)
        ours.cross.kv.weight.copy_(torch.cat([b.to_k.weight, b.to_v.weight]))
        ours.cross.q_norm.weight.copy_(b.norm_q.weight)
        ours.cross.k_norm.weight.copy_(b.norm_k.weight)
        ours.cross.out.weight.copy_(b.to_out[0].weight)
        ours.mlp[0].weight.copy_(theirs.ffn.net[0].proj.weight)
        ours.mlp[2].weight.copy_(theirs.ffn.net[2].weight)
        ours.table.copy_(theirs.scale_shift_table[0])
    model = DiT(size, 4, 8)
    rope, time_rope = model.rotary(3, 4, 5, torch.device("cpu"))
    their_rope = wan.WanRotaryPosEmbed(128, (1, 2, 2), 32)(torch.zeros(1, 4, 3, 8, 10))
    x, text, modulation = torch.randn(2, 60, 256), torch.randn(2, 7, 256), torch.randn(2, 6, 256)
    with torch.no_grad():
        wanted = theirs(x, text, modulation, their_rope)
        got = ours(x.unflatten(1, (3, -1)), modulation[:, None].expand(-1, 3, -1, -1), text, rope, time_rope).flatten(
            1, 2
        )
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_bf16_and_compiled_and_recomputing_twins_agree_with_plain_fp32():
    torch.manual_seed(0)
    model = awake(DiT(SMALL, 8, 24))
    x, t, text = inputs()

    def gradients(half: bool = False, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        twin = distribute(copy.deepcopy(model), Config(**options), RankContext(torch.device("cpu"), 0, 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = twin(x, t, text)
        out.square().mean().backward()
        return out.detach(), twin.patch_in.weight.grad

    plain = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(recompute=1), strict=True))
    for a, b in zip(plain, gradients(half=True), strict=True):
        assert (a - b).norm() < 0.02 * a.norm()
    if shutil.which("g++") is None:
        pytest.skip("compiling for a CPU needs a C++ compiler")
    for a, b in zip(plain, gradients(compile=True), strict=True):
        assert (a - b).norm() < 1e-5 * a.norm()
