"""The speech refined head (SRH) as one op of our own, over the same bytes of weights as the plain graphs."""

from __future__ import annotations

from edge_sdk.config import ModelConfig, TransformerConfig
from edge_sdk.export.graphs.blocks import Tensors, cache_head_dim
from edge_sdk.export.graphs.builder import EDGE_SDK, GraphBuilder, Weight
from edge_sdk.export.graphs.linear import packed
from edge_sdk.export.graphs.speech_head import DATA, input_table, input_weights, output_table
from edge_sdk.export.weights import HEAD_STACK
from edge_sdk.manifest import FUSED_GRAPH

# How keys and values are kept, by the narrowest weights of the head: what int8 keys add to int8 weights is small
# (docs/NOTES.md), and at long contexts the cache is what a step reads most of.
_CACHE = {"fp32": "float32", "fp16": "float32", "int8": "int8", "int4": "int8"}
_DTYPE_CODES = {"float32": 0, "float16": 1, "int8": 2}  # edge_sdk_dtype of csrc/include/edge_sdk.h
_ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1}
_CONTROLS = 9


def build_speech_head_fused(model: ModelConfig, head: TransformerConfig, t: Tensors, precision: str) -> GraphBuilder:
    """Inputs and outputs as csrc/ort/speech_head_op.cc states them."""
    g = GraphBuilder(FUSED_GRAPH, data=DATA, policy=t.policy)
    matrices = _matrices(model, head, t)
    dtype = _CACHE[precision]
    inputs = _inputs(g, model, head, dtype)
    vectors = [input_weights(model, head, t)[1], t.weight(f"{HEAD_STACK}.norm.weight")]
    for i in range(head.num_layers):
        norms = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
        vectors += [t.weight(f"{HEAD_STACK}.layers.{i}.{name}.weight") for name in norms]
    inputs += [g.weight(vector) for vector in vectors]
    bits, blocks = [], []
    for weight in matrices:
        scheme = t.policy.scheme(weight.name)
        inputs += packed(g, weight, table=weight.name == input_table(model, head, t).name)
        bits.append(scheme.bits if scheme.quantized else 0)
        blocks.append(scheme.block)
    names = ["ids", "logits", "cache_out", "cache_scales_out"]
    g.ops(
        "SpeechHead", *inputs, count=4, domain=EDGE_SDK, names=names,
        group_size=model.group_size, hidden=model.backbone.hidden_size, width=head.hidden_size,
        layers=head.num_layers, heads=head.num_heads, kv_heads=head.num_kv_heads, head_dim=head.head_dim,
        cache_head_dim=cache_head_dim(head.head_dim), intermediate=head.intermediate_size,
        codes=model.speech_ids.codebook_size, bos=model.speech_ids.bos, cache_dtype=_DTYPE_CODES[dtype],
        eps=head.rms_norm_eps, bits=bits, blocks=blocks,
    )  # fmt: skip
    g.output("ids", "ids", "int64", (model.group_size,))
    g.output("logits", "logits", "float32", (model.group_size, model.speech_ids.codebook_size))
    for name in ("cache", "cache_scales"):
        spec = next(s for s in g.inputs if s.name == name)
        g.output(f"{name}_out", f"{name}_out", spec.dtype, spec.shape)
    return g


def _inputs(g: GraphBuilder, model: ModelConfig, head: TransformerConfig, dtype: str) -> list[str]:
    places = (head.num_layers, 2, head.num_kv_heads, "capacity")
    row = cache_head_dim(head.head_dim) * _ITEM_BYTES[dtype]
    half = head.head_dim // 2
    return [
        g.input("head_input", "float32", ("S", model.backbone.hidden_size)),
        g.input("control", "int64", (_CONTROLS,)),
        g.input("sampling", "float32", (3,)),
        g.input("seen", "uint8", (model.speech_ids.codebook_size,)),
        g.input("forced", "int64", (model.group_size,)),
        g.input("rope_cos", "float32", ("positions", half)),
        g.input("rope_sin", "float32", ("positions", half)),
        g.input("cache", "uint8", (*places, row)),
        g.input("cache_scales", "float32", places if dtype == "int8" else (1, 1, 1, 1)),
    ]


def _matrices(model: ModelConfig, head: TransformerConfig, t: Tensors) -> list[Weight]:
    found = [input_weights(model, head, t)[0], input_table(model, head, t), output_table(model, head, t)]
    for i in range(head.num_layers):
        prefix = f"{HEAD_STACK}.layers.{i}"
        found += [t.weight(f"{prefix}.self_attn.{name}_proj.weight") for name in "qkvo"]
        found += [t.weight(f"{prefix}.mlp.{name}_proj.weight") for name in ("gate", "up", "down")]
    return found
