"""Latents: what comes back, causality, normalisation, and the autoencoders of diffusers in their own format."""

import numpy as np
import pytest
import torch

from model.config import Config, from_dict
from model.errors import LatentError
from model.latents.pca import PCA
from model.latents.pixels import Pixels
from model.latents.settle import latent_stride, load_latents, make_latents

torch.set_num_threads(1)


def moving(frames: int = 9, height: int = 32, width: int = 48) -> torch.Tensor:
    """A smooth pattern that drifts to the right, (1, 3, t, h, w) in [-1, 1]."""
    x = torch.arange(width)[None, None, :] - 2 * torch.arange(frames)[:, None, None]
    y = torch.arange(height)[None, :, None]
    wave = torch.stack([torch.sin(0.15 * x + 0.1 * c * y) * torch.cos(0.1 * y + c) for c in range(3)])
    return wave[None]


def test_pixels_come_back_exactly():
    video = moving()
    pixels = Pixels()
    z = pixels.encode(video)
    assert z.shape == (1, 96, 5, 8, 12)
    assert torch.allclose(pixels.decode(z), video, atol=1e-6)


def test_principal_components_keep_a_smooth_video_and_have_unit_scale():
    video = moving()
    pca = PCA.fit(lambda: [video, moving(5)], 16)
    z = pca.encode(video)
    assert z.shape == (1, 16, 3, 4, 6)
    assert z.square().mean() == pytest.approx(1.0, abs=0.35)
    assert (pca.decode(z) - video).square().mean() < 4e-3  # 30 dB of a range of 2
    image = pca.encode(video[:, :, :1])  # an image is encoded as the first frame of a video is
    assert torch.allclose(image, z[:, :, :1], atol=1e-5)


def test_saved_components_are_the_same_latents(tmp_path):
    pca = PCA.fit(lambda: [moving()], 8)
    pca.save(tmp_path)
    again = load_latents("pca", tmp_path)
    assert again.id == pca.id
    assert torch.equal(again.encode(moving()), pca.encode(moving()))


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(LatentError, match="blocks"):
        Pixels().encode(torch.zeros(1, 3, 8, 32, 32))


@pytest.mark.parametrize("class_name", ["wan", "image"])
def test_autoencoders_in_the_hubs_format_are_latents(class_name, tmp_path):
    from filters.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    if class_name == "wan":
        vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        expected, stride = (1, 16, 2, 4, 6), (4, 8, 8)
    else:
        vae = diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4,
        )  # fmt: skip
        expected, stride = (1, 4, 5, 16, 24), (1, 2, 2)
    vae.save_pretrained(tmp_path / "vae")
    config: Config = from_dict({"latents": f"diffusers:{tmp_path}"})
    latents = make_latents(config, tuple)
    assert latents.stride == stride == latent_stride(config)
    video = moving(5)
    z = latents.encode(video)
    assert z.shape == expected
    assert latents.decode(z).shape == video.shape
    latents.save(tmp_path)
    again = load_latents(config.latents, tmp_path)
    assert again.id == latents.id
    assert np.allclose(again.encode(video), z)
    with pytest.raises(LatentError, match="cannot load"):
        make_latents(from_dict({"latents": f"diffusers:{tmp_path / 'nothing'}"}), tuple)
