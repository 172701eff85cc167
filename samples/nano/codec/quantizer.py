"""Finite scalar quantization: a vector of a few scalars, each rounded to one of a few levels, is a code."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edge_sdk.errors import Error


class Quantizer:
    """Codes are numbers whose digits are the levels, the first scalar the least: for 3 levels base 3, as CosyVoice's
    tokenizer counts. Levels are odd, so that they lie around zero."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        if not levels or any(level < 3 or level % 2 == 0 for level in levels):
            raise Error(f"the quantizer's levels must be odd numbers from 3 on, found {list(levels)}")
        self.levels = levels
        self.codes = math.prod(levels)
        self.half = torch.tensor([level // 2 for level in levels])
        self.weight = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])

    def quantize(self, z: Tensor) -> Tensor:
        """z [..., D] -> each scalar at one of its levels, between -1 and 1; the gradient is that of tanh."""
        half = self.half.to(z.device)
        bounded = torch.tanh(z)
        rounded = torch.round(bounded * half) / half
        return bounded + (rounded - bounded).detach()

    def encode(self, z: Tensor) -> Tensor:
        """Quantized z [..., D] -> codes int64 [...]."""
        half = self.half.to(z.device)
        digits = torch.round(z * half).long() + half
        return (digits * self.weight.to(z.device)).sum(dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes int64 [...] -> scalars float32 [..., D], as `quantize` gives them."""
        bases = torch.tensor(self.levels, device=codes.device)
        digits = codes[..., None] // self.weight.to(codes.device) % bases
        return (digits - self.half.to(codes.device)) / self.half.to(codes.device)
