"""Random CosyVoice3 vocoders: flow and waveform tensors by the released names, `cosyvoice3.yaml`, voices.

What comes out is noise with the levels of speech: a mel of about -4.5 +- 2.7, a pitch that is mostly voiced, a wave of
RMS near 0.07 that does not clip; gates are open, attention picks, the two guidance rows differ. Where a large constant
comes in (the mel's mean), rows sum to zero, so that levels do not depend on the seed or the sizes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_sdk.export.random_checkpoint.draws import Draws, RandomTensor
from edge_sdk.export.random_checkpoint.specs import VocoderSpec
from edge_sdk.export.random_checkpoint.vocoder_yaml import (
    HARMONICS,
    LOOKAHEAD_FRAMES,
    LOOKAHEAD_TOKENS,
    MELS,
    SPEAKER_DIM,
    vocoder_yaml,
)
from edge_sdk.export.random_checkpoint.writer import Progress, new_folder, write_safetensors

_BIAS = 0.1
_MEL_MEAN, _MEL_BIN_STD = -4.6, 0.8  # what the last layer adds by itself; the rest of the spread is computed
_VOICE_NORM = 12.0
_F0_HZ, _F0_STD_HZ = 185.0, 65.0


def write_vocoder_checkpoint(
    directory: str | os.PathLike[str], spec: VocoderSpec, seed: int, *, progress: Progress | None = None
) -> None:
    """Write cosyvoice3.yaml, flow.safetensors, hift.safetensors (float32) and voices/<name>.npy.

    Raises:
        ExportError: the folder exists and is not empty, there is not enough space, or it cannot be written.
    """
    with new_folder(directory) as folder:
        (folder / "cosyvoice3.yaml").write_text(vocoder_yaml(spec), encoding="utf-8")
        write_safetensors(folder, "flow", list(flow_tensors(spec)), seed, progress=progress)
        write_safetensors(folder, "hift", list(waveform_tensors(spec)), seed, progress=progress)
        (folder / "voices").mkdir()
        for name in spec.voices:
            write_voice(folder / "voices" / f"{name}.npy", seed)


def write_voice(path: Path, seed: int) -> None:
    """A speaker embedding told by (seed, file name): float32 [192], not normalized, of the norm that real ones have."""
    values = Draws(seed, f"voices/{path.stem}").normal(SPEAKER_DIM)
    scaled = values.astype(np.float64) * (_VOICE_NORM / math.sqrt(float((values.astype(np.float64) ** 2).sum())))
    np.save(path, scaled.astype(np.float32), allow_pickle=False)


def flow_tensors(spec: VocoderSpec) -> Iterator[RandomTensor]:
    """Every tensor of flow.safetensors."""
    estimator = "decoder.estimator"
    yield RandomTensor("input_embedding.weight", (spec.codes, MELS), 1.0)
    # The speaker comes in with norm 1, not with values of size 1: no division by the square root of its width.
    yield from _linear("spk_embed_affine_layer", MELS, SPEAKER_DIM, 0.8 * math.sqrt(SPEAKER_DIM))
    yield from _conv("pre_lookahead_layer.conv1", spec.lookahead_width, MELS, LOOKAHEAD_TOKENS + 1, 1.2)
    yield from _conv("pre_lookahead_layer.conv2", MELS, spec.lookahead_width, 3, 1.2)
    yield from _linear(f"{estimator}.time_embed.time_mlp.0", spec.dim, spec.time_features, 1.2)
    yield from _linear(f"{estimator}.time_embed.time_mlp.2", spec.dim, spec.dim, 1.2)
    yield from _linear(f"{estimator}.input_embed.proj", spec.dim, 4 * MELS, 1.2)
    for part in ("conv1.0", "conv2.0"):
        name = f"{estimator}.input_embed.conv_pos_embed.{part}"
        yield from _conv(name, spec.dim, spec.dim // spec.position_groups, spec.position_kernel, 1.6)
    frequencies = np.array([10000.0 ** (-2 * i / spec.head_dim) for i in range(spec.head_dim // 2)], np.float32)
    yield RandomTensor(f"{estimator}.rotary_embed.inv_freq", frequencies.shape, offset=frequencies)
    for i in range(spec.depth):
        yield from _dit_block(f"{estimator}.transformer_blocks.{i}", spec)
    yield from _linear(f"{estimator}.norm_out.linear", 2 * spec.dim, spec.dim, 0.8)
    yield RandomTensor(f"{estimator}.proj_out.weight", (MELS, spec.dim), 2.1 / math.sqrt(spec.dim))
    yield RandomTensor(f"{estimator}.proj_out.bias", (MELS,), _MEL_BIN_STD, offset=_MEL_MEAN)


def _dit_block(name: str, spec: VocoderSpec) -> Iterator[RandomTensor]:
    dim, inner, ff = spec.dim, spec.heads * spec.head_dim, spec.ff_mult * spec.dim
    # Chunks: shift, scale, gate of attention, then of the feed-forward. A trained gate is open, here by half; in deep
    # models by less, so that what all layers add together stays the same.
    gate = 0.5 * min(1.0, math.sqrt(4 / spec.depth))
    offsets = np.repeat(np.array([0, 0, gate, 0, 0, gate], np.float32), dim)
    yield RandomTensor(f"{name}.attn_norm.linear.weight", (6 * dim, dim), 0.8 / math.sqrt(dim))
    yield RandomTensor(f"{name}.attn_norm.linear.bias", (6 * dim,), _BIAS, offset=offsets)
    yield from _linear(f"{name}.attn.to_q", inner, dim, 1.6)
    yield from _linear(f"{name}.attn.to_k", inner, dim, 1.6)
    yield from _linear(f"{name}.attn.to_v", inner, dim, 1.2)
    yield from _linear(f"{name}.attn.to_out.0", dim, inner, 1.2)
    yield from _linear(f"{name}.ff.ff.0.0", ff, dim, 1.2)
    yield from _linear(f"{name}.ff.ff.2", dim, ff, 1.2)


def waveform_tensors(spec: VocoderSpec) -> Iterator[RandomTensor]:
    """Every tensor of hift.safetensors, weight norm in the parametrizations spelling."""
    t, channels, stft = spec.trunk, spec.base_channels, spec.trunk.n_fft + 2  # real and imaginary parts
    yield RandomTensor("m_source.l_linear.weight", (1, HARMONICS + 1), 0.7)
    yield RandomTensor("m_source.l_linear.bias", (1,), 0.03)
    yield from _normed("conv_pre", channels, MELS, LOOKAHEAD_FRAMES + 1, 0.85, zero_sum=True)
    for stage, kernel in enumerate(t.upsample_kernels):
        yield from _normed(f"ups.{stage}", channels // 2, channels, kernel, 1.6, zero_sum=True)
        channels //= 2
        stride = math.prod(t.upsample_rates[stage + 1 :])
        yield from _conv(f"source_downs.{stage}", channels, stft, 2 * stride if stride > 1 else 1, 1.5, bias=0.05)
        size, dilations = t.source_resblock_kernels[stage], t.source_resblock_dilations
        yield from _residual(f"source_resblocks.{stage}", channels, size, len(dilations))
        for j, size in enumerate(t.resblock_kernels):
            name = f"resblocks.{stage * len(t.resblock_kernels) + j}"
            yield from _residual(name, channels, size, len(t.resblock_dilations))
    yield from _last_convolution(stft, channels)
    yield from _f0_predictor(spec.f0_channels)


def _last_convolution(stft: int, channels: int) -> Iterator[RandomTensor]:
    """Log magnitudes below -2 (the level of speech), phases of any value."""
    half = stft // 2
    offsets = np.repeat(np.array([-0.85, 0.0], np.float32), half)
    spread = np.repeat(np.array([0.4, 1.5], np.float32), half)
    yield RandomTensor("conv_post.bias", (stft,), 1.0, row_gain=spread, offset=offsets)
    yield from _weight_norm("conv_post", stft, channels, 7, 0.08, zero_sum=True)


def _f0_predictor(channels: int) -> Iterator[RandomTensor]:
    for n in range(5):
        first = n == 0
        yield from _normed(
            f"f0_predictor.condnet.{2 * n}",
            channels,
            MELS if first else channels,
            4 if first else 3,
            0.38 if first else 1.6,
            zero_sum=True,
        )
    std = _F0_STD_HZ / math.sqrt(channels)
    yield RandomTensor("f0_predictor.classifier.weight", (1, channels), std, zero_sum=True)
    yield RandomTensor("f0_predictor.classifier.bias", (1,), offset=_F0_HZ)


def _residual(name: str, channels: int, kernel: int, pairs: int) -> Iterator[RandomTensor]:
    for i in range(pairs):
        for part in ("1", "2"):
            yield from _normed(f"{name}.convs{part}.{i}", channels, channels, kernel, 0.9, zero_sum=True)
            yield RandomTensor(f"{name}.activations{part}.{i}.alpha", (channels,), 0.27, offset=1.0)


def _linear(name: str, outputs: int, inputs: int, gain: float) -> Iterator[RandomTensor]:
    yield RandomTensor(f"{name}.weight", (outputs, inputs), gain / math.sqrt(inputs))
    yield RandomTensor(f"{name}.bias", (outputs,), _BIAS)


def _conv(
    name: str, outputs: int, inputs: int, kernel: int, gain: float, *, bias: float = _BIAS
) -> Iterator[RandomTensor]:
    yield RandomTensor(f"{name}.weight", (outputs, inputs, kernel), gain / math.sqrt(inputs * kernel))
    yield RandomTensor(f"{name}.bias", (outputs,), bias)


def _normed(
    name: str, outputs: int, inputs: int, kernel: int, gain: float, *, zero_sum: bool = False
) -> Iterator[RandomTensor]:
    yield from _weight_norm(name, outputs, inputs, kernel, gain, zero_sum=zero_sum)
    yield RandomTensor(f"{name}.bias", (outputs,), 0.05)


def _weight_norm(
    name: str, outputs: int, inputs: int, kernel: int, gain: float, *, zero_sum: bool
) -> Iterator[RandomTensor]:
    """original0 is each row's norm, original1 its direction, of any length."""
    weight = f"{name}.parametrizations.weight"
    yield RandomTensor(f"{weight}.original0", (outputs, 1, 1), 0.11 * gain, offset=gain)
    yield RandomTensor(f"{weight}.original1", (outputs, inputs, kernel), 1.0, zero_sum=zero_sum)
