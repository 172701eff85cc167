"""The references once more, with the arithmetic of a quantized bundle stated in NumPy.

Weights are rounded as export/quantize.py rounds them, activations as accuracy_level 4 does, a convolution's not at
all. Where the graphs fold, a folded weight is what is rounded, so the folds stand here too; all else is the plain
references'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_sdk.config import FlowConfig, ModelConfig, MoEConfig, TransformerConfig, WaveformConfig
from edge_sdk.export import fold, fold_vocoder
from edge_sdk.export.fold_vocoder import split_input
from edge_sdk.export.graphs.blocks import cache_head_dim
from edge_sdk.export.quantize import Scheme, expert_block, quantize, quantize_activations
from edge_sdk.export.recipe import Policy
from edge_sdk.export.reference.flow import FlowReference
from edge_sdk.export.reference.language import LanguageReference
from edge_sdk.export.reference.layers import conv1d, silu, softmax
from edge_sdk.export.reference.waveform import WaveformReference
from edge_sdk.export.vocoder_weights import ESTIMATOR, F0_CONVS
from edge_sdk.export.weights import (
    AUDIO_PROJECTION,
    CODEBOOK,
    ENCODER,
    GROUP_PROJECTION,
    HEAD,
    TEXT_EMBEDDING,
    TEXT_HEAD,
)

_INPUT = f"{ESTIMATOR}.input_embed.proj"
_KERNEL_DIMS = 3  # of a convolution's weight, and of no other
_FLOAT_LAYERS = (f"{ESTIMATOR}.time_embed.", f"{ESTIMATOR}.norm_out.")

Array = np.ndarray[Any, Any]


def rounded(matrix: Array, scheme: Scheme) -> Array:
    """A matrix [..., cols] as the scheme keeps it, float32."""
    if scheme.kind == "fp16":
        return matrix.astype(np.float16).astype(np.float32)
    if not scheme.quantized:
        return matrix
    rows = matrix.reshape(-1, matrix.shape[-1])
    return quantize(np.asarray(rows, np.float32), scheme).dequantize().reshape(matrix.shape)


def rounded_kernel(weight: Array, scheme: Scheme) -> Array:
    """A convolution's weight [O, ...] as the scheme keeps it, in its own type."""
    rows = weight.reshape(len(weight), -1).astype(np.float32)
    return weight if scheme.kind == "fp32" else rounded(rows, scheme).reshape(weight.shape).astype(weight.dtype)


def product(x: Array, matrix: Array, scheme: Scheme) -> Array:
    """x [..., in] @ matrix [out, in].T as MatMulNBits computes it: both sides rounded, the sum exact."""
    weight = rounded(matrix, scheme).astype(x.dtype, copy=False)
    if scheme.quantized:
        rows = quantize_activations(x.reshape(-1, x.shape[-1]), scheme.block)
        x = rows.reshape(x.shape).astype(x.dtype, copy=False)
    result: Array = x @ weight.T
    return result


class QuantizedLanguage(LanguageReference):
    """`policy` says how each matrix and table is stored, by the names that the graphs give them."""

    def __init__(
        self,
        model: ModelConfig,
        read: Callable[[str], Array],
        policy: Policy,
        *,
        tied: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(model, read, tied=tied, dtype=dtype)
        self._policy = policy

    def _w(self, name: str) -> Array:
        found = super()._w(name)
        return rounded_kernel(found, self._policy.convolution(name)) if found.ndim == _KERNEL_DIMS else found

    def _product(self, name: str, x: Array, matrix: Array) -> Array:
        return product(x, matrix.astype(self.dtype, copy=False), self._policy.scheme(name))

    def _table(self, name: str, matrix: Array) -> Array:
        return rounded(matrix, self._policy.scheme(name)).astype(self.dtype, copy=False)

    def _linear(self, name: str, x: Array, *, bias: bool = False) -> Array:
        y = self._product(f"{name}.weight", x, self._read(f"{name}.weight"))
        return y + self._w(f"{name}.bias") if bias else y

    def _grouped(self, normed: Array, tower: Array) -> Array:
        """Mean over each group, then the folded projection; filler counts as zero, bias included."""
        size = self.model.group_size
        filled = self._fill(normed, len(tower) // size)
        share = self._fill(np.ones((len(normed), 1), self.dtype), len(tower) // size)
        mean, share = (v.reshape(-1, size, v.shape[1]).mean(axis=1) for v in (filled, share))
        parts = self._read(AUDIO_PROJECTION), self._read(f"{ENCODER}.proj.weight"), self._read(f"{ENCODER}.proj.bias")
        weight, bias = fold.audio_projection(*parts)
        name = "fold/encoder.proj*audio_tower.continual_output_matching"
        grouped: Array = self._product(name, mean, weight) + share * bias.astype(self.dtype)
        if self.model.audio_features_mode == "add":
            grouped = grouped + self._w(CODEBOOK)[self.model.speech_ids.pad] @ self._w(GROUP_PROJECTION).T
        return grouped

    def group_speech(self, ids: Array) -> Array:
        table = fold.group_table(self._read(CODEBOOK), self._read(GROUP_PROJECTION), self.model.group_size)
        result: Array = self._table("fold/codebook*audio_tower.output_matching", table)[ids].sum(axis=1)
        return result

    def embed_text(self, ids: Array) -> Array:
        return self._table(TEXT_EMBEDDING, self._read(TEXT_EMBEDDING)[ids])

    def text_logits(self, hidden: Array) -> Array:
        name = TEXT_EMBEDDING if self._tied else TEXT_HEAD
        return self._product(name, hidden, self._read(name))

    def speech_positions(self, head_input: Array) -> Array:
        """[T, hidden] -> rows [T * G, width]: both projections in one, as the graph has them."""
        names = ("pre_matching.weight", "pre_matching.bias", "input_matching.weight")
        weight, bias = fold.speech_input(*(self._read(f"{HEAD}.{n}") for n in names))
        rows = self._product("fold/pre_matching.weight*input_matching", head_input, weight) + bias.astype(self.dtype)
        result: Array = rows.reshape(len(head_input) * self.model.group_size, -1)
        return result

    def speech_inputs(self, positions: Array, previous: Array) -> Array:
        table = fold.speech_input_table(self._read(CODEBOOK), self._read(f"{HEAD}.input_matching.weight"))
        result: Array = positions + self._table("fold/codebook*input_matching", table)[previous]
        return result

    def speech_logits(self, hidden: Array) -> Array:
        table = fold.speech_output_table(self._read(CODEBOOK), self._read(f"{HEAD}.output_matching.weight"))
        return self._product("fold/codebook*output_matching", hidden, table)

    def _experts(self, prefix: str, c: TransformerConfig, h: Array) -> Array:
        """The op has int8 activations for int8 experts, and float32 ones for int4."""
        moe = c.moe
        if moe is None:
            raise ValueError("this stack has no experts")
        scheme = self._expert_scheme(prefix, moe, h.shape[1])
        routing = softmax(self._linear(f"{prefix}.gate", h))
        chosen = np.argsort(-routing, axis=1, kind="stable")[:, : moe.experts_per_token]
        weights = np.take_along_axis(routing, chosen, axis=1)
        if moe.normalize_weights:
            weights = weights / weights.sum(axis=1, keepdims=True)
        out = np.zeros_like(h)
        for e in np.unique(chosen):
            rows, slots = np.nonzero(chosen == e)
            out[rows] += weights[rows, slots][:, None] * self._expert(f"{prefix}.experts.{e}", h[rows], scheme)
        return out

    def _expert_scheme(self, prefix: str, moe: MoEConfig, width: int) -> Scheme:
        schemes = [self._policy.scheme(f"{prefix}.experts.{name}") for name in ("gate_up", "down")]
        if not all(s.quantized for s in schemes):
            return schemes[0]
        return Scheme(schemes[0].kind, expert_block(min(schemes, key=lambda s: s.block), width, moe.intermediate_size))

    def _expert(self, prefix: str, h: Array, scheme: Scheme) -> Array:
        def multiply(name: str, x: Array) -> Array:
            matrix = self._w(f"{prefix}.{name}.weight")
            if scheme.kind == "int4":
                result: Array = x @ rounded(matrix, scheme).astype(x.dtype, copy=False).T
                return result
            return product(x, matrix, scheme)

        return multiply("down_proj", silu(multiply("gate_proj", h)) * multiply("up_proj", h))


class QuantizedFlow(FlowReference):
    """The flow by a policy. Tables over the steps, and what x itself is multiplied with, are float32 in every one."""

    def __init__(
        self, config: FlowConfig, read: Callable[[str], Array], policy: Policy, dtype: Any = np.float32
    ) -> None:
        super().__init__(config, read, dtype)
        self._policy = policy

    def _w(self, name: str) -> Array:
        if name == "input_embedding.weight":
            table = rounded(self._read(name), self._policy.scheme("input_embedding.padded"))
            return table.astype(self.dtype, copy=False)
        found = super()._w(name)
        return rounded_kernel(found, self._policy.convolution(name)) if found.ndim == _KERNEL_DIMS else found

    def _linear(self, name: str, x: Array) -> Array:
        if name.startswith(_FLOAT_LAYERS) or name.endswith(".attn_norm.linear"):
            return super()._linear(name, x)
        if name == _INPUT:
            return self._input(x)
        stored = name
        for part in ("to_q", "to_k", "to_v"):  # one matrix in the graph; its rows are rounded one by one
            stored = stored.removesuffix(part) + "to_qkv" if stored.endswith(f".{part}") else stored
        weight = self._w(f"{name}.weight")
        if name.endswith(".to_out.0"):
            x, weight = self._padded(x), self._padded(weight)
        y = product(x, weight, self._policy.scheme(f"{stored}.weight"))
        return y + self._w(f"{name}.bias")

    def _padded(self, a: Array) -> Array:
        """[..., heads * d], each head filled up to the cache's size: blocks are cut from that."""
        c, head = self.config, cache_head_dim(self.config.head_dim)
        heads = a.reshape(*a.shape[:-1], c.heads, c.head_dim)
        wide = np.pad(heads, [(0, 0)] * (heads.ndim - 1) + [(0, head - c.head_dim)])
        return wide.reshape(*a.shape[:-1], c.heads * head)

    def _input(self, rows: Array) -> Array:
        """The input projection, part by part: x, an empty prompt, mu, speaker."""
        x, _, mu, speaker = np.split(rows, 4, axis=-1)
        parts = split_input(self._w(f"{_INPUT}.weight"), self.config.n_mels)
        y = x @ parts[0].T + self._w(f"{_INPUT}.bias")
        for value, weight, part in ((mu, parts[1], "mu"), (speaker, parts[2], "speaker")):
            y = y + product(value, weight, self._policy.scheme(f"fold/{_INPUT}.{part}"))
        return y


class QuantizedWaveform(WaveformReference):
    """The waveform part by a policy: weights alone are rounded, so a graph equals it as closely as a float32 one."""

    def __init__(
        self, config: WaveformConfig, read: Callable[[str], Array], policy: Policy, dtype: Any = np.float32
    ) -> None:
        super().__init__(config, read, dtype)
        self._policy = policy

    def _w(self, name: str) -> Array:
        found = super()._w(name)
        return rounded_kernel(found, self._policy.convolution(name)) if found.ndim == _KERNEL_DIMS else found

    def _normed(self, name: str, dtype: Any) -> tuple[Array, Array]:
        weight, bias = super()._normed(name, dtype)
        if name not in F0_CONVS:
            return rounded_kernel(weight, self._policy.convolution(f"{name}.weight")), bias
        # The graph's rows hold the taps one after another, each with all of its inputs.
        rows = rounded_kernel(weight.transpose(0, 2, 1), self._policy.convolution(f"fold/{name}.matrix"))
        return rows.transpose(0, 2, 1), bias

    def _upsample(self, stage: int, x: Array) -> Array:
        """By the output phases' convolutions, whose taps are sums of the checkpoint's."""
        name, rate = f"ups.{stage}", self.config.upsample_rates[stage]
        weight, bias = super()._normed(name, self.dtype)
        folded = fold_vocoder.fold_repeat(weight, rate)
        phases = rounded_kernel(folded, self._policy.convolution(f"fold/{name}.phases")).astype(self.dtype)
        y = conv1d(x, phases, np.repeat(bias, rate), left=phases.shape[2] - 1)
        return y.reshape(len(bias), rate, -1).transpose(0, 2, 1).reshape(len(bias), -1)
