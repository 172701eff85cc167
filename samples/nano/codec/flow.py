"""The flow: speech tokens -> vocoder mel, in torch, under the names of CosyVoice3's checkpoint.

The computation of `edge_sdk.export.reference.flow`, batched and trainable: `state_dict()` is flow.safetensors. Frames
lead, [B, L, ...].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_sdk.export.reference.flow import LAYER_NORM_EPS, LOOKAHEAD_SLOPE, TIME_PERIOD, TIME_SCALE, time_grid
from samples.nano.codec.sizes import VocoderSizes

_LOOKAHEAD_KERNEL = 3  # tokens that the second convolution of the lookahead layer sees
_CHUNKS = 6  # of a block's modulation: shift, scale, gate of attention, then of the feed-forward


class Flow(nn.Module):
    """Token embedding, lookahead layer, speaker projection and the DiT velocity model."""

    def __init__(self, sizes: VocoderSizes) -> None:
        super().__init__()
        c = self.config = sizes.flow
        self.input_embedding = nn.Embedding(c.codebook_size, c.n_mels)
        self.spk_embed_affine_layer = nn.Linear(c.speaker_dim, c.n_mels)
        self.pre_lookahead_layer = Lookahead(c.n_mels, sizes.lookahead_width, c.lookahead_tokens)
        self.decoder = nn.ModuleDict({"estimator": Estimator(sizes)})

    def tokens(self, ids: Tensor) -> Tensor:
        """ids int64 [B, T + lookahead_tokens] -> mu [B, T * frames_per_token, n_mels].

        The last lookahead tokens are context only. An id of `codebook_size` stands for none (a zero row): behind a
        reply's last token there are as many of them as the layer looks ahead.
        """
        real = ids < self.config.codebook_size
        embedded = self.input_embedding(ids * real) * real[..., None]
        ahead = self.pre_lookahead_layer(embedded)
        return ahead.repeat_interleave(self.config.frames_per_token, dim=1)

    def speaker(self, embedding: Tensor) -> Tensor:
        """[B, speaker_dim] -> the projected condition [B, n_mels]."""
        projected: Tensor = self.spk_embed_affine_layer(functional.normalize(embedding, dim=-1))
        return projected

    def velocity(self, x: Tensor, mu: Tensor, speaker: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
        """One evaluation of the velocity model.

        Args:
            x, mu: [B, L, n_mels].  speaker: [B, n_mels], projected.  t: [B].
            mask: bool, broadcast to [B, heads, L, L]: which frames (columns) a frame (row) sees. None: all see all.
        Returns:
            [B, L, n_mels].
        """
        found: Tensor = self.decoder["estimator"](x, mu, speaker, t, mask)
        return found

    def sample(
        self,
        mu: Tensor,
        speaker: Tensor,
        noise: Tensor,
        *,
        steps: int,
        cfg_rate: float,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Euler steps with classifier-free guidance from noise [B, L, n_mels] to a mel [B, L, n_mels]."""
        x, rows = noise, len(noise)
        mu, speaker = (torch.cat([part, torch.zeros_like(part)]) for part in (mu, speaker))
        for t, dt in zip(*time_grid(steps), strict=True):
            times = torch.full((2 * rows,), float(t), device=x.device)
            conditional, free = self.velocity(torch.cat([x, x]), mu, speaker, times, mask).split(rows)
            x = x + float(dt) * ((1 + cfg_rate) * conditional - cfg_rate * free)
        return x


class Lookahead(nn.Module):
    """A convolution that looks some tokens to the right, one over its last outputs, and the input."""

    def __init__(self, n_mels: int, width: int, lookahead: int) -> None:
        super().__init__()
        self.lookahead = lookahead
        self.conv1 = nn.Conv1d(n_mels, width, lookahead + 1)
        self.conv2 = nn.Conv1d(width, n_mels, _LOOKAHEAD_KERNEL)

    def forward(self, embedded: Tensor) -> Tensor:
        """[B, T + lookahead, n_mels] -> [B, T, n_mels]."""
        ahead = functional.leaky_relu(self.conv1(embedded.transpose(1, 2)), LOOKAHEAD_SLOPE)
        ahead = self.conv2(functional.pad(ahead, (_LOOKAHEAD_KERNEL - 1, 0))).transpose(1, 2)
        return ahead + embedded[:, : ahead.shape[1]]


class Estimator(nn.Module):
    """The DiT: the velocity of x at time t."""

    def __init__(self, sizes: VocoderSizes) -> None:
        super().__init__()
        c = sizes.flow
        self.time_embed = TimeEmbedding(sizes.time_features, c.dim)
        self.input_embed = InputEmbedding(sizes)
        self.rotary_embed = RotaryEmbedding(c.head_dim)
        self.transformer_blocks = nn.ModuleList(Block(sizes) for _ in range(c.depth))
        self.norm_out = Modulation(c.dim, 2)
        self.proj_out = nn.Linear(c.dim, c.n_mels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, mu: Tensor, speaker: Tensor, t: Tensor, mask: Tensor | None) -> Tensor:
        time = self.time_embed(t)
        h = self.input_embed(x, mu, speaker)
        rotation = self.rotary_embed(h.shape[1])
        for block in self.transformer_blocks:
            h = block(h, time, rotation, mask)
        scale, shift = self.norm_out(time)
        found: Tensor = self.proj_out(_norm(h) * (1 + scale) + shift)
        return found


class TimeEmbedding(nn.Module):
    """[B] -> [B, dim]: sinusoids (sine first), Linear, SiLU, Linear."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.half = features // 2
        self.time_mlp = nn.Sequential(nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        steps = torch.arange(self.half, device=t.device, dtype=t.dtype)
        angle = TIME_SCALE * t[:, None] * torch.exp(-math.log(TIME_PERIOD) / (self.half - 1) * steps)
        found: Tensor = self.time_mlp(torch.cat([angle.sin(), angle.cos()], dim=-1))
        return found


class InputEmbedding(nn.Module):
    """x, an always empty prompt, mu and the speaker side by side, projected, plus two causal grouped convolutions.

    Fun-Audio-Chat gives no prompt mel, and an export drops its columns: here they are zero and stay so.
    """

    def __init__(self, sizes: VocoderSizes) -> None:
        super().__init__()
        c = sizes.flow
        self.proj = nn.Linear(4 * c.n_mels, c.dim)
        with torch.no_grad():
            self.proj.weight[:, c.n_mels : 2 * c.n_mels] = 0
        self.conv_pos_embed = PositionConvolutions(c.dim, c.position_kernel, sizes.position_groups)

    def forward(self, x: Tensor, mu: Tensor, speaker: Tensor) -> Tensor:
        speaker = speaker[:, None].expand_as(x)
        h = self.proj(torch.cat([x, torch.zeros_like(x), mu, speaker], dim=-1))
        found: Tensor = h + self.conv_pos_embed(h.transpose(1, 2)).transpose(1, 2)
        return found


class PositionConvolutions(nn.Module):
    """[B, dim, L] -> the same; the second sees zeros before the first's first output."""

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.left = kernel - 1
        self.conv1 = nn.Sequential(nn.Conv1d(dim, dim, kernel, groups=groups), nn.Mish())
        self.conv2 = nn.Sequential(nn.Conv1d(dim, dim, kernel, groups=groups), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.conv1, self.conv2):
            x = convolution(functional.pad(x, (self.left, 0)))
        return x


class RotaryEmbedding(nn.Module):
    """Cosines and sines of positions 0..L-1, each [L, head_dim / 2]."""

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", TIME_PERIOD ** (-torch.arange(0, head_dim, 2).double() / head_dim).float())

    def forward(self, frames: int) -> tuple[Tensor, Tensor]:
        angle = torch.arange(frames, device=self.inv_freq.device)[:, None] * self.inv_freq
        return angle.cos(), angle.sin()


class Modulation(nn.Module):
    """The time embedding [B, dim] -> `count` chunks, each [B, 1, dim]. Zero at first: a block begins as nothing."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(dim, count * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        return self.linear(functional.silu(time))[:, None].chunk(self.count, dim=-1)


class Block(nn.Module):
    """Attention and feed-forward, each modulated and gated."""

    def __init__(self, sizes: VocoderSizes) -> None:
        super().__init__()
        dim = sizes.flow.dim
        self.attn_norm = Modulation(dim, _CHUNKS)
        self.attn = Attention(sizes)
        self.ff = nn.ModuleDict({"ff": nn.Sequential(_first(dim, sizes.ff_dim), nn.Identity(), _second(dim, sizes))})

    def forward(self, h: Tensor, time: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = self.attn_norm(time)
        h = h + gate_attn * self.attn(_norm(h) * (1 + scale_attn) + shift_attn, rotation, mask)
        found: Tensor = h + gate_ff * self.ff["ff"](_norm(h) * (1 + scale_ff) + shift_ff)
        return found


class Attention(nn.Module):
    """Heads over [B, L, dim]. Positions turn only the first head_dim channels, which is head 0."""

    def __init__(self, sizes: VocoderSizes) -> None:
        super().__init__()
        c = sizes.flow
        inner = c.heads * c.head_dim
        self.heads, self.head_dim = c.heads, c.head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(c.dim, inner) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, c.dim)])

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        q, k = (_rotate(part(x), self.head_dim, rotation) for part in (self.to_q, self.to_k))
        q, k, v = (y.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for y in (q, k, self.to_v(x)))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        found: Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(-2))
        return found


def _first(dim: int, ff_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, ff_dim), nn.GELU(approximate="tanh"))


def _second(dim: int, sizes: VocoderSizes) -> nn.Linear:
    return nn.Linear(sizes.ff_dim, dim)


def _norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)


def _rotate(x: Tensor, width: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, L, heads * width]: pairs (2i, 2i + 1) of the first `width` channels turn."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    even, odd = x[..., 0:width:2], x[..., 1:width:2]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned, x[..., width:]], dim=-1)
