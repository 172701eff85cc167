"""The flow, plainly: speech tokens -> vocoder mel, with the checkpoint's own names and nothing folded.

The computation of CosyVoice3's CausalMaskedDiffWithDiT, written from its description (docs/vocoder.md): the slow truth
for `verify --against` and for the tests of the graph. Frames lead, [L, ...]; the two CFG rows come first, [2, L, ...].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_sdk.config import FlowConfig
from edge_sdk.export.reference.layers import conv1d, gelu_tanh, layer_norm, leaky_relu, linear, mish, silu, softmax
from edge_sdk.export.vocoder_weights import BLOCKS, ESTIMATOR, LOOKAHEAD, POSITION

LAYER_NORM_EPS = 1e-6
LOOKAHEAD_SLOPE = 0.01
TIME_SCALE = 1000.0
TIME_PERIOD = 10000.0

Array = np.ndarray[Any, Any]


class FlowReference:
    """`read` gives a tensor by its checkpoint name; everything is computed in `dtype`."""

    def __init__(self, config: FlowConfig, read: Callable[[str], Array], dtype: Any = np.float32) -> None:
        self.config = config
        self.dtype = np.dtype(dtype)
        self._read = read

    def _w(self, name: str) -> Array:
        return self._read(name).astype(self.dtype, copy=False)

    def _linear(self, name: str, x: Array) -> Array:
        return linear(x, self._w(f"{name}.weight"), self._w(f"{name}.bias"))

    def _conv(self, name: str, x: Array, left: int = 0, right: int = 0) -> Array:
        return conv1d(x, self._w(f"{name}.weight"), self._w(f"{name}.bias"), left=left, right=right)

    def tokens(self, ids: Array, *, final: bool = True) -> dict[str, Array]:
        """ids int [T] -> token_embedding [T, mels], lookahead_out [T', mels], mu [T' * frames_per_token, mels].

        `final` pads with zeros on the right, T' = T; else the last lookahead tokens are context only.
        """
        lookahead = self.config.lookahead_tokens
        embedded = self._w("input_embedding.weight")[ids]
        ahead = self._conv(f"{LOOKAHEAD}.conv1", embedded.T, right=lookahead if final else 0)
        ahead = leaky_relu(ahead, LOOKAHEAD_SLOPE)
        kernel = self._w(f"{LOOKAHEAD}.conv2.weight").shape[2]
        ahead = self._conv(f"{LOOKAHEAD}.conv2", ahead, left=kernel - 1).T
        ahead = ahead + embedded[: len(ahead)]
        mu = np.repeat(ahead, self.config.frames_per_token, axis=0)
        return {"token_embedding": embedded, "lookahead_out": ahead, "mu": mu}

    def speaker(self, embedding: Array) -> Array:
        """[speaker_dim] -> the projected speaker condition [mels]."""
        x = embedding.astype(self.dtype)
        return self._linear("spk_embed_affine_layer", x / np.sqrt((x * x).sum()))

    def time_embedding(self, t: float) -> Array:
        """Sampler time -> [dim]: sinusoids (sine first), Linear, SiLU, Linear."""
        name = f"{ESTIMATOR}.time_embed.time_mlp"
        half = self._w(f"{name}.0.weight").shape[1] // 2
        frequency = np.exp(-np.log(TIME_PERIOD) / (half - 1) * np.arange(half)).astype(self.dtype)
        angle = self.dtype.type(TIME_SCALE * t) * frequency
        x = np.concatenate([np.sin(angle), np.cos(angle)])
        return self._linear(f"{name}.2", silu(self._linear(f"{name}.0", x)))

    def estimate(self, x: Array, mu: Array, speaker: Array, t: float, mask: Array | None = None) -> dict[str, Array]:
        """One evaluation of the velocity model.

        Args:
            x: [L, mels], the state.  mu: [L, mels].  speaker: [mels], projected.
            mask: bool [L, L], which frames (columns) a frame (row) sees; see `chunk_mask`. None: all see all.
        Returns:
            velocity [2, L, mels] (conditional, then unconditional) and what lies on the way.
        """
        rows = np.zeros((2, len(x), 4 * self.config.n_mels), self.dtype)
        parts = np.split(rows, 4, axis=2)  # x, prompt mel, mu, speaker; the prompt is always empty here
        parts[0][:] = x
        parts[2][0], parts[3][0] = mu, speaker
        h = self._linear(f"{ESTIMATOR}.input_embed.proj", rows)
        h = h + np.stack([self._position(row) for row in h])
        out = {"time_embedding": self.time_embedding(t), "input_embed_out": h}
        activated = silu(out["time_embedding"])
        for i in range(self.config.depth):
            h = self._block(f"{BLOCKS}.{i}", h, activated, mask)
            out[f"block{i}_out"] = h
        scale, shift = np.split(self._linear(f"{ESTIMATOR}.norm_out.linear", activated), 2)
        out["norm_out"] = layer_norm(h, LAYER_NORM_EPS) * (1 + scale) + shift
        out["velocity"] = self._linear(f"{ESTIMATOR}.proj_out", out["norm_out"])
        return out

    def _position(self, x: Array) -> Array:
        """Two causal grouped convolutions over [L, dim]; the second sees zeros before the first's first output."""
        y = x.T
        for name in (f"{POSITION}.conv1.0", f"{POSITION}.conv2.0"):
            y = mish(self._conv(name, y, left=self.config.position_kernel - 1))
        return y.T

    def _block(self, name: str, h: Array, activated: Array, mask: Array | None) -> Array:
        chunks = np.split(self._linear(f"{name}.attn_norm.linear", activated), 6)
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = chunks
        x = layer_norm(h, LAYER_NORM_EPS) * (1 + scale_attn) + shift_attn
        h = h + gate_attn * self._attention(f"{name}.attn", x, mask)
        x = layer_norm(h, LAYER_NORM_EPS) * (1 + scale_ff) + shift_ff
        x = self._linear(f"{name}.ff.ff.2", gelu_tanh(self._linear(f"{name}.ff.ff.0.0", x)))
        h += gate_ff * x
        return h

    def _attention(self, name: str, x: Array, mask: Array | None) -> Array:
        c = self.config
        q, k, v = (self._linear(f"{name}.{part}", x) for part in ("to_q", "to_k", "to_v"))
        q, k = self._rotate(q), self._rotate(k)
        # [2, L, heads*d] -> [2, heads, L, d]
        q, k, v = (y.reshape(2, -1, c.heads, c.head_dim).transpose(0, 2, 1, 3) for y in (q, k, v))
        scores = q @ k.transpose(0, 1, 3, 2) * self.dtype.type(c.head_dim**-0.5)
        if mask is not None:
            scores = np.where(mask, scores, self.dtype.type(-np.inf))
        mixed = (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(2, -1, c.heads * c.head_dim)
        return self._linear(f"{name}.to_out.0", mixed)

    def _rotate(self, x: Array) -> Array:
        """Rotary positions before the split into heads: only the first head_dim channels turn, in pairs (2i, 2i+1)."""
        angle = np.arange(x.shape[1], dtype=np.float32)[:, None] * self._read(f"{ESTIMATOR}.rotary_embed.inv_freq")
        cos, sin = (f(angle.astype(self.dtype)) for f in (np.cos, np.sin))
        out = x.copy()
        d = self.config.head_dim
        even, odd = x[..., 0:d:2], x[..., 1:d:2]
        out[..., 0:d:2] = even * cos - odd * sin
        out[..., 1:d:2] = odd * cos + even * sin
        return out

    def sample(
        self,
        mu: Array,
        speaker: Array,
        noise: Array,
        *,
        steps: int,
        cfg_rate: float,
        mask: Array | None = None,
    ) -> list[dict[str, Array]]:
        """Euler steps from noise [L, mels]. Returns every step's `estimate` with x_in and x_out [L, mels]."""
        x = noise.astype(self.dtype)
        path = []
        for t, dt in zip(*time_grid(steps), strict=True):
            out = self.estimate(x, mu.astype(self.dtype), speaker.astype(self.dtype), float(t), mask)
            conditional, unconditional = out["velocity"]
            rate = self.dtype.type(cfg_rate)
            velocity = (1 + rate) * conditional - rate * unconditional
            out["x_in"], x = x, x + self.dtype.type(dt) * velocity
            out["x_out"] = x
            path.append(out)
        return path


def chunk_mask(frames: int, block: int, context_blocks: int | None = None) -> Array:
    """bool [frames, frames]: a frame sees its own block and those before, all of them or `context_blocks`."""
    number = np.arange(frames) // block
    back = number[:, None] - number
    seen: Array = back >= 0
    return seen if context_blocks is None else seen & (back <= context_blocks)


def time_grid(steps: int) -> tuple[Array, Array]:
    """(times the model is asked at, step lengths), float32 [steps] each.

    1 - cos(pi/2 * i/steps), in the float32 arithmetic of upstream's loop, which adds the steps up.
    """
    angle = np.linspace(0, 1, steps + 1).astype(np.float32) * np.float32(0.5) * np.float32(np.pi)
    grid = np.float32(1) - np.cos(angle.astype(np.float64)).astype(np.float32)  # torch's cosine, to the bit
    times, lengths = np.empty(steps, np.float32), np.empty(steps, np.float32)
    t, dt = grid[0], grid[1] - grid[0]
    for i in range(steps):
        times[i], lengths[i] = t, dt
        t = t + dt
        if i + 2 <= steps:
            dt = grid[i + 2] - t
    return times, lengths
