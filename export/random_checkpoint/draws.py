"""Random tensors described, not held: numbers come block by block from (seed, tensor name), whatever the order.

Only integers and exactly rounded float32 operations make them, so the bytes are the same on every machine and with
every version of NumPy (whose normal distributions are not promised to stay).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_BLOCK_VALUES = 1 << 18  # numbers made at once: 1 MB, and some times that on the way
# The sum of four 16-bit numbers: near enough to a normal distribution, and bounded, at 3.46 deviations.
_CENTRE = 4 * 65535 // 2
_DEVIATION = 65536.0 / math.sqrt(3.0)


class Draws:
    """An endless stream of numbers of mean 0 and variance 1, told by (seed, name)."""

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def integers(self, count: int) -> Array:
        """int64 [count] of mean 0 and deviation 65536 / sqrt(3)."""
        raw: Array = self._bits.random_raw(count)
        parts = raw.astype("<u8", copy=False).view("<u2").reshape(count, 4)
        total: Array = parts.sum(axis=1, dtype=np.int64)
        return total - _CENTRE

    def normal(self, count: int) -> Array:
        """float32 [count]."""
        return self.integers(count).astype(np.float32) * np.float32(1.0 / _DEVIATION)


@dataclass(frozen=True, eq=False)
class RandomTensor:
    """values = offset + std * row_gain * draws, with `row_gain` and `offset` per row, [rows], or one number.

    Args:
        shape: rows first.
        std: deviation of the values.
        row_spread: rows differ in size by this share (deviation), as trained embeddings do.
        zero_sum: take each row's mean out of its draws, so that a constant input has no effect.
    """

    name: str
    shape: tuple[int, ...]
    std: float = 0.0
    offset: float | Array = 0.0
    row_gain: float | Array = 1.0
    row_spread: float = 0.0
    zero_sum: bool = False

    def blocks(self, seed: int) -> Iterator[Array]:
        """The tensor in order as float32 [rows, values of a row] pieces."""
        rows, width = self.shape[0], math.prod(self.shape[1:])
        draws, sizes = Draws(seed, self.name), Draws(seed, f"{self.name}#rows")
        step = max(1, _BLOCK_VALUES // width)
        for begin in range(0, rows, step):
            count = min(step, rows - begin)
            gain = np.float32(self.std) * _rows(self.row_gain, begin, count)
            if self.row_spread:
                gain = gain * (np.float32(1.0) + np.float32(self.row_spread) * sizes.normal(count))[:, None]
            values = draws.integers(count * width).reshape(count, width)
            if self.zero_sum:
                values = values - values.sum(axis=1, keepdims=True) // width
            yield values.astype(np.float32) * np.float32(1.0 / _DEVIATION) * gain + _rows(self.offset, begin, count)

    def array(self, seed: int) -> Array:
        """The whole tensor, float32; for small ones."""
        return np.concatenate(list(self.blocks(seed))).reshape(self.shape)


def _rows(value: float | Array, begin: int, count: int) -> Array:
    """Rows of a per-row value as float32 [count, 1] or [1, 1]."""
    array = np.asarray(value, np.float32).reshape(-1, 1)
    return array[begin : begin + count] if len(array) > 1 else array
