"""What the vocoder's graphs share: causal convolutions that carry their left context, folded weight norm."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_sdk.export import fold_vocoder as fold
from edge_sdk.export.graphs.blocks import Tensors
from edge_sdk.export.graphs.builder import GraphBuilder, Weight
from edge_sdk.export.graphs.linear import convolution_weight
from edge_sdk.export.vocoder_weights import DIRECTION, GAIN

_END = 2**31  # past the end of any axis
Array = np.ndarray[Any, Any]


def keep_left(
    g: GraphBuilder, x: str, name: str, frames: int, *, shape: tuple[int, ...], axis: int, dtype: str = "float32"
) -> str:
    """Put the last `frames` of what came before in front of `x`, and hand on the new last ones.

    Declares the state `NAME` (input; zeros at the beginning) and its output, `_cache` replaced by `_cache_out`. The
    output may be bound to the input's memory: it is cut from the joined copy, which is the input's only reader.

    Args:
        name: `KIND_cache.ADDRESS` or `KIND_cache`.
        shape: of the state, `frames` standing at `axis`.
    """
    if frames == 0:
        return x
    state = g.input(name, dtype, shape)
    joined = g.op("Concat", state, x, axis=axis)
    out = name.replace("_cache", "_cache_out")
    g.op("Slice", joined, g.ints(-frames), g.ints(_END), g.ints(axis), names=[out])
    g.output(out, out, dtype, shape)
    return joined


def convolution(
    g: GraphBuilder, x: str, weight: Weight, bias: Weight, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> str:
    """x [B, C, L] -> [B, O, L'], no padding."""
    return g.op(
        "Conv",
        x,
        convolution_weight(g, weight),
        g.weight(bias),
        kernel_shape=[weight.shape[2]],
        strides=[stride],
        dilations=[dilation],
        group=groups,
    )


def causal_convolution(
    g: GraphBuilder,
    x: str,
    name: str,
    weight: Weight,
    bias: Weight,
    *,
    rows: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> str:
    """x [rows, C, n] -> [rows, O, n]; the left context lies in the state `conv_cache.NAME`."""
    frames = (weight.shape[2] - 1) * dilation
    shape = (rows, weight.shape[1] * groups, frames)
    x = keep_left(g, x, f"conv_cache.{name}", frames, shape=shape, axis=2)
    return convolution(g, x, weight, bias, dilation=dilation, groups=groups)


def normed_weight(t: Tensors, name: str) -> Weight:
    """A weight-normed layer's weight, folded, float32 [O, I, K]."""
    return t.derived(f"{name}.weight", t.shapes[f"{name}.{DIRECTION}"], lambda: read_normed(t, name))


def read_normed(t: Tensors, name: str, dtype: Any = np.float32) -> Array:
    return fold.weight_norm(t.read(f"{name}.{GAIN}"), t.read(f"{name}.{DIRECTION}"), dtype)
