"""The two seeded noises of upstream, without torch: the flow's initial noise, and where the excitation's begins.

Upstream draws both from one torch CPU generator seeded with 0, which is MT19937 with the classic initialisation, the
one NumPy's RandomState(0) has too. Checked against golden `rand_noise` and, where it is installed, against torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sdk.config import FlowConfig, WaveformConfig
from edge_sdk.errors import ExportError
from edge_sdk.export.vocoder_weights import GAIN

UPSTREAM_FRAMES = 15000  # columns of the buffer that CausalConditionalCFM draws: 300 s
_BLOCK = 16  # values that torch's normal distribution makes at a time
_HALF = _BLOCK // 2

Array = np.ndarray[Any, Any]


def initial_noise(n_mels: int, frames: int) -> Array:
    """z of the flow: the first `frames` columns of upstream's buffer, float32 [n_mels, frames].

    The buffer is filled row by row over all of its columns, so all of it is drawn whatever is kept.
    """
    check_frames(frames)
    values = torch_normal(np.random.RandomState(0), n_mels * UPSTREAM_FRAMES)
    return np.ascontiguousarray(values.reshape(n_mels, UPSTREAM_FRAMES)[:, :frames])


def check_frames(frames: int) -> None:
    if not 1 <= frames <= UPSTREAM_FRAMES:
        raise ExportError(f"the initial noise has 1 to {UPSTREAM_FRAMES} columns, asked for {frames}")


def torch_normal(generator: np.random.RandomState, count: int) -> Array:
    """What `torch.randn(count)` draws on the CPU (at least 16 values), float32 [count].

    Uniforms of 24 bits, then Box-Muller over blocks of 16: the first eight give the radius, the last eight the angle.
    A count that is no multiple of 16 has its last 16 values drawn and made anew.
    """
    if count < _BLOCK:
        raise ExportError(f"torch draws fewer than {_BLOCK} normal values in another way, asked for {count}")
    values = _uniform(generator, count)
    whole = count - count % _BLOCK
    values[:whole] = _box_muller(values[:whole])
    if whole != count:
        values[-_BLOCK:] = _box_muller(_uniform(generator, _BLOCK))
    return values


def _uniform(generator: np.random.RandomState, count: int) -> Array:
    draws = generator.randint(0, 1 << 32, size=count, dtype=np.uint32)
    return (draws & 0xFFFFFF).astype(np.float32) / np.float32(1 << 24)


def _box_muller(uniform: Array) -> Array:
    """Every step rounds to float32 where torch's does; logarithm, sine and cosine are correctly rounded, torch's
    vectorised ones are not quite, which leaves one unit in the last place."""
    pairs = uniform.reshape(-1, 2, _HALF)
    log = np.log((np.float32(1) - pairs[:, 0]).astype(np.float64)).astype(np.float32)  # 1 - u is in (0, 1]
    radius = np.sqrt(np.float32(-2) * log)
    angle = (np.float32(2 * np.pi) * pairs[:, 1]).astype(np.float64)
    parts = [radius * trig(angle).astype(np.float32) for trig in (np.cos, np.sin)]
    return np.stack(parts, axis=1).reshape(-1)


def source_noise_skip(
    flow: FlowConfig, waveform: WaveformConfig, waveform_shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """Draws of the generator between its seed and the first value of the excitation's noise.

    Upstream seeds in the constructor of the flow's sampler. After that, in this order, it draws the flow's initial
    noise, the initial weights of what is made later (token embedding, speaker projection, f0 predictor), and one
    starting phase per harmonic. The released sizes give 5,052,970, as measured upstream.
    """
    predictor = sum(
        math.prod(shape)
        for name, shape in waveform_shapes.items()
        if name.startswith("f0_predictor.") and not name.endswith(GAIN)  # weight norm starts from the weight itself
    )
    return (
        _normal_draws(flow.n_mels * UPSTREAM_FRAMES)
        + _normal_draws(flow.codebook_size * flow.n_mels)
        + (flow.speaker_dim + 1) * flow.n_mels
        + predictor
        + waveform.harmonics
        + 1
    )


def _normal_draws(count: int) -> int:
    return count + (_BLOCK if count % _BLOCK else 0)
