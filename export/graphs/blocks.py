"""What the language graphs share: norms, cached attention, the Qwen3 decoder stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_sdk.config import MoEConfig, TransformerConfig
from edge_sdk.export.graphs.builder import MICROSOFT, GraphBuilder, Weight
from edge_sdk.export.graphs.linear import FLOAT, experts, linear
from edge_sdk.export.recipe import Policy

Array = np.ndarray[Any, Any]
ATTENTION_ALIGN = 8  # GroupQueryAttention's head size granularity
ROTARY_ALIGN = 16  # and that of the rotary embedding inside it


@dataclass(frozen=True)
class Tensors:
    """Weights by checkpoint name, each a promise: `shapes` says what they will be, `read` makes one, `policy` how
    linear layers, tables and convolutions are stored."""

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Array]
    policy: Policy = field(default_factory=Policy)

    def weight(self, name: str) -> Weight:
        return Weight(name, FLOAT, self.shapes[name], lambda: self.read(name))

    def derived(self, name: str, shape: Sequence[int], make: Callable[[], Array]) -> Weight:
        """A weight computed from others (a fold), under a name of its own."""
        return Weight(name, FLOAT, tuple(shape), lambda: make().astype(np.float32, copy=False))


def rms_norm(g: GraphBuilder, x: str, weight: Weight, eps: float) -> str:
    """Normalise the last axis, in float32 as the reference does."""
    return g.op("RMSNormalization", x, g.weight(weight), axis=-1, epsilon=eps, stash_type=1)


def layer_norm(g: GraphBuilder, x: str, t: Tensors, prefix: str, eps: float) -> str:
    return g.op(
        "LayerNormalization",
        x,
        g.weight(t.weight(f"{prefix}.weight")),
        g.weight(t.weight(f"{prefix}.bias")),
        axis=-1,
        epsilon=eps,
    )


def cache_head_dim(head_dim: int) -> int:
    """Head size in the KV cache: padded where the attention op needs it."""
    return -(-head_dim // ATTENTION_ALIGN) * ATTENTION_ALIGN


class KVCache:
    """The cache inputs of a decoder stack and how its attention reads and writes them in place.

    Declares, for every layer i, `key_cache.i` and `value_cache.i` float32 [1, kv_heads, capacity, head], their outputs
    `*_out` (bind the same memory), and `last_position` int32 [1], `total_positions` int32 []: filled positions
    including the new ones, minus one in the first.
    """

    def __init__(self, g: GraphBuilder, config: TransformerConfig) -> None:
        self.g, self.config = g, config
        self.head = cache_head_dim(config.head_dim)
        self.rotary_inside = config.head_dim % ROTARY_ALIGN == 0
        self.last = g.input("last_position", "int32", (1,))
        self.total = g.input("total_positions", "int32", ())
        self.cos = g.input("rope_cos", "float32", ("positions", config.head_dim // 2))
        self.sin = g.input("rope_sin", "float32", ("positions", config.head_dim // 2))
        shape = (1, config.num_kv_heads, "capacity", self.head)
        for i in range(config.num_layers):
            for kind in ("key", "value"):
                g.input(f"{kind}_cache.{i}", "float32", shape)

    def attend(self, layer: int, q: str, k: str, v: str) -> str:
        """q [S, heads*d], k, v [S, kv*d], before rotation -> [S, heads*d]. Appends k and v to the cache."""
        g, c = self.g, self.config
        q3, k3, v3 = (self._expand(x) for x in (q, k, v))
        attributes: dict[str, Any] = {
            "num_heads": c.num_heads,
            "kv_num_heads": c.num_kv_heads,
            "scale": float(c.head_dim) ** -0.5,
        }
        inputs = [q3, k3, v3, f"key_cache.{layer}", f"value_cache.{layer}", self.last, self.total]
        if self.rotary_inside:
            inputs += [self.cos, self.sin]
            attributes["do_rotary"] = 1
        else:
            inputs[0] = self._pad(self._rotate(q3, c.num_heads), c.num_heads)
            inputs[1] = self._pad(self._rotate(k3, c.num_kv_heads), c.num_kv_heads)
            inputs[2] = self._pad(v3, c.num_kv_heads)
        names = [f"{g.name}/attention.{layer}", f"key_cache_out.{layer}", f"value_cache_out.{layer}"]
        out = g.ops("GroupQueryAttention", *inputs, count=3, domain=MICROSOFT, names=names, **attributes)[0]
        return self._flatten(out)

    def declare_outputs(self) -> None:
        shape = (1, self.config.num_kv_heads, "capacity", self.head)
        for i in range(self.config.num_layers):
            for kind in ("key", "value"):
                self.g.output(f"{kind}_cache_out.{i}", f"{kind}_cache_out.{i}", "float32", shape)

    def _expand(self, x: str) -> str:
        return self.g.op("Unsqueeze", x, self.g.ints(0))

    def _rotate(self, x: str, heads: int) -> str:
        """Rotary embedding outside the attention op, for head sizes it does not take."""
        g = self.g
        rows = g.op("Shape", x, start=1, end=2)
        total = g.op("Cast", g.op("Unsqueeze", self.total, g.ints(0)), to=_INT64)
        start = g.op("Sub", total, rows)
        positions = g.op("Range", g.op("Squeeze", start), g.op("Squeeze", total), g.scalar(1, "int64"))
        position_ids = g.op("Unsqueeze", positions, g.ints(0))
        return g.op("RotaryEmbedding", x, self.cos, self.sin, position_ids, num_heads=heads)

    def _pad(self, x: str, heads: int) -> str:
        """[1, S, heads*d] -> [1, S, heads*head]: zeros behind each head leave scores and sums as they are."""
        d = self.config.head_dim
        if self.head == d:
            return x
        g = self.g
        split = g.op("Reshape", x, g.ints(1, -1, heads, d))
        padded = g.op("Pad", split, g.ints(0, 0, 0, 0, 0, 0, 0, self.head - d))
        return g.op("Reshape", padded, g.ints(1, -1, heads * self.head))

    def _flatten(self, x: str) -> str:
        g, c = self.g, self.config
        if self.head != c.head_dim:
            split = g.op("Reshape", x, g.ints(1, -1, c.num_heads, self.head))
            x = g.op("Slice", split, g.ints(0), g.ints(c.head_dim), g.ints(3))
        return g.op("Reshape", x, g.ints(-1, c.num_heads * c.head_dim))


_INT64 = 7  # onnx.TensorProto.INT64


def decoder_stack(g: GraphBuilder, x: str, t: Tensors, prefix: str, config: TransformerConfig, cache: KVCache) -> str:
    """A Qwen3 decoder over x [S, hidden]: every layer, and the final norm -> [S, hidden]."""
    for i in range(config.num_layers):
        with g.scope(f"layers.{i}"):
            x = _decoder_layer(g, x, t, f"{prefix}.layers.{i}", config, cache, i)
    with g.scope("norm"):
        return rms_norm(g, x, t.weight(f"{prefix}.norm.weight"), config.rms_norm_eps)


def _decoder_layer(
    g: GraphBuilder, x: str, t: Tensors, prefix: str, c: TransformerConfig, cache: KVCache, layer: int
) -> str:
    with g.scope("input_layernorm"):
        h = rms_norm(g, x, t.weight(f"{prefix}.input_layernorm.weight"), c.rms_norm_eps)
    with g.scope("attn"):
        a = _attention(g, h, t, f"{prefix}.self_attn", c, cache, layer)
        x = g.op("Add", x, a)
    with g.scope("post_attention_layernorm"):
        h = rms_norm(g, x, t.weight(f"{prefix}.post_attention_layernorm.weight"), c.rms_norm_eps)
    with g.scope("mlp"):
        if c.moe and layer in c.moe.sparse_layers:
            y = _experts(g, h, t, f"{prefix}.mlp", c.hidden_size, c.moe)
        else:
            y = _swiglu(g, h, t, f"{prefix}.mlp")
        return g.op("Add", x, y)


def _attention(
    g: GraphBuilder, h: str, t: Tensors, prefix: str, c: TransformerConfig, cache: KVCache, layer: int
) -> str:
    projected = {}
    for name, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads)):
        with g.scope(f"{name}_proj"):
            y = linear(g, h, t.weight(f"{prefix}.{name}_proj.weight"))
        if name != "v":  # Qwen3 normalises each head of q and k before rotating it
            with g.scope(f"{name}_norm"):
                y = g.op("Reshape", y, g.ints(-1, heads, c.head_dim))
                y = rms_norm(g, y, t.weight(f"{prefix}.{name}_norm.weight"), c.rms_norm_eps)
                y = g.op("Reshape", y, g.ints(-1, heads * c.head_dim))
        projected[name] = y
    out = cache.attend(layer, projected["q"], projected["k"], projected["v"])
    with g.scope("o_proj"):
        return linear(g, out, t.weight(f"{prefix}.o_proj.weight"))


def _swiglu(g: GraphBuilder, h: str, t: Tensors, prefix: str) -> str:
    with g.scope("gate_proj"):
        gate = linear(g, h, t.weight(f"{prefix}.gate_proj.weight"))
    with g.scope("up_proj"):
        up = linear(g, h, t.weight(f"{prefix}.up_proj.weight"))
    act = g.op("Mul", gate, g.op("Sigmoid", gate))
    with g.scope("down_proj"):
        return linear(g, g.op("Mul", act, up), t.weight(f"{prefix}.down_proj.weight"))


def _experts(g: GraphBuilder, h: str, t: Tensors, prefix: str, hidden: int, moe: MoEConfig) -> str:
    """Qwen3-MoE: softmax over all experts, the top k of them, renormalised if the config says so."""
    inner, count = moe.intermediate_size, moe.num_experts

    def gate_up() -> Iterator[Array]:
        # The op wants gate and up rows of an expert interleaved: [E, 2*inner, hidden].
        for e in range(count):
            parts = (t.read(f"{prefix}.experts.{e}.{name}_proj.weight") for name in ("gate", "up"))
            yield np.stack(list(parts), axis=1).reshape(1, 2 * inner, hidden)

    def down() -> Iterator[Array]:
        for e in range(count):
            yield t.read(f"{prefix}.experts.{e}.down_proj.weight")[None]

    with g.scope("gate"):
        router = linear(g, h, t.weight(f"{prefix}.gate.weight"))
    return experts(
        g,
        h,
        router,
        Weight(f"{prefix}.experts.gate_up", FLOAT, (count, 2 * inner, hidden), gate_up),
        Weight(f"{prefix}.experts.down", FLOAT, (count, hidden, inner), down),
        k=moe.experts_per_token,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=int(moe.normalize_weights),
    )
