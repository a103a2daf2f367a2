"""A diffusion transformer over video latents.

Tokens are patches of latent frames; an image is a video of one frame. A block is self-attention with 3D rotary
positions (or, factorised, attention within a frame and then along time), cross-attention to the caption, and an MLP.
The timestep is given per latent frame, so some frames can be clean while others are noise; it reaches the blocks by
adaLN-single (Chen et al., PixArt-alpha, 2023): one projection for all blocks plus a learned table in each. Widths,
rotary split and norms are those of Wan 2.1 (Wan Team, 2025), so that the XXL size has Wan-1.3B's geometry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNELS = find_spec("triton") is not None
if KERNELS:
    from model.network import kernels, word_attention


@dataclass(frozen=True)
class Size:
    width: int
    depth: int
    heads: int  # of 128 channels each, but in `tiny`
    hidden: int  # of the MLP


SIZES = {
    "tiny": Size(192, 4, 3, 768),
    "S": Size(384, 12, 3, 1536),
    "B": Size(768, 12, 6, 3072),
    "L": Size(1024, 24, 8, 4096),
    "XL": Size(1152, 28, 9, 4608),
    "XXL": Size(1536, 30, 12, 8960),
}
TIME_FEATURES = 256
PLACE_FEATURES = 16

Rope = tuple[Tensor, Tensor]  # of `rotation`, (tokens, head_dim) float32 each


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in fp32 (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
        return (y * self.weight.float()).to(x.dtype)


class SelfAttention(nn.Module):
    """Attention among the tokens of the second axis, with rotary positions and normalised queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width), RMSNorm(width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:  # (B, N, d)
        return self.out(attend(*split_qkv(self.qkv(x), self.q_norm, self.k_norm, self.heads, rope)))


class CrossAttention(nn.Module):
    """Attention from video tokens to the caption's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width), RMSNorm(width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:  # (B, N, d), (B, L, d)
        k, v = self.kv(text).chunk(2, dim=-1)
        q = split_heads(self.q_norm(self.q(x)), self.heads)
        return self.out(attend_words(q, split_heads(self.k_norm(k), self.heads), split_heads(v, self.heads)))


class Block(nn.Module):
    """Map tokens x (B, T, S, d), modulation (B, T, 6, d) fp32 and text (B, L, d) to the next tokens. A new block is the
    identity.

    Tokens keep a frame axis, so that a frame's modulation is broadcast over its patches, not copied.
    """

    def __init__(self, size: Size, factorised: bool) -> None:
        super().__init__()
        self.factorised = factorised
        self.attention = SelfAttention(size.width, size.heads)
        self.temporal = SelfAttention(size.width, size.heads) if factorised else None
        self.cross = CrossAttention(size.width, size.heads)
        self.mlp = nn.Sequential(
            nn.Linear(size.width, size.hidden, bias=False),
            nn.GELU(approximate="tanh"),
            nn.Linear(size.hidden, size.width, bias=False),
        )
        self.table = nn.Parameter(torch.zeros(6, size.width))

    def forward(self, x: Tensor, modulation: Tensor, text: Tensor, rope: Rope, time_rope: Rope) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.table.float()).unbind(2)
        x, y = add_norm(x, shift=shift1, scale=scale1)
        if self.temporal is None:
            x, y = add_norm(x, self.attention(y.flatten(1, 2), rope).view_as(x), gate1)
        else:
            x, y = add_norm(x, self.attention(y.flatten(0, 1), rope).view_as(x), gate1)
            y = y.transpose(1, 2)  # (B, S, T, d)
            x, y = add_norm(x, self.temporal(y.flatten(0, 1), time_rope).view_as(y).transpose(1, 2))
        x, y = add_norm(x, self.cross(y.flatten(1, 2), text).view_as(x), shift=shift2, scale=scale2)
        return x + (gate2.unsqueeze(2) * self.mlp(y)).to(x.dtype)


class TimeEmbedding(nn.Module):
    """Embeds timesteps in [0, 1] by sinusoids and an MLP, in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.to_blocks = nn.Linear(width, 6 * width)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:  # (B, T) -> (B, T, d), (B, T, 6*d)
        half = TIME_FEATURES // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
        angles = 1000 * t.float()[..., None] * frequencies
        with torch.autocast(t.device.type, enabled=False):
            features = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.to_blocks.weight.dtype))
            return features.float(), self.to_blocks(features).float()


class DiT(nn.Module):
    """Predicts the velocity of noisy latents.

    channels: of the latents; text_width: of the caption's embedding; patch: latent pixels a token in height and width.
    """

    def __init__(self, size: Size, channels: int, text_width: int, patch: int = 2, attention: str = "full") -> None:
        super().__init__()
        if size.width % size.heads or (size.width // size.heads) % 2:
            raise ValueError(f"width {size.width} does not split into {size.heads} heads of even size")
        self.size, self.channels, self.patch = size, channels, patch
        self.text_width = text_width
        self.factorised = attention == "factorised"
        self.head_dim = size.width // size.heads
        self.patch_in = nn.Linear(channels * patch**2, size.width)
        self.place_in = nn.Linear(PLACE_FEATURES, size.width, bias=False)
        self.text_in = nn.Sequential(
            nn.Linear(text_width, size.width), nn.GELU(approximate="tanh"), nn.Linear(size.width, size.width)
        )
        self.time = TimeEmbedding(size.width)
        self.blocks = nn.ModuleList(Block(size, self.factorised) for _ in range(size.depth))
        self.out_table = nn.Parameter(torch.zeros(2, size.width))
        self.patch_out = nn.Linear(size.width, channels * patch**2)
        self.initialise()

    def initialise(self) -> None:
        """Initialise by Xavier; all gates, layers that are added without a gate, and the output are zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        zero = [self.time.to_blocks, self.patch_out]
        for block in self.blocks:
            assert isinstance(block, Block)
            zero += [block.cross.out] + ([block.temporal.out] if block.temporal is not None else [])
        for module in zero:
            nn.init.zeros_(module.weight)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Predict from latents x (B, C, T, H, W), timesteps t (B, T) in [0, 1] and text (B, L, D), with zero rows where
        there is no word: (B, C, T, H, W) fp32. H and W are multiples of the patch."""
        frames, height, width = x.shape[2], x.shape[3] // self.patch, x.shape[4] // self.patch
        rope, time_rope = self.rotary(frames, height, width, x.device)
        features, modulation = self.time(t)
        modulation = modulation.unflatten(-1, (6, -1))
        tokens = self.patch_in(self.patchify(x))  # (B, T, S, d)
        tokens = tokens + self.place_in(places(height, width, x.device)).to(tokens.dtype)
        words = self.text_in(text.to(tokens.dtype))
        for block in self.blocks:
            tokens = block(tokens, modulation, words, rope, time_rope)
        shift, scale = (features.unsqueeze(2) + self.out_table.float()).unsqueeze(2).unbind(3)
        tokens = norm(tokens) * (1 + scale) + shift
        return self.unpatchify(self.patch_out(tokens.to(words.dtype)).float(), height, width)

    def patchify(self, x: Tensor) -> Tensor:
        """Cut latents (B, C, T, H, W) into patches (B, T, S, C*p*p), S patches a frame in reading order."""
        b, c, t, h, w = x.shape
        p = self.patch
        x = x.view(b, c, t, h // p, p, w // p, p).permute(0, 2, 3, 5, 1, 4, 6)
        return x.reshape(b, t, (h // p) * (w // p), c * p * p)

    def unpatchify(self, x: Tensor, height: int, width: int) -> Tensor:
        """Join patches (B, T, S, C*p*p) to latents (B, C, T, H, W)."""
        b, t, p = x.shape[0], x.shape[1], self.patch
        x = x.view(b, t, height, width, self.channels, p, p).permute(0, 4, 1, 2, 5, 3, 6)
        return x.reshape(b, self.channels, t, height * p, width * p)

    def tokens(self, shape: Sequence[int]) -> int:
        """Return the number of tokens of a sample of latents (b, c, t, h, w)."""
        return shape[2] * (shape[3] // self.patch) * (shape[4] // self.patch)

    def step_flops(self, shape: Sequence[int], words: int) -> int:
        """Return the operations of training on one sample: three times those of the forward pass."""
        return 3 * self.forward_flops(shape, words)

    def forward_flops(self, shape: Sequence[int], words: int) -> int:
        """Return the FLOPs (2 for each multiply-add) of the forward pass of one sample of latents (b, c, t, h, w).

        Training takes three times as many, without recomputation, latents and text encoder.
        """
        d, n, frames, pixels = self.size.width, self.tokens(shape), shape[2], self.patch_in.in_features
        keys = n if not self.factorised else n // frames + frames  # tokens that a token attends to
        block = 2 * n * (4 * d * d + 2 * d * self.size.hidden) + 4 * n * keys * d  # qkv and out, MLP, self-attention
        block += 2 * n * 4 * d * d if self.factorised else 0  # qkv and out along time
        block += 2 * n * 2 * d * d + 2 * words * 2 * d * d + 4 * n * words * d  # cross-attention
        text_width = self.text_width
        ends = 2 * n * 2 * pixels * d + 2 * (n // frames) * PLACE_FEATURES * d + 2 * words * (text_width * d + d * d)
        time = 2 * frames * (TIME_FEATURES * d + d * d + 6 * d * d)
        return self.size.depth * block + ends + time

    def rotary(self, frames: int, height: int, width: int, device: torch.device) -> tuple[Rope, Rope]:
        """Return the rotations of the tokens, and of the frames along time.

        Factorised attention within a frame has all tokens at time 0, as in an image; time appears only in attention
        along time.
        """
        pairs = self.head_dim // 2
        side = self.head_dim // 6  # pairs for height and for width; the rest is for time
        shape = (1 if self.factorised else frames, height, width)
        t, y, x = (
            axis_angles(torch.arange(n, device=device), count)
            for n, count in zip(shape, (pairs - 2 * side, side, side), strict=True)
        )
        grid = (t[:, None, None], y[None, :, None], x[None, None])
        space = torch.cat([part.expand(*shape, -1) for part in grid], dim=-1).flatten(0, 2)
        return rotation(space), rotation(axis_angles(torch.arange(frames, device=device), pairs))


def norm(x: Tensor) -> Tensor:
    """Normalise by a LayerNorm without weights; input and output are fp32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)


def add_norm(
    x: Tensor,
    update: Tensor | None = None,
    gate: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return x + gate * update, and its norm * (1 + scale) + shift. x, update: (B, T, S, d), others (B, T, d) fp32."""
    if on_kernels(x):
        return kernels.add_norm(x, update, gate, shift, scale)[:2]
    if update is not None:
        x = x + (update if gate is None else gate.unsqueeze(2) * update).to(x.dtype)
    y = norm(x)
    if shift is not None and scale is not None:
        y = y * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)
    return x, y.to(x.dtype)


def split_qkv(qkv: Tensor, q_norm: RMSNorm, k_norm: RMSNorm, heads: int, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
    """Split (B, N, 3d) into normalised and rotated queries and keys, and values, (B, N, h, c) each."""
    if on_kernels(qkv, qkv.shape[2] // 3 // heads):
        return kernels.split_qkv(qkv, q_norm.weight, k_norm.weight, *rope)[:3]
    q, k, v = qkv.chunk(3, dim=-1)
    q, k = (rotate(split_heads(n(y), heads), rope) for n, y in ((q_norm, q), (k_norm, k)))
    return q, k, split_heads(v, heads)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (B, N, h*c) to (B, N, h, c)."""
    return x.unflatten(-1, (heads, -1))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with queries (B, N, h, c) to keys and values (B, M, h, c); return (B, N, h*c)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def attend_words(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to a caption, like `attend`; keys are few."""
    if on_kernels(q, q.shape[3]) and k.shape[1] <= word_attention.MOST_WORDS:
        return word_attention.attend_words(q, k, v).flatten(2)
    return attend(q, k, v)


def on_kernels(x: Tensor, head: int = 16) -> bool:
    """Return whether the Triton kernels can take x. head: channels of a head, if a kernel holds whole heads."""
    return KERNELS and x.is_cuda and x.dtype == torch.bfloat16 and head >= 16 and head & (head - 1) == 0


def axis_angles(positions: Tensor, pairs: int) -> Tensor:
    """Return the rotary angles of (n,) positions, (n, pairs) float64 (Su et al., RoFormer, 2021)."""
    frequencies = 10_000.0 ** (-torch.arange(pairs, dtype=torch.float64, device=positions.device) / pairs)
    return positions.double()[:, None] * frequencies


def places(height: int, width: int, device: torch.device) -> Tensor:
    """Return the position features of the tokens of a frame, (height * width, 16): four octaves of sinusoids of both
    coordinates.

    Rotary positions encode only distances between tokens; with absolute positions the model quickly learns what belongs
    at the top.
    """
    y, x = (torch.linspace(-1, 1, 2 * n + 1, device=device)[1::2] for n in (height, width))
    grid = torch.stack([y[:, None].expand(height, width), x.expand(height, width)], dim=-1)
    angles = grid[..., None] * (math.pi / 2 * 2.0 ** torch.arange(4, device=device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2).flatten(0, 1)


def rotation(angles: Tensor) -> Rope:
    """Return factors for a head's channels and their partners in `rotate`, (N, c) float32 each, of (N, c/2) angles."""
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the pairs (channel i, channel i + c/2) of x (B, N, h, c) by their token's angles."""
    own, partner = (table[:, None] for table in rope)  # (N, 1, c)
    swapped = x.float().unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return (x.float() * own + swapped * partner).to(x.dtype)


def inflate(model: DiT, image_weights: Mapping[str, Tensor]) -> None:
    """Load an image model's weights into a video model, in place; the video model then starts as exactly that image
    model.

    Full attention has no new weights, and the rotation at time 0 is the identity. Factorised, the temporal attention
    keeps its zero output. Raises ValueError when the weights are of another geometry.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in image_weights and ".temporal." not in k]
    wrong = [k for k, v in image_weights.items() if k not in own or own[k].shape != v.shape]
    if missing or wrong:
        raise ValueError(f"these weights are of another model: {', '.join((missing + wrong)[:3])} do not fit")
    model.load_state_dict(image_weights, strict=False)
