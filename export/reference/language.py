"""Encoder, grouping, backbone and speech head, plainly, with the checkpoint's own names and nothing folded.

Whole sequences without caches: the slow truth that graphs and caches are compared with. Written from
docs/computation.md. Weights are read one at a time, so a full-size checkpoint needs the memory of one layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edge_sdk.config import ModelConfig, TransformerConfig
from edge_sdk.export.reference.layers import conv1d, silu, softmax
from edge_sdk.export.weights import (
    AUDIO_PROJECTION,
    BACKBONE,
    CODEBOOK,
    ENCODER,
    GROUP_PROJECTION,
    HEAD,
    HEAD_STACK,
    TEXT_EMBEDDING,
    TEXT_HEAD,
)

Array = np.ndarray[Any, Any]
LAYER_NORM_EPS = 1e-5

_erf = np.frompyfunc(math.erf, 1, 1)


def gelu(x: Array) -> Array:
    """The exact form, with the error function."""
    erf: Array = np.asarray(_erf(x / math.sqrt(2)), x.dtype)
    result: Array = x * x.dtype.type(0.5) * (1 + erf)
    return result


class LanguageReference:
    """`read` gives a tensor by its checkpoint name; everything is computed in `dtype`."""

    def __init__(
        self, model: ModelConfig, read: Callable[[str], Array], *, tied: bool = False, dtype: Any = np.float32
    ) -> None:
        self.model, self._tied = model, tied
        self.dtype = np.dtype(dtype)
        self._read = read

    def _w(self, name: str) -> Array:
        return self._read(name).astype(self.dtype, copy=False)

    def _linear(self, name: str, x: Array, *, bias: bool = False) -> Array:
        y: Array = x @ self._w(f"{name}.weight").T
        return y + self._w(f"{name}.bias") if bias else y

    def _layer_norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.dtype.type(LAYER_NORM_EPS))
        result: Array = scaled * self._w(f"{name}.weight") + self._w(f"{name}.bias")
        return result

    def _rms_norm(self, name: str, x: Array, eps: float) -> Array:
        scale = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.dtype.type(eps))
        result: Array = x * scale * self._w(f"{name}.weight")
        return result

    # -- encoder

    def encode(self, mel: Array, placeholders: int) -> dict[str, Array]:
        """mel [n_mels, frames] of a clip, normalised -> encoder_in [rows, d_model] (before the first layer), pooled
        [rows / 2, d_model], tower_out [placeholders * G, hidden], grouped [placeholders, hidden]."""
        size = self.model.encoder.window_frames
        windows = [mel[:, at : at + size].astype(self.dtype) for at in range(0, mel.shape[1], size)]
        inputs = [self._convolve(window) for window in windows]
        rows = inputs
        for i in range(self.model.encoder.num_layers):
            rows = [self._encoder_layer(f"{ENCODER}.layers.{i}", x) for x in rows]
        joined = np.concatenate(rows)
        pairs = len(joined) // 2
        pooled = joined[: 2 * pairs].reshape(pairs, 2, -1).mean(axis=1)
        normed = self._layer_norm(f"{ENCODER}.ln_post", pooled)
        tower = self._fill(self._linear(f"{ENCODER}.proj", normed, bias=True), placeholders)
        return {
            "encoder_in": np.concatenate(inputs),
            "pooled": pooled,
            "tower_out": tower,
            "grouped": self._grouped(normed, tower),
        }

    def _fill(self, rows: Array, placeholders: int) -> Array:
        """Whole groups: cut, or filled with zeros, to [placeholders * G, width]."""
        count = placeholders * self.model.group_size
        filled = np.zeros((count, rows.shape[1]), self.dtype)
        filled[: min(count, len(rows))] = rows[:count]
        return filled

    def _convolve(self, mel: Array) -> Array:
        x = mel
        for name, stride in (("conv1", 1), ("conv2", 2)):
            weight, bias = self._w(f"{ENCODER}.{name}.weight"), self._w(f"{ENCODER}.{name}.bias")
            x = gelu(conv1d(x, weight, bias, left=1, right=1, stride=stride))
        d = self.model.encoder.d_model
        step = math.log(10000.0) / (d // 2 - 1)
        angle = np.arange(x.shape[1])[:, None] * np.exp(-step * np.arange(d // 2))[None, :]
        result: Array = x.T + np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(self.dtype)
        return result

    def _encoder_layer(self, prefix: str, x: Array) -> Array:
        heads = self.model.encoder.num_heads
        h = self._layer_norm(f"{prefix}.self_attn_layer_norm", x)
        q, k, v = (
            self._linear(f"{prefix}.self_attn.{name}", h, bias=name != "k_proj").reshape(len(x), heads, -1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        scores = np.einsum("qhd,khd->hqk", q, k) * self.dtype.type(q.shape[-1] ** -0.5)
        mixed = np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(len(x), -1)
        x = x + self._linear(f"{prefix}.self_attn.out_proj", mixed, bias=True)
        h = gelu(self._linear(f"{prefix}.fc1", self._layer_norm(f"{prefix}.final_layer_norm", x), bias=True))
        result: Array = x + self._linear(f"{prefix}.fc2", h, bias=True)
        return result

    def _grouped(self, normed: Array, tower: Array) -> Array:
        """Rows after ln_post [rows, d_model] and what the tower makes of them -> [placeholders, hidden]."""
        size = self.model.group_size
        mean = tower.reshape(-1, size, tower.shape[1]).mean(axis=1)
        grouped: Array = mean @ self._w(AUDIO_PROJECTION).T
        if self.model.audio_features_mode == "add":
            # User audio has no ids of its own: all are the pad id, filler included.
            ids = np.full((len(grouped), size), self.model.speech_ids.pad)
            grouped = grouped + self.group_speech(ids)
        return grouped

    # -- grouping

    def group_speech(self, ids: Array) -> Array:
        """Speech ids [N, G] -> [N, hidden]: mean of the embeddings, then one linear."""
        mean = self._w(CODEBOOK)[ids].mean(axis=1)
        result: Array = mean @ self._w(GROUP_PROJECTION).T
        return result

    # -- backbone

    def embed_text(self, ids: Array) -> Array:
        return self._read(TEXT_EMBEDDING)[ids].astype(self.dtype)

    def backbone(self, rows: Array) -> Array:
        """Input rows [T, hidden] -> hidden [T, hidden] after the final norm."""
        return self._stack(BACKBONE, self.model.backbone, rows)

    def text_logits(self, hidden: Array) -> Array:
        result: Array = hidden @ self._w(TEXT_EMBEDDING if self._tied else TEXT_HEAD).T
        return result

    # -- speech head

    def speech_positions(self, head_input: Array) -> Array:
        """head_input [T, hidden] -> [T * G, hidden]: the positions that pre_matching opens for each."""
        return self._linear(f"{HEAD}.pre_matching", head_input, bias=True).reshape(-1, head_input.shape[1])

    def speech_inputs(self, positions: Array, previous: Array) -> Array:
        """Rows that enter the transformer [R, width]: positions [R, hidden], each joined by the id before it."""
        return self._linear(f"{HEAD}.input_matching", positions + self._w(CODEBOOK)[previous])

    def speech_hidden(self, inputs: Array) -> Array:
        if self.model.speech_head is None:
            raise ValueError("this model has no speech head")
        return self._stack(HEAD_STACK, self.model.speech_head, inputs)

    def speech_logits(self, hidden: Array) -> Array:
        result: Array = self._linear(f"{HEAD}.output_matching", hidden) @ self._w(CODEBOOK).T
        return result

    # -- transformer

    def _stack(self, prefix: str, c: TransformerConfig, x: Array) -> Array:
        x = x.astype(self.dtype)
        exponent = np.arange(0, c.head_dim, 2) / c.head_dim
        angle = np.arange(len(x))[:, None] / c.rope_theta**exponent
        rope = np.cos(angle).astype(self.dtype), np.sin(angle).astype(self.dtype)
        for i in range(c.num_layers):
            p = f"{prefix}.layers.{i}"
            x = x + self._attention(p, c, self._rms_norm(f"{p}.input_layernorm", x, c.rms_norm_eps), rope)
            h = self._rms_norm(f"{p}.post_attention_layernorm", x, c.rms_norm_eps)
            sparse = c.moe is not None and i in c.moe.sparse_layers
            x = x + (self._experts(f"{p}.mlp", c, h) if sparse else self._mlp(f"{p}.mlp", h))
        return self._rms_norm(f"{prefix}.norm", x, c.rms_norm_eps)

    def _attention(self, prefix: str, c: TransformerConfig, h: Array, rope: tuple[Array, Array]) -> Array:
        rows, prefix = len(h), f"{prefix}.self_attn"
        q = self._linear(f"{prefix}.q_proj", h).reshape(rows, c.num_heads, c.head_dim)
        k = self._linear(f"{prefix}.k_proj", h).reshape(rows, c.num_kv_heads, c.head_dim)
        v = self._linear(f"{prefix}.v_proj", h).reshape(rows, c.num_kv_heads, c.head_dim)
        q = _rotate(self._rms_norm(f"{prefix}.q_norm", q, c.rms_norm_eps), rope)
        k = _rotate(self._rms_norm(f"{prefix}.k_norm", k, c.rms_norm_eps), rope)
        out = np.empty((rows, c.num_heads, c.head_dim), self.dtype)
        future = np.triu(np.ones((rows, rows), bool), 1)
        for head in range(c.num_heads):
            shared = head * c.num_kv_heads // c.num_heads
            scores = q[:, head] @ k[:, shared].T * self.dtype.type(c.head_dim**-0.5)
            scores[future] = -np.inf
            out[:, head] = softmax(scores) @ v[:, shared]
        return self._linear(f"{prefix}.o_proj", out.reshape(rows, -1))

    def _mlp(self, prefix: str, h: Array) -> Array:
        gate = silu(self._linear(f"{prefix}.gate_proj", h))
        return self._linear(f"{prefix}.down_proj", gate * self._linear(f"{prefix}.up_proj", h))

    def _experts(self, prefix: str, c: TransformerConfig, h: Array) -> Array:
        moe = c.moe
        if moe is None:
            raise ValueError("this stack has no experts")
        routing = softmax(self._linear(f"{prefix}.gate", h))
        chosen = np.argsort(-routing, axis=1, kind="stable")[:, : moe.experts_per_token]
        weights = np.take_along_axis(routing, chosen, axis=1)
        if moe.normalize_weights:
            weights = weights / weights.sum(axis=1, keepdims=True)
        out = np.zeros_like(h)
        for e in np.unique(chosen):
            rows, slots = np.nonzero(chosen == e)
            out[rows] += weights[rows, slots][:, None] * self._mlp(f"{prefix}.experts.{e}", h[rows])
        return out


def _rotate(x: Array, rope: tuple[Array, Array]) -> Array:
    """Rotate-half: x [T, heads, d], the two halves of a head are the pairs."""
    cos, sin = (np.concatenate([table, table], axis=1)[:, None, :] for table in rope)
    half = x.shape[-1] // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    result: Array = x * cos + turned * sin
    return result
