"""Which examples and random numbers a step takes: told by the seed and the step alone, whatever ran before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def numbers(seed: int, step: int, what: str = "") -> np.random.Generator:
    """Random numbers for one step's batch: told by the seed, the step and a name."""
    return np.random.default_rng([seed, step, *what.encode()])


def order(seed: int, step: int, count: int, batch: int) -> np.ndarray[Any, Any]:
    """Which of `count` examples step `step` takes, int64 [batch]: every one once, in an order drawn for each round."""
    places = np.arange(step * batch, (step + 1) * batch)
    rounds = {int(r): numbers(seed, int(r), "round").permutation(count) for r in np.unique(places // count)}
    return np.array([rounds[int(p // count)][p % count] for p in places], np.int64)


def to_device(batch: Any, device: torch.device) -> Any:
    """The tensors of a batch, in whatever dicts, lists, tuples and dataclasses, moved there."""
    if isinstance(batch, Tensor):
        # On a CPU a copy too: NumPy's memory begins where it likes, and a product may be summed differently for it.
        return torch.empty_like(batch, device=device).copy_(batch, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        return type(batch)(to_device(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        moved = {f.name: to_device(getattr(batch, f.name), device) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **moved)
    return batch
