"""Every fold of the vocoder's weights gives what the unfolded arithmetic gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_sdk.export import fold_vocoder as fold
from edge_sdk.export.reference.flow import FlowReference, time_grid
from edge_sdk.export.reference.layers import conv1d, hann, layer_norm, linear
from edge_sdk.export.vocoder_checkpoint import VocoderCheckpoint
from edge_sdk.export.vocoder_weights import BLOCKS, ESTIMATOR
from tests.tolerances import FOLD_FLOAT64_RELATIVE, FOLD_RELATIVE, relative
from tests.vocoder import goldens

Array = np.ndarray[Any, Any]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_weight_norm() -> None:
    gain, direction = random(6, 1, 1), random(6, 5, 3, seed=1)
    rows = zip(gain.astype(np.float64), direction.astype(np.float64), strict=True)
    expected = np.stack([g * v / np.sqrt((v**2).sum()) for g, v in rows])
    assert relative(fold.weight_norm(gain, direction), expected) < FOLD_RELATIVE
    exact = fold.weight_norm(gain, direction, np.float64)
    assert exact.dtype == np.float64 and relative(exact, expected) < FOLD_FLOAT64_RELATIVE


def test_time_grid_is_upstreams() -> None:
    times, lengths = time_grid(10)
    np.testing.assert_array_equal(times, goldens.arrays("offline_40")["t_used"])
    assert times[-1] + lengths[-1] == 1


@pytest.mark.parametrize("steps", [4, 5, 10])
def test_time_grid_like_torch(steps: int) -> None:
    torch = pytest.importorskip("torch")
    span = 1 - torch.cos(torch.linspace(0, 1, steps + 1) * 0.5 * torch.pi)
    t, dt = span[0], span[1] - span[0]
    for i, found in enumerate(zip(*time_grid(steps), strict=True), start=2):
        assert found == (t, dt)
        t = t + dt
        dt = span[min(i, steps)] - t


def test_step_rows() -> None:
    times, lengths = fold.step_rows((10, 5, 4))
    assert times.shape == lengths.shape == (19,) and times.dtype == np.float32
    for start, steps in ((0, 10), (10, 5), (15, 4)):
        np.testing.assert_array_equal(times[start : start + steps], time_grid(steps)[0])
        np.testing.assert_array_equal(lengths[start : start + steps], time_grid(steps)[1])


def test_modulation_tables(tiny_source: VocoderCheckpoint) -> None:
    read = tiny_source.flow_weights.read
    reference = FlowReference(tiny_source.flow, read, np.float64)
    times = fold.step_rows((10, 4))[0]
    mlp = f"{ESTIMATOR}.time_embed.time_mlp"
    activated = fold.activated_time(times, *(read(f"{mlp}.{i}.{p}") for i in (0, 2) for p in ("weight", "bias")))
    block, last = f"{BLOCKS}.1.attn_norm.linear", f"{ESTIMATOR}.norm_out.linear"
    table = fold.attention_table(activated, read(f"{block}.weight"), read(f"{block}.bias"))
    norm = fold.norm_table(activated, read(f"{last}.weight"), read(f"{last}.bias"))
    assert table.shape == (14, 6, 64) and norm.shape == (14, 2, 64)
    x = random(9, 64).astype(np.float64)
    for row, t in enumerate(times):
        embedding = reference.time_embedding(float(t))
        silu = embedding / (1 + np.exp(-embedding))
        chunks = linear(silu, read(f"{block}.weight").astype(np.float64), read(f"{block}.bias")).reshape(6, 64)
        for shift, scale, gate in ((0, 1, 2), (3, 4, 5)):
            expected = layer_norm(x, 1e-6) * (1 + chunks[scale]) + chunks[shift]
            found = layer_norm(x, 1e-6) * table[row, scale] + table[row, shift]
            assert relative(found, expected) < FOLD_RELATIVE
            assert relative(table[row, gate], chunks[gate]) < FOLD_RELATIVE
        scale_last, shift_last = linear(silu, read(f"{last}.weight").astype(np.float64), read(f"{last}.bias")).reshape(
            2, 64
        )
        expected = layer_norm(x, 1e-6) * (1 + scale_last) + shift_last
        assert relative(layer_norm(x, 1e-6) * norm[row, 0] + norm[row, 1], expected) < FOLD_RELATIVE


def test_input_projection_without_the_dead_columns() -> None:
    weight = random(12, 4 * 5)
    x, mu, speaker = random(7, 5, seed=1), random(7, 5, seed=2), random(5, seed=3)
    row = np.concatenate([x, np.zeros((7, 5), np.float32), mu, np.tile(speaker, (7, 1))], axis=1)
    by_x, by_mu, by_speaker = fold.split_input(weight, 5)
    assert relative(x @ by_x.T + mu @ by_mu.T + speaker @ by_speaker.T, row @ weight.T) < FOLD_RELATIVE


def test_padded_heads_leave_scores_and_sums() -> None:
    wq, wk, wv, wo = (random(3 * 6, 10, seed=i) for i in range(4))
    x = random(8, 10, seed=9)

    def attend(q: Array, k: Array, v: Array, out: Array, head: int) -> Array:
        q, k, v = ((x @ w.T).reshape(8, 3, head).transpose(1, 0, 2) for w in (q, k, v))
        scores = np.exp(q @ k.transpose(0, 2, 1))
        mixed = scores / scores.sum(-1, keepdims=True) @ v
        result: Array = mixed.transpose(1, 0, 2).reshape(8, -1) @ out
        return result

    q8, k8, v8, o8 = (fold.pad_heads(w, 3, 6, 8) for w in (wq, wk, wv, wo))
    assert q8.shape == (24, 10)
    found, expected = attend(q8, k8, v8, o8, head=8), attend(wq, wk, wv, wo, head=6)
    assert relative(found, expected) < FOLD_RELATIVE
    np.testing.assert_array_equal(fold.pad_heads(random(18), 3, 6, 8).reshape(3, 8)[:, 6:], 0)


@pytest.mark.parametrize(("kernel", "rate"), [(16, 8), (11, 5), (7, 3), (3, 3), (4, 3), (5, 1), (1, 1), (9, 2), (2, 2)])
def test_repeat_then_convolve(kernel: int, rate: int) -> None:
    weight, bias, x = random(4, 3, kernel), random(4, seed=1), random(3, 11, seed=2)
    expected = conv1d(np.repeat(x, rate, axis=1), weight, bias, left=kernel - 1)
    folded = fold.fold_repeat(weight, rate)
    taps = fold.repeated_taps(kernel, rate)
    assert folded.shape == (4 * rate, 3, taps)
    phases = conv1d(x, folded, np.repeat(bias, rate), left=taps - 1)
    found = phases.reshape(4, rate, 11).transpose(0, 2, 1).reshape(4, -1)
    assert relative(found, expected) < FOLD_RELATIVE


def test_three_inputs_per_phase_at_the_released_sizes() -> None:
    assert [fold.repeated_taps(k, r) for k, r in ((16, 8), (11, 5), (7, 3))] == [3, 3, 3]


def test_convolution_as_a_matrix() -> None:
    weight, x = random(4, 3, 5).astype(np.float64), random(3, 11, seed=2).astype(np.float64)
    side_by_side = np.concatenate([x.T[k : k + 7] for k in range(5)], axis=1)
    expected = conv1d(x, weight, np.zeros(4))
    assert relative((side_by_side @ fold.shifted_matrix(weight)).T, expected) < FOLD_FLOAT64_RELATIVE


@pytest.mark.parametrize(("n_fft", "hop"), [(16, 4), (8, 2), (12, 3)])
def test_fourier_kernels(n_fft: int, hop: int) -> None:
    signal = random(n_fft * 5)
    frames = np.lib.stride_tricks.sliding_window_view(signal, n_fft)[::hop] * hann(n_fft, np.float64)
    expected = np.fft.rfft(frames).T
    forward = fold.stft_kernel(n_fft)
    found = conv1d(signal[None], forward, np.zeros(n_fft + 2, np.float32), stride=hop)
    assert relative(found, np.concatenate([expected.real, expected.imag])) < FOLD_RELATIVE
    # One transposed frame is the windowed frame again.
    backward = fold.istft_kernel(n_fft)[:, 0]
    again = found.T @ backward
    assert relative(again, frames * hann(n_fft, np.float64)) < FOLD_RELATIVE
