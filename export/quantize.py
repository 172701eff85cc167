"""Weight-only quantization: round to nearest, symmetric, in blocks along each row, the same bytes every time.

The layout is csrc/kernels/matrix.h's, which is that of ONNX Runtime's MatMulNBits and GatherBlockQuantized: per row
`blocks` blocks of `block` values, the last one filled up with zero points; int4 two values a byte, the even one in the
low nibble; a value is (q - 8) * scale, of int8 (q - 128) * scale, so that no zero points are stored. Scales are
float16, rounded before the values are divided by them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from edge_sdk.errors import ExportError

Array = np.ndarray[Any, Any]
Kind = Literal["fp32", "fp16", "int8", "int4"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DEFAULT_BLOCK = 128
SMALLEST_BLOCK = 16  # of ONNX Runtime's kernels
_BITS = {"int8": 8, "int4": 4}
_CHUNK = 1 << 20  # values that are quantized at once: bounds what is held beside the source


@dataclass(frozen=True)
class Scheme:
    """How a tensor is stored: its kind and, of a quantized one, the values that share a scale."""

    kind: Kind = "fp32"
    block: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ExportError(f"scheme '{self.kind}' is not one of {', '.join(KINDS)}")
        whole = self.block >= SMALLEST_BLOCK and not self.block & (self.block - 1) if self.quantized else not self.block
        if not whole:
            raise ExportError(f"scheme '{self.kind}' with blocks of {self.block}: int8 and int4 take a power of two")

    @property
    def quantized(self) -> bool:
        return self.kind in _BITS

    @property
    def bits(self) -> int:
        return _BITS[self.kind]

    def blocks(self, cols: int) -> int:
        return -(-cols // self.block)

    def row_bytes(self, cols: int) -> int:
        return self.blocks(cols) * self.block * self.bits // 8

    def __str__(self) -> str:
        return f"{self.kind}, blocks of {self.block}" if self.quantized else self.kind


FP32 = Scheme()


@dataclass(frozen=True)
class QuantTensor:
    """values uint8 [rows, row_bytes], scales float16 [rows, blocks] of a matrix [rows, cols]."""

    scheme: Scheme
    cols: int
    values: Array
    scales: Array

    def dequantize(self) -> Array:
        """float32 [rows, cols]: the numbers that a kernel multiplies with."""
        return dequantize(self.values, self.scales, self.scheme, self.cols)


def quantize(matrix: Array, scheme: Scheme, name: str = "matrix") -> QuantTensor:
    """float32 [rows, cols] -> its blocks. The whole result is held; `quantize_pieces` holds a piece of it."""
    pieces = list(quantize_pieces([matrix], scheme, name))
    values, scales = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return QuantTensor(scheme, matrix.shape[1], values, scales)


def quantize_pieces(source: Iterable[Array], scheme: Scheme, name: str) -> Iterator[tuple[Array, Array]]:
    """Pieces float32 [n, cols] of a matrix -> (values, scales) of some rows at a time, in order."""
    for rows in chunks(source):
        yield _quantize_rows(rows, scheme, name)


def chunks(source: Iterable[Array]) -> Iterator[Array]:
    """Pieces [..., cols] of a tensor -> views of some rows at a time, [n, cols]."""
    for piece in source:
        rows = piece.reshape(-1, piece.shape[-1])
        step = max(1, _CHUNK // rows.shape[1])
        for at in range(0, len(rows), step):
            yield rows[at : at + step]


def _quantize_rows(rows: Array, scheme: Scheme, name: str) -> tuple[Array, Array]:
    count, cols = rows.shape
    blocks = _split(rows, scheme.block)
    half = 1 << (scheme.bits - 1)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)[..., 0]
    # The value of largest size becomes -8 (-128), whatever its sign: 8 steps to it where -7..7 would leave 7.
    with np.errstate(over="ignore"):
        scales = (largest / np.float32(-half)).astype(np.float16)
    if not np.isfinite(scales).all():
        raise ExportError(
            f"tensor '{name}' has values up to {np.abs(largest).max():.3g}, more than a float16 scale of {scheme.kind} "
            "can carry: give it fp32 in a recipe"
        )
    divisor = scales.astype(np.float32)[..., None]
    q = np.rint(np.divide(blocks, divisor, out=np.zeros_like(blocks), where=divisor != 0))
    unsigned = (np.clip(q, -half, half - 1) + half).astype(np.uint8)
    return _pack(unsigned, scheme).reshape(count, scheme.row_bytes(cols)), scales


def _split(rows: Array, block: int) -> Array:
    """[n, cols] -> [n, blocks, block], zeros behind the last column."""
    count, cols = rows.shape
    fill = -cols % block
    padded = np.pad(rows, ((0, 0), (0, fill))) if fill else rows
    return padded.reshape(count, -1, block)


def _pack(unsigned: Array, scheme: Scheme) -> Array:
    return unsigned if scheme.bits == 8 else unsigned[..., 0::2] | (unsigned[..., 1::2] << 4)


def dequantize(values: Array, scales: Array, scheme: Scheme, cols: int) -> Array:
    """values uint8 [..., row_bytes], scales [..., blocks] -> float32 [..., cols]."""
    if scheme.bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1)
    q = values.reshape(*scales.shape, scheme.block).astype(np.float32) - np.float32(1 << (scheme.bits - 1))
    wide: Array = (q * scales.astype(np.float32)[..., None]).reshape(*scales.shape[:-1], -1)
    return wide[..., :cols]


def quantize_activations(x: Array, block: int) -> Array:
    """What accuracy_level 4 makes of activations [rows, cols]: int8 per row and block, largest value 127, as numbers
    again. The rounding is ONNX Runtime's: times the reciprocal of the scale, ties to even, in float32."""
    blocks = _split(x.astype(np.float32, copy=False), block)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    reciprocal = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    wide: Array = (np.rint(blocks * reciprocal) * scale).reshape(len(x), -1)
    return wide[:, : x.shape[1]]


def expert_block(scheme: Scheme, *widths: int) -> int:
    """The largest block up to the scheme's that fills every one of the widths, 0 if there is none: of experts ONNX
    Runtime takes no block that is not full."""
    size = scheme.block
    while size >= SMALLEST_BLOCK:
        if all(width % size == 0 for width in widths):
            return size
        size //= 2
    return 0


def relative_rms(found: Array, expected: Array) -> float:
    """Error of a tensor: norm of the difference over the norm, summed in float64."""
    difference = np.subtract(found, expected, dtype=np.float64)
    norm = math.sqrt(float(np.square(expected, dtype=np.float64).sum()))
    return math.sqrt(float(np.square(difference).sum())) / max(norm, 1e-30)
