"""Exact algebra on the vocoder's weights: the same numbers with fewer ops (docs/vocoder.md).

Everything is worked out in float64 and rounded once. tests/vocoder/test_fold.py holds each to the unfolded arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_sdk.export.reference.flow import TIME_PERIOD, TIME_SCALE, time_grid
from edge_sdk.export.reference.layers import hann, linear, silu

ATTENTION_CHUNKS = 6  # shift, scale and gate of attention, then of the feed-forward
Array = np.ndarray[Any, Any]


def weight_norm(gain: Array, direction: Array, dtype: Any = np.float32) -> Array:
    """gain [O, 1, 1], direction [O, I, K] -> the weight they stand for, [O, I, K] in `dtype`."""
    wide = direction.astype(np.float64)
    norm = np.sqrt((wide * wide).sum(axis=(1, 2), keepdims=True))
    weight: Array = gain.astype(np.float64) * wide / norm
    return weight.astype(dtype)


def step_rows(step_counts: tuple[int, ...]) -> tuple[Array, Array]:
    """Times and step lengths of all step counts one after another, float32 [sum(step_counts)] each."""
    grids = [time_grid(count) for count in step_counts]
    return np.concatenate([t for t, _ in grids]), np.concatenate([dt for _, dt in grids])


def activated_time(times: Array, w0: Array, b0: Array, w2: Array, b2: Array) -> Array:
    """The time MLP and the SiLU that every block applies to its output: [rows] -> float64 [rows, dim]."""
    half = w0.shape[1] // 2
    frequency = np.exp(-np.log(TIME_PERIOD) / (half - 1) * np.arange(half))
    angle = TIME_SCALE * times.astype(np.float64)[:, None] * frequency
    x = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    return silu(linear(silu(linear(x, w0.astype(np.float64), b0)), w2.astype(np.float64), b2))


def attention_table(activated: Array, weight: Array, bias: Array) -> Array:
    """A block's modulation for every row of `activated`: float32 [rows, 6, dim].

    Order: shift, 1 + scale, gate of attention, then of the feed-forward: the norm that follows takes them as they are.
    """
    table = linear(activated, weight.astype(np.float64), bias).reshape(len(activated), ATTENTION_CHUNKS, -1)
    table[:, [1, 4]] += 1
    return table.astype(np.float32)


def norm_table(activated: Array, weight: Array, bias: Array) -> Array:
    """The last norm's modulation: float32 [rows, 2, dim], 1 + scale, then shift."""
    table = linear(activated, weight.astype(np.float64), bias).reshape(len(activated), 2, -1)
    table[:, 0] += 1
    return table.astype(np.float32)


def split_input(weight: Array, n_mels: int) -> tuple[Array, Array, Array]:
    """The input projection's columns for x, mu and the speaker, [dim, n_mels] each.

    Those of the prompt mel are cut: it is always zero here.
    """
    x, _prompt, mu, speaker = (weight[:, i * n_mels : (i + 1) * n_mels] for i in range(4))
    return x, mu, speaker


def pad_heads(matrix: Array, heads: int, head_dim: int, padded: int) -> Array:
    """Rows [heads * head_dim, ...] -> [heads * padded, ...]: zeros behind each head."""
    split = matrix.reshape(heads, head_dim, -1)
    out = np.zeros((heads, padded, split.shape[2]), matrix.dtype)
    out[:, :head_dim] = split
    return out.reshape(heads * padded, *matrix.shape[1:])


def repeated_taps(kernel: int, rate: int) -> int:
    """Distinct inputs that a causal kernel sees of a sequence whose every value is repeated `rate` times."""
    return -(-(kernel - 1) // rate) + 1


def fold_repeat(weight: Array, rate: int) -> Array:
    """Repeat every frame `rate` times, then a causal convolution = one convolution per output phase.

    Taps of the kernel that fall on copies of the same frame add up.

    Args:
        weight: [O, I, K].
    Returns:
        [O * rate, I, taps], row o * rate + p for phase p; causal as well: the last tap is the current frame.
    """
    outputs, inputs, kernel = weight.shape
    taps = repeated_taps(kernel, rate)
    folded = np.zeros((outputs, rate, inputs, taps))
    for phase in range(rate):
        for k in range(kernel):
            back = (phase - (kernel - 1) + k) // rate  # frames from the current one, <= 0
            folded[:, phase, :, taps - 1 + back] += weight[:, :, k]
    return folded.reshape(outputs * rate, inputs, taps).astype(np.float32)


def shifted_matrix(weight: Array) -> Array:
    """A convolution's weight [O, I, K] as a matrix [K * I, O] for frames set side by side, oldest first."""
    outputs, inputs, kernel = weight.shape
    return np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(kernel * inputs, outputs))


def stft_kernel(n_fft: int) -> Array:
    """The windowed Fourier transform as a convolution: [n_fft + 2, 1, n_fft], real rows, then imaginary rows."""
    angle = 2 * np.pi / n_fft * np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft))
    kernel = np.concatenate([np.cos(angle), -np.sin(angle)]) * hann(n_fft, np.float64)
    return kernel[:, None, :].astype(np.float32)


def istft_kernel(n_fft: int) -> Array:
    """Its inverse, windowed again, as a transposed convolution: [n_fft + 2, 1, n_fft].

    The sum of squared windows is not divided out: at the edges it depends on where the signal begins and ends.
    """
    bins = n_fft // 2 + 1
    angle = 2 * np.pi / n_fft * np.outer(np.arange(bins), np.arange(n_fft))
    weight = np.where((np.arange(bins) % (n_fft // 2)) == 0, 1.0, 2.0)[:, None] / n_fft  # inner bins stand for two
    kernel = np.concatenate([weight * np.cos(angle), -weight * np.sin(angle)]) * hann(n_fft, np.float64)
    return kernel[:, None, :].astype(np.float32)
