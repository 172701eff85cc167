"""Layers of the vocoder's references, in NumPy, in the precision of their input."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_COLUMNS = 4096  # output frames of a convolution made at once: bounds the unrolled input


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """x [..., in], weight [out, in], bias [out] -> [..., out]."""
    result: Array = x @ weight.T + bias
    return result


def conv1d(
    x: Array, weight: Array, bias: Array, *, left: int = 0, right: int = 0, stride: int = 1, dilation: int = 1
) -> Array:
    """Zero-padded convolution along time: x [C, L], weight [O, C/groups, K], bias [O] -> [O, L']."""
    outputs, width, kernel = weight.shape
    groups = x.shape[0] // width
    padded = np.pad(x, ((0, 0), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel - 1) * dilation + 1, axis=1)
    windows = windows[:, ::stride, ::dilation]  # [C, L', K]
    result = np.empty((outputs, windows.shape[1]), x.dtype)
    per_group = outputs // groups
    for g in range(groups):
        matrix = weight[g * per_group : (g + 1) * per_group].reshape(per_group, -1)
        for at in range(0, windows.shape[1], _COLUMNS):
            columns = windows[g * width : (g + 1) * width, at : at + _COLUMNS].transpose(0, 2, 1)
            result[g * per_group : (g + 1) * per_group, at : at + _COLUMNS] = matrix @ columns.reshape(
                width * kernel, -1
            )
    return result + bias[:, None]


def layer_norm(x: Array, eps: float) -> Array:
    """Without scale and shift, over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    result: Array = centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + x.dtype.type(eps))
    return result


def silu(x: Array) -> Array:
    result: Array = x / (1 + np.exp(-x))
    return result


def mish(x: Array) -> Array:
    result: Array = x * np.tanh(np.logaddexp(0, x))
    return result.astype(x.dtype, copy=False)


def gelu_tanh(x: Array) -> Array:
    inner = x.dtype.type(np.sqrt(2 / np.pi)) * (x + x.dtype.type(0.044715) * x**3)
    result: Array = x.dtype.type(0.5) * x * (1 + np.tanh(inner))
    return result


def elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def leaky_relu(x: Array, slope: float) -> Array:
    return np.where(x > 0, x, x * x.dtype.type(slope))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = e / e.sum(axis=-1, keepdims=True)
    return result


def hann(size: int, dtype: Any) -> Array:
    """Periodic Hann window [size]."""
    window: Array = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    return window.astype(dtype)
