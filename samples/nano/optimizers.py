"""What moves the weights: AdamW alone, or Muon for the matrices inside the layers and AdamW for the rest.

Muon (Keller Jordan, 2024) makes each step of a matrix nearly orthogonal. Its steps are scaled to the size of AdamW's
(Moonlight, 2025), so that one learning rate tells both.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.errors import Error
from samples.nano.devices import multiplies_bfloat16
from samples.nano.muon import Muon
from samples.nano.settings import Schedule

_MOMENTUM = 0.95
_ITERATIONS = 4  # of Newton-Schulz; a fifth one is a twentieth of a step's time on two cores
_LAYERS = "layers", "transformer_blocks"  # of the language half, of the flow
_RATE = "rate"  # key of a parameter group: its learning rate for each of the schedule's


class Optimizers:
    """Several optimizers of one model, each with parameters of its own, taken for one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def parameters(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self._groups)

    @property
    def _groups(self) -> Iterator[dict[str, Any]]:
        return chain.from_iterable(part.param_groups for part in self.parts)

    def set_learning_rate(self, rate: float) -> None:
        for group in self._groups:
            group["lr"] = rate * group.get(_RATE, 1.0)

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """Its moments by name; empty before its first step. What is put in there is what the next step begins with."""
        for part in self.parts:
            if any(parameter is p for group in part.param_groups for p in group["params"]):
                state: dict[str, Tensor] = part.state[parameter]
                return state
        return {}


def make_optimizers(model: nn.Module, schedule: Schedule) -> Optimizers:
    """Of the parameters that require gradients. Only matrices and larger decay, not norms and biases."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise Error("nothing to train: no parameter of the model requires a gradient")
    parts: list[torch.optim.Optimizer] = []
    moved = _groups(trained, schedule, in_layers=False)
    if moved:
        parts.append(torch.optim.AdamW(moved, lr=schedule.learning_rate, betas=schedule.betas))
    matrices = _groups(trained, schedule, in_layers=True)
    if matrices:
        parts.append(
            Muon(
                matrices,
                lr=schedule.learning_rate,
                weight_decay=schedule.weight_decay / schedule.muon_rate,  # it is multiplied by the rate
                momentum=_MOMENTUM,
                iterations=_ITERATIONS,
                dtype=torch.bfloat16 if multiplies_bfloat16(trained[0][1].device) else torch.float32,
            )
        )
    return Optimizers(*parts)


def _is_muons(name: str, p: Tensor) -> bool:
    """A matrix inside a layer. Not the encoder's: they come trained, and are wide, so that Muon would take long over
    them. Nor what modulates the flow's layers by time: that is nothing at first, and small."""
    if p.dim() != 2 or name.startswith("continuous_audio_tower.") or ".attn_norm." in name:
        return False
    return any(f".{layers}." in f".{name}" for layers in _LAYERS)


def _groups(trained: list[tuple[str, Tensor]], schedule: Schedule, *, in_layers: bool) -> list[dict[str, Any]]:
    """Parameters of one optimizer: Muon's (`_is_muons`), or AdamW's, all others."""
    found: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, p in trained:
        if (schedule.muon and _is_muons(name, p)) == in_layers:
            found.setdefault((p.dim() >= 2, name.startswith(schedule.slow)), []).append(p)
    groups = []
    for (decays, slow), parameters in sorted(found.items(), reverse=True, key=lambda item: item[0]):
        rate = (schedule.muon_rate if in_layers else 1.0) * (schedule.slow_rate if slow else 1.0)
        group: dict[str, Any] = {"params": parameters, _RATE: rate}
        if not in_layers:
            group["weight_decay"] = schedule.weight_decay if decays else 0.0
        groups.append(group)
    return groups
