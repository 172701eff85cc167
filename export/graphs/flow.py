"""The flow's two graphs: tokens -> condition, and one Euler step for new frames only.

The two CFG rows (conditional, unconditional) travel as neighbours, [frames, 2, width], so that a reshape makes them
twice the heads of one attention. A vocoder whose own guidance is 0 has the first row alone. Adaptive norms are tables
over the steps; a prompt mel is never there and cut.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from edge_sdk.config import FlowConfig
from edge_sdk.export import fold_vocoder as fold
from edge_sdk.export.graphs.blocks import Array, Tensors, cache_head_dim
from edge_sdk.export.graphs.builder import MICROSOFT, GraphBuilder, Weight
from edge_sdk.export.graphs.linear import linear, lookup
from edge_sdk.export.graphs.vocoder_blocks import causal_convolution, convolution, keep_left
from edge_sdk.export.reference.flow import LAYER_NORM_EPS, LOOKAHEAD_SLOPE
from edge_sdk.export.vocoder_weights import BLOCKS, ESTIMATOR, LOOKAHEAD, POSITION

_INPUT = f"{ESTIMATOR}.input_embed.proj"


def build_flow_tokens(config: FlowConfig, t: Tensors) -> GraphBuilder:
    """Inputs: ids int64 [tokens + lookahead], the lookahead tokens only seen, `codebook_size` standing for none;
    speaker float32 [speaker_dim]; state lookahead_cache.
    Outputs: mu [tokens, n_mels]; condition [tokens * frames_per_token, rows * dim], what the steps add to x.
    """
    g = GraphBuilder("flow_tokens", policy=t.policy)
    ids = g.input("ids", "int64", ("ids",))
    speaker = g.input("speaker", "float32", (config.speaker_dim,))
    with g.scope("input_embedding"):
        table = t.derived(
            "input_embedding.padded",
            (config.codebook_size + 1, config.n_mels),
            # Behind the codes a row of zeros: past the last token upstream pads the embeddings with it.
            lambda: np.pad(t.read("input_embedding.weight"), ((0, 1), (0, 0))),
        )
        embedded = lookup(g, table, ids)
    with g.scope("pre_lookahead_layer"):
        mu = _lookahead(g, embedded, config, t)
    with g.scope("condition"):
        condition = _condition(g, mu, _speaker(g, speaker, config, t), config, t)
    g.output(mu, "mu", "float32", ("tokens", config.n_mels))
    g.output(condition, "condition", "float32", ("frames", config.rows * config.dim))
    return g


def _lookahead(g: GraphBuilder, embedded: str, config: FlowConfig, t: Tensors) -> str:
    """[tokens + lookahead, mels] -> [tokens, mels]."""
    conv1, conv2 = (
        (t.weight(f"{LOOKAHEAD}.{name}.weight"), t.weight(f"{LOOKAHEAD}.{name}.bias")) for name in ("conv1", "conv2")
    )
    x = g.op("Unsqueeze", g.op("Transpose", embedded, perm=[1, 0]), g.ints(0))
    x = g.op("LeakyRelu", convolution(g, x, *conv1), alpha=LOOKAHEAD_SLOPE)
    _, width, kernel = conv2[0].shape
    # The state holds conv1's outputs: before the first token they are zero, which no padded token would give.
    x = keep_left(g, x, "lookahead_cache", kernel - 1, shape=(1, width, kernel - 1), axis=2)
    x = g.op("Transpose", g.op("Squeeze", convolution(g, x, *conv2), g.ints(0)), perm=[1, 0])
    seen = g.op("Slice", embedded, g.ints(0), g.ints(-config.lookahead_tokens), g.ints(0))
    return g.op("Add", x, seen)


def _speaker(g: GraphBuilder, speaker: str, config: FlowConfig, t: Tensors) -> str:
    """[speaker_dim], any length but zero -> projected, [1, n_mels]."""
    x = g.op("Reshape", speaker, g.ints(1, -1))
    x = g.op("Div", x, g.op("ReduceL2", x, keepdims=1))
    name = "spk_embed_affine_layer"
    return linear(g, x, t.weight(f"{name}.weight"), t.weight(f"{name}.bias"))


def _condition(g: GraphBuilder, mu: str, speaker: str, config: FlowConfig, t: Tensors) -> str:
    """What mu, speaker and bias contribute to the input projection, all rows: [frames, rows * dim].

    The unconditional row sees zeros for both, so only the bias. Worked out once a token: its frames are equal.
    """

    def columns(part: int) -> Weight:
        shape = (config.dim, config.n_mels)
        return t.derived(
            f"fold/{_INPUT}.{['x', 'mu', 'speaker'][part]}",
            shape,
            lambda: fold.split_input(t.read(f"{_INPUT}.weight"), config.n_mels)[part],
        )

    bias = t.weight(f"{_INPUT}.bias")
    by_speaker = linear(g, speaker, columns(2), bias)
    conditional = g.op("Add", linear(g, mu, columns(1)), by_speaker)
    rows = [conditional]
    if config.rows > 1:
        rows.append(g.op("Expand", g.weight(bias), g.op("Shape", conditional)))
    joined = g.op("Concat", *(rows * config.frames_per_token), axis=1)
    return g.op("Reshape", joined, g.ints(-1, config.rows * config.dim))


def build_flow(config: FlowConfig, t: Tensors) -> GraphBuilder:
    """One Euler step for n new frames that see all cached frames and each other.

    Inputs: x [n, n_mels]; condition [n, rows * dim]; position float32 [n], the frames' numbers; step int64 [], row of
    the tables; cfg_rate float32 [], where there are two rows; last_position int32 [1] and total_positions int32 [],
    cached and new frames (minus one in the first); states conv_cache.*, key_cache.i and value_cache.i
    [1, rows * heads, capacity, head].
    Outputs: x_next [n, n_mels]; velocity [n, rows, n_mels]; the states.
    """
    g = GraphBuilder("flow", policy=t.policy)
    x = g.input("x", "float32", ("frames", config.n_mels))
    condition = g.input("condition", "float32", ("frames", config.rows * config.dim))
    step = _Step(g, config, t)
    with g.scope("input_embed"):
        h = _input_embed(g, x, condition, config, t)
    for i in range(config.depth):
        with g.scope(f"transformer_blocks.{i}"):
            h = step.block(h, i)
    velocity = step.velocity(h)
    with g.scope("euler"):
        x_next = g.op("Add", x, g.op("Mul", step.length(), step.guided(velocity)))
    g.output(x_next, "x_next", "float32", ("frames", config.n_mels))
    g.output(velocity, "velocity", "float32", ("frames", config.rows, config.n_mels))
    return g


def _input_embed(g: GraphBuilder, x: str, condition: str, config: FlowConfig, t: Tensors) -> str:
    """-> [rows * n, dim], a frame's rows together."""
    rows = config.rows

    def of_rows() -> Array:
        return np.tile(fold.split_input(t.read(f"{_INPUT}.weight"), config.n_mels)[0], (rows, 1))

    weight = t.derived(f"fold/{_INPUT}.x", (rows * config.dim, config.n_mels), of_rows)
    with g.scope("proj"):
        h = g.op("Reshape", g.op("Gemm", x, g.weight(weight), condition, transB=1), g.ints(-1, config.dim))
    with g.scope("conv_pos_embed"):
        y = g.op("Transpose", g.op("Reshape", h, g.ints(-1, rows, config.dim)), perm=[1, 2, 0])
        for name in ("conv1", "conv2"):
            with g.scope(name):
                conv, bias = (t.weight(f"{POSITION}.{name}.0.{part}") for part in ("weight", "bias"))
                groups = config.dim // conv.shape[1]
                y = causal_convolution(g, y, f"conv_pos_embed.{name}", conv, bias, rows=rows, groups=groups)
                y = g.op("Mul", y, g.op("Tanh", g.op("Softplus", y)))  # Mish
        y = g.op("Reshape", g.op("Transpose", y, perm=[2, 0, 1]), g.ints(-1, config.dim))
        return g.op("Add", h, y)


class _Step:
    """The transformer blocks under one row of the step tables."""

    def __init__(self, g: GraphBuilder, config: FlowConfig, t: Tensors) -> None:
        self.g, self.config, self.t = g, config, t
        self.head = cache_head_dim(config.head_dim)
        position = g.input("position", "float32", ("frames",))
        self.step = g.input("step", "int64", ())
        self.cfg_rate = g.input("cfg_rate", "float32", ()) if config.rows > 1 else ""
        self.last = g.input("last_position", "int32", (1,))
        self.total = g.input("total_positions", "int32", ())
        self._times, self._lengths = fold.step_rows(config.steps)
        self._activated = lru_cache(1)(self._activated_times)
        with g.scope("rotary_embed"):
            frequency = g.weight(t.weight(f"{ESTIMATOR}.rotary_embed.inv_freq"))
            angle = g.op("Unsqueeze", g.op("Mul", g.op("Unsqueeze", position, g.ints(1)), frequency), g.ints(0))
            self.cos, self.sin = g.op("Cos", angle), g.op("Sin", angle)

    def _activated_times(self) -> Array:
        name = f"{ESTIMATOR}.time_embed.time_mlp"
        return fold.activated_time(
            self._times, *(self.t.read(f"{name}.{i}.{part}") for i in (0, 2) for part in ("weight", "bias"))
        )

    def _table(self, name: str, chunks: int, make: Callable[[Array, Array, Array], Array]) -> list[str]:
        """The rows that `NAME.linear` would give at this step, [1, dim] each."""

        def load() -> Array:
            return make(self._activated(), self.t.read(f"{name}.linear.weight"), self.t.read(f"{name}.linear.bias"))

        table = self.t.derived(f"{name}.table", (len(self._times), chunks, self.config.dim), load)
        row = self.g.op("Gather", self.g.weight(table), self.step)
        return self.g.ops("Split", row, count=chunks, axis=0, num_outputs=chunks)

    def _norm(self, x: str, scale: str, shift: str) -> str:
        return self.g.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=LAYER_NORM_EPS)

    def _linear(self, name: str, x: str) -> str:
        return linear(self.g, x, self.t.weight(f"{name}.weight"), self.t.weight(f"{name}.bias"))

    def block(self, h: str, i: int) -> str:
        """h [rows * n, dim] -> [rows * n, dim]."""
        g, name = self.g, f"{BLOCKS}.{i}"
        with g.scope("attn_norm"):
            rows = self._table(f"{name}.attn_norm", fold.ATTENTION_CHUNKS, fold.attention_table)
            shift, scale, gate, shift_ff, scale_ff, gate_ff = rows
            x = self._norm(h, scale, shift)
        with g.scope("attn"):
            h = g.op("Add", h, g.op("Mul", gate, self._attention(f"{name}.attn", x, i)))
        with g.scope("ff_norm"):
            x = self._norm(h, scale_ff, shift_ff)
        with g.scope("ff"):
            x = self._linear(f"{name}.ff.ff.0.0", x)
            x = self._linear(f"{name}.ff.ff.2", g.op("Gelu", x, approximate="tanh"))
            return g.op("Add", h, g.op("Mul", gate_ff, x))

    def _attention(self, name: str, x: str, layer: int) -> str:
        """All new frames see all cached ones and each other; a row sees only its own."""
        g, c = self.g, self.config
        width = c.heads * self.head
        q, k, v = g.ops("Split", self._qkv(name, x), count=3, axis=1, num_outputs=3)
        heads = [g.op("Reshape", y, g.ints(1, -1, c.rows * width)) for y in (q, k, v)]
        for i in (0, 1):
            # Upstream rotates before it splits into heads: a row counts as one head here, turned in its first channels.
            heads[i] = g.op(
                "RotaryEmbedding",
                heads[i],
                self.cos,
                self.sin,
                num_heads=c.rows,
                rotary_embedding_dim=c.head_dim,
                interleaved=1,
            )
        shape = (1, c.rows * c.heads, "capacity", self.head)
        caches = [g.input(f"{kind}_cache.{layer}", "float32", shape) for kind in ("key", "value")]
        names = [f"/{g.name}/transformer_blocks.{layer}/attn/attended", *(x.replace(".", "_out.", 1) for x in caches)]
        attended = g.ops(
            "GroupQueryAttention",
            *heads,
            *caches,
            self.last,
            self.total,
            count=3,
            names=names,
            domain=MICROSOFT,
            num_heads=c.rows * c.heads,
            kv_num_heads=c.rows * c.heads,
            scale=float(c.head_dim) ** -0.5,
            causal=0,
        )
        for out in attended[1:]:
            g.output(out, out, "float32", shape)
        return self._project_out(f"{name}.to_out.0", g.op("Reshape", attended[0], g.ints(-1, width)))

    def _qkv(self, name: str, x: str) -> str:
        """One product for all three: [rows * n, 3 * heads * head], heads padded to the cache's size."""
        c, t, parts = self.config, self.t, ("to_q", "to_k", "to_v")

        def join(leaf: str) -> Array:
            arrays = (t.read(f"{name}.{part}.{leaf}") for part in parts)
            return np.concatenate([fold.pad_heads(a, c.heads, c.head_dim, self.head) for a in arrays])

        rows = len(parts) * c.heads * self.head
        weight = t.derived(f"{name}.to_qkv.weight", (rows, c.dim), lambda: join("weight"))
        bias = t.derived(f"{name}.to_qkv.bias", (rows,), lambda: join("bias"))
        with self.g.scope("to_qkv"):
            return linear(self.g, x, weight, bias)

    def _project_out(self, name: str, x: str) -> str:
        c, t = self.config, self.t
        weight = t.derived(
            f"{name}.weight",
            (c.dim, c.heads * self.head),
            lambda: fold.pad_heads(t.read(f"{name}.weight").T, c.heads, c.head_dim, self.head).T,
        )
        with self.g.scope("to_out"):
            return linear(self.g, x, weight, t.weight(f"{name}.bias"))

    def velocity(self, h: str) -> str:
        """[rows * n, dim] -> [n, rows, n_mels]."""
        g, shape = self.g, self.g.ints(-1, self.config.rows, self.config.n_mels)
        with g.scope("norm_out"):
            scale, shift = self._table(f"{ESTIMATOR}.norm_out", 2, fold.norm_table)
            x = self._norm(h, scale, shift)
        with g.scope("proj_out"):
            return g.op("Reshape", self._linear(f"{ESTIMATOR}.proj_out", x), shape)

    def guided(self, velocity: str) -> str:
        """(1 + rate) * conditional - rate * unconditional, [n, n_mels]; of one row itself."""
        g, rows = self.g, self.config.rows
        if rows == 1:
            return g.op("Squeeze", velocity, g.ints(1))
        conditional, unconditional = g.ops("Split", velocity, count=rows, axis=1, num_outputs=rows)
        strengthened = g.op("Mul", conditional, g.op("Add", self.cfg_rate, g.scalar(1.0)))
        guided = g.op("Sub", strengthened, g.op("Mul", unconditional, self.cfg_rate))
        return g.op("Squeeze", guided, g.ints(1))

    def length(self) -> str:
        """This step's share of the way, float32 []."""
        return self.g.op("Gather", self.g.weight(Weight.of("step_lengths", self._lengths)), self.step)
