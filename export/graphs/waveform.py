"""The waveform part's two graphs: mel -> f0 in float64, and mel with excitation -> overlapped STFT frames of sound.

Both are incremental: every causal convolution keeps its left context as a state, so a call costs its new frames and
nothing else. Where a convolution looks to the right, the caller hands the frames it looks at.
"""

from __future__ import annotations

import numpy as np

from edge_sdk.config import WaveformConfig
from edge_sdk.export import fold_vocoder as fold
from edge_sdk.export.graphs.blocks import Array, Tensors
from edge_sdk.export.graphs.builder import GraphBuilder, Weight
from edge_sdk.export.graphs.linear import FLOAT, convolution_weight
from edge_sdk.export.graphs.vocoder_blocks import (
    causal_convolution,
    convolution,
    keep_left,
    normed_weight,
    read_normed,
)
from edge_sdk.export.reference.waveform import MAX_MAGNITUDE, POST_SLOPE, SNAKE_EPS
from edge_sdk.export.vocoder_weights import DIRECTION, F0_CONVS, residual_blocks

_FLOAT64 = 11  # onnx.TensorProto.DOUBLE
_END = 2**31


def build_f0(config: WaveformConfig, t: Tensors) -> GraphBuilder:
    """Inputs: mel [n + f0_lookahead_frames, n_mels]; states frame_cache.*. Output: f0 float64 [n], in Hz.

    In float64 as upstream: the phase integrates f0, so an error of a millihertz becomes audible as a difference.
    ONNX Runtime has no float64 convolution, so frames are set side by side and multiplied.
    """
    g = GraphBuilder("f0", policy=t.policy)
    x = g.op("Cast", g.input("mel", "float32", ("frames", config.n_mels)), to=_FLOAT64)
    for i, name in enumerate(F0_CONVS):
        with g.scope(name.removeprefix("f0_predictor.")):
            outputs, inputs, kernel = t.shapes[f"{name}.{DIRECTION}"]
            if i:
                x = keep_left(
                    g, x, f"frame_cache.{name}", kernel - 1, shape=(kernel - 1, inputs), axis=0, dtype="float64"
                )
            side_by_side = _shifted(g, x, kernel)
            matrix = _f0_matrix(g, t, name, (kernel * inputs, outputs))
            bias = _float64(t, f"{name}.bias")
            x = _elu(g, g.op("Add", g.op("MatMul", side_by_side, matrix), g.weight(bias)))
    with g.scope("classifier"):
        name = "f0_predictor.classifier"
        weight, bias = _float64(t, f"{name}.weight"), _float64(t, f"{name}.bias")
        hertz = g.op("Abs", g.op("Gemm", x, g.weight(weight), g.weight(bias), transB=1))
        g.output(g.op("Squeeze", hertz, g.ints(1)), "f0", "float64", ("new_frames",))
    return g


def _f0_matrix(g: GraphBuilder, t: Tensors, name: str, shape: tuple[int, int]) -> str:
    """A convolution's weight for frames set side by side, float64 [taps * inputs, outputs]. Stored as something less it
    is [outputs, taps * inputs], so that a block of int8 is one output's."""

    def matrix() -> Array:
        return fold.shifted_matrix(read_normed(t, name, np.float64))

    stored = f"fold/{name}.matrix"
    if g.policy.convolution(stored).kind == "fp32":
        return g.weight(Weight(stored, np.dtype(np.float64), shape, matrix))
    rows = Weight(stored, FLOAT, shape[::-1], lambda: np.ascontiguousarray(matrix().T, np.float32))
    return g.op("Transpose", g.op("Cast", convolution_weight(g, rows), to=_FLOAT64), perm=[1, 0])


def _float64(t: Tensors, name: str) -> Weight:
    return Weight(f"{name}.float64", np.dtype(np.float64), t.shapes[name], lambda: t.read(name).astype(np.float64))


def _shifted(g: GraphBuilder, x: str, kernel: int) -> str:
    """[n + kernel - 1, C] -> [n, kernel * C], oldest frame first."""
    if kernel == 1:
        return x
    parts = [
        g.op("Slice", x, g.ints(k), g.ints(k - kernel + 1 if k < kernel - 1 else _END), g.ints(0))
        for k in range(kernel)
    ]
    return g.op("Concat", *parts, axis=1)


def _elu(g: GraphBuilder, x: str) -> str:
    zero, one = g.scalar(0.0, "float64"), g.scalar(1.0, "float64")
    return g.op("Add", g.op("Max", x, zero), g.op("Sub", g.op("Exp", g.op("Min", x, zero)), one))


def build_waveform(config: WaveformConfig, t: Tensors) -> GraphBuilder:
    """n new mel frames -> the sound they complete.

    Inputs: mel [n + lookahead_frames, n_mels]; harmonics [samples, harmonics + 1], the excitation before it is merged,
    cut so that its STFT frames (no padding here) are the ones these mel frames need; first int64 [1], 1 in a
    stream's first call and 0 later; states conv_cache.*, source_cache.*.
    Outputs: overlapped [samples], windowed inverse STFT frames added up, not yet divided by the windows; the states.

    A first call makes one STFT frame more than n times the upsampling: the signal's left edge.
    """
    g = GraphBuilder("waveform", policy=t.policy)
    mel = g.input("mel", "float32", ("mel_frames", config.n_mels))
    harmonics = g.input("harmonics", "float32", ("source_samples", config.harmonics + 1))
    trunk = _Trunk(g, config, t, g.input("first", "int64", (1,)))
    with g.scope("m_source"):
        name = "m_source.l_linear"
        merged = g.op("Gemm", harmonics, *(g.weight(t.weight(f"{name}.{x}")) for x in ("weight", "bias")), transB=1)
        source = g.op("Reshape", g.op("Tanh", merged), g.ints(1, 1, -1))
    with g.scope("stft"):
        kernel = Weight.of("stft.kernel", fold.stft_kernel(config.stft_n_fft))
        stft = g.op(
            "Conv", source, g.weight(kernel), kernel_shape=[config.stft_n_fft], strides=[config.stft_hop]
        )  # [1, n_fft + 2, F]
    with g.scope("conv_pre"):
        x = g.op("Unsqueeze", g.op("Transpose", mel, perm=[1, 0]), g.ints(0))
        x = convolution(g, x, normed_weight(t, "conv_pre"), t.weight("conv_pre.bias"))
    for stage in range(config.stages):
        x = trunk.stage(x, stft, stage)
    with g.scope("conv_post"):
        x = g.op("LeakyRelu", x, alpha=POST_SLOPE)
        x = causal_convolution(g, x, "conv_post", normed_weight(t, "conv_post"), t.weight("conv_post.bias"))
    with g.scope("istft"):
        overlapped = _inverse_stft(g, x, config)
    g.output(g.op("Reshape", overlapped, g.ints(-1)), "overlapped", "float32", ("samples",))
    return g


def _inverse_stft(g: GraphBuilder, x: str, config: WaveformConfig) -> str:
    """[1, n_fft + 2, F], log magnitudes then phases before their sine -> [1, 1, (F - 1) * hop + n_fft]."""
    log_magnitude, phase = g.ops("Split", x, count=2, axis=1, num_outputs=2)
    magnitude = g.op("Min", g.op("Exp", log_magnitude), g.scalar(MAX_MAGNITUDE))
    angle = g.op("Sin", phase)
    real, imaginary = (g.op("Mul", magnitude, g.op(trig, angle)) for trig in ("Cos", "Sin"))
    spectrum = g.op("Concat", real, imaginary, axis=1)
    kernel = Weight.of("istft.kernel", fold.istft_kernel(config.stft_n_fft))
    return g.op(
        "ConvTranspose", spectrum, g.weight(kernel), kernel_shape=[config.stft_n_fft], strides=[config.stft_hop]
    )


class _Trunk:
    """The upsampling stages: each joins its share of the excitation and runs its residual blocks."""

    def __init__(self, g: GraphBuilder, config: WaveformConfig, t: Tensors, first: str) -> None:
        self.g, self.config, self.t, self.first = g, config, t, first

    def stage(self, x: str, stft: str, stage: int) -> str:
        """x [1, C, n] -> [1, C/2, n * rate], in the last stage of a first call one frame more."""
        g, c = self.g, self.config
        with g.scope(f"ups.{stage}"):
            x = self._upsample(g.op("LeakyRelu", x, alpha=c.lrelu_slope), stage)
            if stage == c.stages - 1:
                # The STFT has one frame more than the trunk: a first call mirrors frame 1 to the left.
                end = g.op("Add", self.first, g.ints(1))
                x = g.op("Concat", g.op("Slice", x, g.ints(1), end, g.ints(2)), x, axis=2)
        source_block, *blocks = residual_blocks(c, stage)
        with g.scope(f"source_downs.{stage}"):
            source = self._source(stft, stage)
        x = g.op("Add", x, self._residual(source, *source_block))
        return g.op("Mean", *(self._residual(x, *block) for block in blocks))

    def _upsample(self, x: str, stage: int) -> str:
        g, c, t, name = self.g, self.config, self.t, f"ups.{stage}"
        rate, channels = c.upsample_rates[stage], c.stage_channels(stage)
        taps = fold.repeated_taps(c.upsample_kernels[stage], rate)
        weight = t.derived(
            f"fold/{name}.phases",
            (channels * rate, 2 * channels, taps),
            lambda: fold.fold_repeat(read_normed(t, name), rate),
        )
        bias = t.derived(f"fold/{name}.bias", (channels * rate,), lambda: np.repeat(t.read(f"{name}.bias"), rate))
        x = causal_convolution(g, x, name, weight, bias)
        # [1, C * rate, n] -> [1, C, n * rate]: the phases of a frame become neighbours in time
        x = g.op("Transpose", g.op("Reshape", x, g.ints(channels, rate, -1)), perm=[0, 2, 1])
        return g.op("Reshape", x, g.ints(1, channels, -1))

    def _source(self, stft: str, stage: int) -> str:
        """STFT frames [1, n_fft + 2, F] -> this stage's rate, [1, C, n * rate]."""
        g, name, stride = self.g, f"source_downs.{stage}", self.config.source_stride(stage)
        weight, bias = (self.t.weight(f"{name}.{part}") for part in ("weight", "bias"))
        if stride > 1:
            # Output j sees frames j * stride - stride + 1 to j * stride + stride: a call that is not the first begins
            # one frame later than a first one, with one frame more from before.
            shape = (1, weight.shape[1], stride)
            stft = keep_left(g, stft, f"source_cache.{stage}", stride, shape=shape, axis=2)
            stft = g.op("Slice", stft, self.first, g.ints(_END), g.ints(2))
        return convolution(g, stft, weight, bias, stride=stride)

    def _residual(self, x: str, name: str, kernel: int, dilations: tuple[int, ...]) -> str:
        g = self.g
        with g.scope(name):
            for i, dilation in enumerate(dilations):
                y = self._activated(x, name, 1, i, dilation)
                x = g.op("Add", x, self._activated(y, name, 2, i, 1))
        return x

    def _activated(self, x: str, name: str, half: int, i: int, dilation: int) -> str:
        """Snake, then its causal convolution."""
        g, t = self.g, self.t
        conv, alpha = f"{name}.convs{half}.{i}", f"{name}.activations{half}.{i}.alpha"
        channels = t.shapes[alpha][0]
        with g.scope(f"activations{half}.{i}"):
            rate = t.derived(alpha, (1, channels, 1), lambda: t.read(alpha)[None, :, None])
            share = t.derived(
                f"fold/1/{alpha}", (1, channels, 1), lambda: 1 / (t.read(alpha) + np.float32(SNAKE_EPS))[None, :, None]
            )
            wave = g.op("Sin", g.op("Mul", x, g.weight(rate)))
            x = g.op("Add", x, g.op("Mul", g.op("Mul", wave, wave), g.weight(share)))
        with g.scope(f"convs{half}.{i}"):
            return causal_convolution(g, x, conv, normed_weight(t, conv), t.weight(f"{conv}.bias"), dilation=dilation)
