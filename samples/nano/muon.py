"""Muon, as torch.optim.Muon computes it, in float32 where bfloat16 is slow.

PyTorch's own always multiplies in bfloat16. On a CPU that has no such products they are a sixtieth of float32's speed,
and nine tenths of a step were Muon's (docs/NOTES.md). Its state has the same name, so that a run begun with one goes on
with the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_POLYNOMIAL = 3.4445, -4.775, 2.0315  # of the iteration: x -> a x + b x^3 + c x^5, Jordan's
_LEAST_NORM = 1e-7
_ADAMW_SIZE = 0.2  # root mean square of what AdamW's steps are as a rule (Moonlight)
_MOMENTUM = "momentum_buffer"


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made nearly orthogonal; steps of AdamW's size.

    Args:
        params: matrices, or groups of them.
        lr: of a step.
        weight_decay: share of a weight, times `lr`, that each step takes off.
        iterations: of Newton-Schulz.
        dtype: in which they are computed.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        iterations: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.iterations, self.dtype = iterations, dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group)
        return loss

    def _move(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if _MOMENTUM not in state:
            state[_MOMENTUM] = torch.zeros_like(grad)
        before = state[_MOMENTUM].lerp_(grad, 1 - group["momentum"])
        update = orthogonal(grad.lerp(before, group["momentum"]).to(self.dtype), self.iterations)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update, alpha=-group["lr"] * _ADAMW_SIZE * max(p.shape) ** 0.5)


def orthogonal(matrix: Tensor, iterations: int) -> Tensor:
    """Its singular values all near 1, by Newton-Schulz; [m, n] in its own type."""
    a, b, c = _POLYNOMIAL
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=_LEAST_NORM)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
