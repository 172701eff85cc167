"""The waveform part, plainly: vocoder mel -> 24 kHz PCM, with the checkpoint's own names and nothing folded.

The computation of CosyVoice3's CausalHiFTGenerator, written from its description (docs/vocoder.md). Channels lead,
[C, L], as in the checkpoint; mel is [n_mels, L].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_sdk.config import WaveformConfig
from edge_sdk.export.reference.layers import conv1d, elu, hann, leaky_relu, linear
from edge_sdk.export.vocoder_weights import DIRECTION, F0_CONVS, GAIN, residual_blocks

POST_SLOPE = 0.01  # before conv_post, whatever lrelu_slope says
SNAKE_EPS = 1e-9
MAX_MAGNITUDE = 100.0

Array = np.ndarray[Any, Any]


class WaveformReference:
    """`read` gives a tensor by its checkpoint name. The trunk is computed in `dtype`, f0 always in float64 and the
    excitation always in upstream's mixture, because its phase is an integral that no other arithmetic reproduces."""

    def __init__(self, config: WaveformConfig, read: Callable[[str], Array], dtype: Any = np.float32) -> None:
        self.config = config
        self.dtype = np.dtype(dtype)
        self._read = read

    def _w(self, name: str) -> Array:
        return self._read(name).astype(self.dtype, copy=False)

    def _normed(self, name: str, dtype: Any) -> tuple[Array, Array]:
        """A weight-normed convolution's weight and bias: gain * direction / |direction| per output channel."""
        gain, direction, bias = (self._read(f"{name}.{part}").astype(dtype) for part in (GAIN, DIRECTION, "bias"))
        return gain * direction / np.sqrt((direction * direction).sum(axis=(1, 2), keepdims=True)), bias

    def f0(self, mel: Array) -> Array:
        """mel [n_mels, L] -> Hz, float64 [L]: one right-looking convolution, four causal ones, zeros outside."""
        x = mel.astype(np.float64)
        for i, name in enumerate(F0_CONVS):
            weight, bias = self._normed(name, np.float64)
            pad = weight.shape[2] - 1
            x = elu(conv1d(x, weight, bias, left=pad if i else 0, right=0 if i else pad))
        weight, bias = (self._read(f"f0_predictor.classifier.{part}").astype(np.float64) for part in ("weight", "bias"))
        return np.abs(linear(x.T, weight, bias))[:, 0]

    def harmonics(self, f0: Array, noise: Array) -> dict[str, Array]:
        """f0 [L] in Hz, noise uniform [samples, H] -> uv [L], source [samples], and, if the phase of a frame is
        held, sine_per_frame [L, H]."""
        c, f4 = self.config, np.float32
        voiced = f0.astype(f4) > f4(c.voiced_threshold_hz)
        multiples = np.arange(1, c.harmonics + 2, dtype=f4)
        if c.running_phase:
            return self._excited(self._running(f0, multiples) * voiced[:, None, None], voiced, noise)
        turns = (f0.astype(f4)[:, None] * multiples) / f4(c.sample_rate) % f4(1)
        # torch sums float32 in a double and rounds each result; the rest of the phase is float32
        total = np.cumsum(turns.astype(np.float64), axis=0).astype(f4)
        phase = total * f4(2) * f4(np.pi) * f4(c.samples_per_frame)
        sine = f4(c.sine_amplitude) * np.sin(phase.astype(np.float64)).astype(f4) * voiced[:, None]
        held = np.repeat(sine[:, None], c.samples_per_frame, axis=1)
        return {"sine_per_frame": sine, **self._excited(held, voiced, noise)}

    def _running(self, f0: Array, multiples: Array) -> Array:
        """Sines to whose phase every sample adds its frame's f0, [L, samples_per_frame, H]."""
        c, f4 = self.config, np.float32
        hertz = np.repeat(f0.astype(f4), c.samples_per_frame).astype(np.float64)
        turns = np.cumsum(hertz[:, None] * multiples / c.sample_rate, axis=0) % 1
        sine: Array = f4(c.sine_amplitude) * np.sin(2 * np.pi * turns).astype(f4)
        return sine.reshape(len(f0), c.samples_per_frame, -1)

    def _excited(self, sine: Array, voiced: Array, noise: Array) -> dict[str, Array]:
        """sine [L, samples_per_frame, H], voiced [L], noise [samples, H] -> uv and source."""
        c, f4 = self.config, np.float32
        level = np.where(voiced, f4(c.noise_sigma), f4(c.sine_amplitude) / f4(3))
        mixed = sine.reshape(noise.shape) + np.repeat(level[:, None], c.samples_per_frame, axis=0) * noise
        merged = linear(mixed, *(self._read(f"m_source.l_linear.{part}") for part in ("weight", "bias")))
        return {"uv": voiced.astype(np.uint8), "source": np.tanh(merged[:, 0])}

    def stft(self, source: Array) -> Array:
        """[samples] -> [n_fft + 2, samples / hop + 1]: real parts, then imaginary parts; edges mirrored."""
        n_fft, hop = self.config.stft_n_fft, self.config.stft_hop
        padded = np.pad(source.astype(self.dtype), n_fft // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop] * hann(n_fft, self.dtype)
        spectrum = np.fft.rfft(frames, axis=1).T
        return np.concatenate([spectrum.real, spectrum.imag]).astype(self.dtype)

    def istft(self, spectrum: Array) -> Array:
        """complex [n_fft/2 + 1, F] -> [(F - 1) * hop]: overlapped windows over the sum of their squares."""
        n_fft, hop = self.config.stft_n_fft, self.config.stft_hop
        window = hann(n_fft, np.float64)
        frames = np.fft.irfft(spectrum.T, n_fft, axis=1) * window
        total, weight = np.zeros((len(frames) - 1) * hop + n_fft), np.zeros((len(frames) - 1) * hop + n_fft)
        for k, frame in enumerate(frames):
            total[k * hop : k * hop + n_fft] += frame
            weight[k * hop : k * hop + n_fft] += window**2
        half = n_fft // 2
        return (total[half:-half] / weight[half:-half]).astype(self.dtype)

    def trunk(self, mel: Array, source: Array) -> dict[str, Array]:
        """mel [n_mels, L], source [L * samples_per_frame] -> wav and what lies on the way."""
        c = self.config
        out = {"source_stft": self.stft(source)}
        weight, bias = self._normed("conv_pre", self.dtype)
        x = out["conv_pre_out"] = conv1d(mel.astype(self.dtype), weight, bias, right=c.lookahead_frames)
        for stage in range(c.stages):
            x = self._upsample(stage, leaky_relu(x, c.lrelu_slope))
            out[f"ups{stage}_out"] = x
            if stage == c.stages - 1:
                x = np.concatenate([x[:, 1:2], x], axis=1)  # a mirrored frame: as many as the STFT has
            blocks = [name for name, _, _ in residual_blocks(c, stage)]
            source_out = out[f"source_branch{stage}_out"] = self._source_branch(stage, out["source_stft"], blocks[0])
            x = x + source_out
            x = np.mean([self._residual(stage, name, x) for name in blocks[1:]], axis=0, dtype=self.dtype)
        weight, bias = self._normed("conv_post", self.dtype)
        x = conv1d(leaky_relu(x, POST_SLOPE), weight, bias, left=weight.shape[2] - 1)
        out["conv_post_out"] = x
        log_magnitude, phase = np.split(x, 2)
        magnitude = np.minimum(np.exp(log_magnitude), self.dtype.type(MAX_MAGNITUDE))
        wave = self.istft(magnitude * np.exp(1j * np.sin(phase)))
        out["wav"] = np.clip(wave, -c.audio_limit, c.audio_limit)
        return out

    def _upsample(self, stage: int, x: Array) -> Array:
        weight, bias = self._normed(f"ups.{stage}", self.dtype)
        repeated = np.repeat(x, self.config.upsample_rates[stage], axis=1)
        return conv1d(repeated, weight, bias, left=weight.shape[2] - 1)

    def _source_branch(self, stage: int, stft: Array, block: str) -> Array:
        stride = self.config.source_stride(stage)
        weight, bias = (self._w(f"source_downs.{stage}.{part}") for part in ("weight", "bias"))
        return self._residual(stage, block, conv1d(stft, weight, bias, left=stride - 1, stride=stride))

    def _residual(self, stage: int, name: str, x: Array) -> Array:
        dilations = next(d for block, _, d in residual_blocks(self.config, stage) if block == name)
        for i, dilation in enumerate(dilations):
            y = self._causal(f"{name}.convs1.{i}", self._snake(f"{name}.activations1.{i}", x), dilation)
            x = x + self._causal(f"{name}.convs2.{i}", self._snake(f"{name}.activations2.{i}", y), 1)
        return x

    def _causal(self, name: str, x: Array, dilation: int) -> Array:
        weight, bias = self._normed(name, self.dtype)
        return conv1d(x, weight, bias, left=(weight.shape[2] - 1) * dilation, dilation=dilation)

    def _snake(self, name: str, x: Array) -> Array:
        alpha = self._w(f"{name}.alpha")[:, None]
        result: Array = x + np.sin(alpha * x) ** 2 / (alpha + self.dtype.type(SNAKE_EPS))
        return result
