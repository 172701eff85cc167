"""The Whisper-shaped audio encoder: windows of mel, each alone, with the checkpoint's names for its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_sdk.config import EncoderConfig
from samples.nano.model.layers import through

LAYER_NORM_EPS = 1e-5


class WindowAttention(nn.Module):
    """Full attention inside a window. The key projection has no bias."""

    def __init__(self, c: EncoderConfig) -> None:
        super().__init__()
        self.heads = c.num_heads
        self.q_proj = nn.Linear(c.d_model, c.d_model)
        self.k_proj = nn.Linear(c.d_model, c.d_model, bias=False)
        self.v_proj = nn.Linear(c.d_model, c.d_model)
        self.out_proj = nn.Linear(c.d_model, c.d_model)

    def forward(self, h: Tensor, keep: Tensor) -> Tensor:
        """h [W, R, d_model]; keep bool [W, R]: rows that exist."""
        q, k, v = (
            projection(h).view(h.shape[0], h.shape[1], self.heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Written out: a window is short, and PyTorch's own kernel is slow on its way back (`layers.attend`).
        scores = (q @ k.transpose(-1, -2)).float() * q.shape[3] ** -0.5
        scores = scores.masked_fill(~keep[:, None, None, :], torch.finfo(torch.float32).min)
        mixed = scores.softmax(dim=-1).to(v.dtype) @ v
        return self.out_proj(mixed.transpose(1, 2).reshape(h.shape))


class EncoderLayer(nn.Module):
    def __init__(self, c: EncoderConfig) -> None:
        super().__init__()
        self.self_attn = WindowAttention(c)
        self.self_attn_layer_norm = nn.LayerNorm(c.d_model, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(c.d_model, c.ffn_dim)
        self.fc2 = nn.Linear(c.ffn_dim, c.d_model)
        self.final_layer_norm = nn.LayerNorm(c.d_model, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), keep)
        return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x))))


class Encoder(nn.Module):
    """Windows of normalised log-mel -> rows at 50 Hz; then pairs -> ln_post -> proj at 25 Hz.

    Windows shorter than the others are padded with zeros, and nothing of the padding reaches their rows.
    """

    def __init__(self, c: EncoderConfig, output: int) -> None:
        super().__init__()
        self.d_model, self.n_window = c.d_model, c.n_window
        self.conv1 = nn.Conv1d(c.n_mels, c.d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(c.d_model, c.d_model, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.num_layers))
        self.ln_post = nn.LayerNorm(c.d_model, eps=LAYER_NORM_EPS)
        self.proj = nn.Linear(c.d_model, output)
        self.fused = False  # what lies between a layer's products is compiled

    def convolve(self, mel: Tensor, frames: Tensor) -> Tensor:
        """mel [W, n_mels, F], frames int64 [W] that are real -> rows [W, (F + 1) / 2, d_model] entering the layers."""
        real = torch.arange(mel.shape[2], device=mel.device) < frames[:, None]
        x = (
            functional.gelu(self.conv1(mel)) * real[:, None, :]
        )  # the second convolution sees zeros past the end, as upstream
        x = functional.gelu(self.conv2(x)).transpose(1, 2)
        return x + sinusoids(x.shape[1], self.d_model).to(x)

    def rows(self, mel: Tensor, frames: Tensor, *, last: bool = True) -> Tensor:
        """mel [W, n_mels, F] -> [W, (F + 1) / 2, d_model] after the last layer; rows past `frames` mean nothing.

        Args:
            last: False leaves the last layer to `last_layer`.
        """
        x = self.convolve(mel, frames)
        keep = torch.arange(x.shape[1], device=x.device) < (frames[:, None] + 1) // 2
        for layer in self.layers if last else self.layers[:-1]:
            x = through(layer, self.fused, x, keep)
        return x

    def last_layer(self, pairs: Tensor, windows: Tensor) -> Tensor:
        """What is left to do behind `rows(..., last=False)`.

        Args:
            pairs: [N, 2, d_model], the rows of all clips two by two.
            windows: int64 [W, R], the pairs of each window one after another, N where there are none.
        Returns:
            25 Hz rows [N, d_model] before ln_post.
        """
        padded = functional.pad(pairs, (0, 0, 0, 0, 0, 1))
        real = windows < len(pairs)
        x = through(self.layers[-1], self.fused, padded[windows].flatten(1, 2), real.repeat_interleave(2, dim=1))
        found: Tensor = x.unflatten(1, (-1, 2)).mean(dim=2)[real]
        return found

    def project(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """pairs [N, 2, d_model] -> (their mean [N, d_model], tower rows [N, hidden])."""
        pooled = pairs.mean(dim=1)
        return pooled, self.tower(pooled)

    def tower(self, pooled: Tensor) -> Tensor:
        """25 Hz rows [N, d_model] -> [N, hidden]."""
        found: Tensor = self.proj(self.ln_post(pooled))
        return found


def sinusoids(length: int, width: int) -> Tensor:
    """Position table float32 [length, width]: the first half sine, the second cosine."""
    step = math.log(10000.0) / (width // 2 - 1)
    scale = torch.exp(-step * torch.arange(width // 2, dtype=torch.float64))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * scale
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()
