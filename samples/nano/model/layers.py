"""Layers of a Qwen3 decoder stack in PyTorch, named as the checkpoint names their weights.

Plain whole-sequence forms: training sees every position at once, so there is no cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_sdk.config import TransformerConfig
from edge_sdk.errors import Error

_FORMS = 64
_LONGEST_WRITTEN_OUT = 640  # positions; at 1,400 of a speech head, 16 sequences kept 5 GB of scores for the way back


class RMSNorm(nn.Module):
    """Over the last axis, in float32 whatever the input's type is, as upstream does."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (scaled * self.weight.float()).to(x.dtype)


def rope_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin float32 [..., head_dim / 2] of positions int64 [...]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angle = positions[..., None].double() / theta**exponent
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate-half: x [B, heads, T, d], tables [B or 1, 1, T, d / 2]; the two halves of a head are the pairs."""
    cos, sin = rope
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.num_heads, c.num_kv_heads, c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, c.num_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps)
        self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps)

    def forward(self, h: Tensor, rope: tuple[Tensor, Tensor], key_bias: Tensor | None) -> Tensor:
        batch, length, _ = h.shape
        q = self.q_norm(self.q_proj(h).view(batch, length, self.heads, -1)).transpose(1, 2)
        k = self.k_norm(self.k_proj(h).view(batch, length, self.kv_heads, -1)).transpose(1, 2)
        v = self.v_proj(h).view(batch, length, self.kv_heads, -1).transpose(1, 2)
        shared = self.heads // self.kv_heads
        k, v = (rotate(k, rope).repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1))
        mixed = attend(rotate(q, rope), k, v, key_bias)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """Causal attention, all [B, heads, T, d]. On a CPU it is written out: PyTorch's own kernel takes five times as long
    at a few hundred positions, most of it on the way back (docs/NOTES.md). Without biases it needs no memory for the
    scores, though, and is taken where they would be many.

    Args:
        key_bias: float32 [B, T], added to the scores of each key.
    """
    written_out = q.device.type == "cpu" and q.shape[2] <= _LONGEST_WRITTEN_OUT
    if not written_out and key_bias is None:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    length = q.shape[2]
    mask = torch.full((length, length), float("-inf"), device=q.device).triu(1)
    if key_bias is not None:
        mask = mask + key_bias[:, None, None, :]
    if not written_out:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[3] ** -0.5 + mask
    return scores.softmax(dim=-1).to(v.dtype) @ v


class MLP(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(h)) * self.up_proj(h))


class Layer(nn.Module):
    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c.hidden_size, c.intermediate_size)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], key_bias: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, key_bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class Stack(nn.Module):
    """Rows [B, T, hidden] -> [B, T, hidden] after the final norm, causal.

    Sequences of a batch are padded on the right: what follows a row never reaches it, so no mask is needed.
    """

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        if c.moe is not None:
            raise Error(
                "this recipe trains dense models; the checkpoint's config.json has a mixture of experts (qwen3_moe)"
            )
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.head_dim, self.theta = c.head_dim, c.rope_theta
        self.fused = False  # what lies between a layer's products is compiled

    def forward(self, x: Tensor, positions: Tensor | None = None, key_bias: Tensor | None = None) -> Tensor:
        """
        Args:
            positions: int64 [B, T], what the rotary embedding turns by; None: 0, 1, ...
            key_bias: float32 [B, T], added to attention's scores of each row as a key.
        """
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
        rope = rope_tables(positions[:, None], self.head_dim, self.theta)
        for layer in self.layers:
            x = through(layer, self.fused, x, rope, key_bias)
        return self.norm(x)


def through(layer: nn.Module, fused: bool, *inputs: Any) -> Tensor:
    """A layer's output; where it is to be fused, by what was compiled of its kind."""
    found: Tensor = compiled(type(layer))(layer, *inputs) if fused else layer(*inputs)
    return found


@cache
def compiled(kind: type[nn.Module]) -> Callable[..., Any]:
    """The forward of a kind of layer, for every length. A form of it is compiled when it is first met."""
    from torch._dynamo import config as dynamo  # takes a second; PyTorch's documentation has the limit there

    # Kinds of steps differ in types and in what has a gradient: more forms than PyTorch would keep.
    dynamo.recompile_limit = _FORMS
    return torch.compile(kind.forward, dynamic=True)
