"""A head that copies, laid into the fresh weights of a backbone.

What a backbone this small does not find by itself in thousands of steps is to copy: to look up where an id stood before
and to say what came after it (an induction head, Olsson et al. 2022). Two things are in its way. No projection has a
bias, so no head can attend to a place whatever stands there, and what a head takes from a row is not yet something the
text head reads. So they are given to it, and it trains as any weight does:

- every text embedding gets one direction in common, which queries and keys can count on;
- layer 0, first head of keys and values: attends to the row before, and writes a part of it beside the row;
- layer 1, a head of the second group: looks for the row beside which that part of the present one stands, by the
  frequencies of RoPE that turn little over a prompt;
- all other heads take a part of a row and put the same part back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_sdk.config import TransformerConfig
from samples.nano.model.language import TextBackbone

# All of these were found by trying, and what the head does with them was looked at (docs/NOTES.md).
COMMON = 0.7  # length of the common direction, of an embedding's
QUIET = 0.3  # what queries and keys of layers 0 and 1 keep of what was drawn
PLACE_GAIN, PLACE_SHARP = 0.3, 2.0
MATCH_GAIN, MATCH_SHARP = 3.0, 2.0
WRITE_BEFORE, WRITE_COPY, WRITE_OTHER = 0.3, 0.7, 0.1
FAST_PAIRS = 4  # of RoPE: those that tell one place from the next
SLOW_RADIANS = 0.02  # a step, at most: pairs that hardly turn over a prompt


@dataclass(frozen=True)
class Rows:
    """Rows of a head's projections: one pair of RoPE is rows i and i + head_dim / 2."""

    fast: list[int]
    slow: list[int]

    @classmethod
    def of(cls, c: TransformerConfig) -> Rows:
        half = c.head_dim // 2
        slow = [i for i in range(half) if c.rope_theta ** (-2 * i / c.head_dim) < SLOW_RADIANS]
        fast = list(range(min(FAST_PAIRS, half)))
        return cls([*fast, *(i + half for i in fast)], [*slow, *(i + half for i in slow)])


def fits(c: TransformerConfig) -> bool:
    """Whether there is room: two layers, two heads of keys and values, and directions enough."""
    slow = len(Rows.of(c).slow)
    layers = c.num_layers > 1 and c.num_kv_heads > 1
    return layers and c.head_dim <= c.hidden_size and 0 < 2 * slow < c.hidden_size


@torch.no_grad()
def lay(backbone: TextBackbone, c: TransformerConfig, seed: int) -> None:
    """Change the drawn weights of `backbone`, whose embedding is its text head too, as told above."""
    random = torch.Generator().manual_seed(seed)
    rows = Rows.of(c)
    count = len(rows.slow)
    directions = orthonormal(c.hidden_size, c.hidden_size, random)
    common, part, beside = directions[0], directions[1 : 1 + count], directions[1 + count : 1 + 2 * count]
    embedding = backbone.embed_tokens.weight
    embedding.add_(common * embedding.std() * c.hidden_size**0.5 * COMMON)
    share = c.num_heads // c.num_kv_heads
    for number, layer in enumerate(backbone.layers):
        attention = layer.self_attn
        if number < 2:
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):  # of values: where none are laid
                projection.weight.mul_(QUIET)
        for kv in range(c.num_kv_heads):
            heads = range(kv * share, (kv + 1) * share)
            if (number, kv) == (0, 0):
                look_before(attention, c, common, heads, rows)
                attention.v_proj.weight[:count] = part
                attention.o_proj.weight[:, :count] = beside.T * WRITE_BEFORE
                continue
            put_back(attention, c, kv, heads, random, WRITE_OTHER * (1 if number else QUIET))
            if (number, kv) == (1, 1):
                look_for(attention, c, kv, heads[0], (part, beside), rows)


def look_before(attention: nn.Module, c: TransformerConfig, common: Tensor, heads: range, rows: Rows) -> None:
    """Queries that, turned by RoPE, equal the keys of the row before: both are of the common direction alone."""
    d, half = c.head_dim, c.head_dim // 2
    key = torch.zeros(d)
    key[rows.fast] = 1.0
    angle = c.rope_theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    cos, sin = angle.cos().float(), angle.sin().float()
    first, second = key[:half], key[half:]
    query = torch.cat([first * cos + second * sin, second * cos - first * sin])  # turned back by one place
    attention.k_proj.weight[:d] += torch.outer(key, common) * PLACE_GAIN
    for h in heads:
        attention.q_proj.weight[h * d : (h + 1) * d] += torch.outer(query, common) * PLACE_GAIN
    sharpen(attention, rows.fast, PLACE_SHARP)


def look_for(
    attention: nn.Module, c: TransformerConfig, kv: int, head: int, parts: tuple[Tensor, Tensor], rows: Rows
) -> None:
    """Queries of the present row's part; keys of what stands beside each row."""
    d, (part, beside) = c.head_dim, parts
    values = attention.v_proj.weight[kv * d : (kv + 1) * d]
    attention.o_proj.weight[:, head * d : (head + 1) * d] = values.T * WRITE_COPY
    sharpen(attention, rows.slow, MATCH_SHARP)
    for n, row in enumerate(rows.slow):
        attention.k_proj.weight[kv * d + row] += beside[n] * MATCH_GAIN
        attention.q_proj.weight[head * d + row] += part[n] * MATCH_GAIN


def put_back(
    attention: nn.Module, c: TransformerConfig, kv: int, heads: range, random: torch.Generator, gain: float
) -> None:
    d = c.head_dim
    taken = orthonormal(c.hidden_size, d, random)
    attention.v_proj.weight[kv * d : (kv + 1) * d] = taken
    for h in heads:
        attention.o_proj.weight[:, h * d : (h + 1) * d] = taken.T * gain / len(heads)


def sharpen(attention: nn.Module, rows: list[int], gain: float) -> None:
    """Scores are no larger than the norms of queries and keys let them be."""
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight[rows] = gain


def orthonormal(size: int, count: int, random: torch.Generator) -> Tensor:
    """`count` rows [count, size]."""
    return torch.linalg.qr(torch.randn(size, count, generator=random))[0].T
