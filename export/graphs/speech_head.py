"""The speech refined head (SRH) in two graphs: what a backbone position brings in, and the 25 Hz transformer."""

from __future__ import annotations

from edge_sdk.config import ModelConfig, TransformerConfig
from edge_sdk.export import fold
from edge_sdk.export.graphs.blocks import Array, KVCache, Tensors, decoder_stack
from edge_sdk.export.graphs.builder import GraphBuilder, Weight
from edge_sdk.export.graphs.linear import linear, lookup
from edge_sdk.export.weights import CODEBOOK, HEAD, HEAD_STACK

DATA = "speech_head"  # both graphs' weights lie in one file


def build_speech_input(model: ModelConfig, head: TransformerConfig, t: Tensors) -> GraphBuilder:
    """head_input [S, hidden] -> rows [S*G, width]: pre_matching and input_matching of each of the G positions."""
    g = GraphBuilder("speech_input", data=DATA, policy=t.policy)
    width = head.hidden_size
    x = g.input("head_input", "float32", ("S", model.backbone.hidden_size))
    weight, bias = input_weights(model, head, t)
    rows = g.op("Reshape", linear(g, x, weight, bias), g.ints(-1, width))
    g.output(rows, "rows", "float32", ("R", width))
    return g


def build_speech_head(model: ModelConfig, head: TransformerConfig, t: Tensors) -> GraphBuilder:
    """Inputs: rows [R, width], ids int64 [R] whose embedding joins each row (the previous pick, or BOS); the cache.
    Outputs: hidden [R, width] after the final norm; logits [codebook] of the last row.
    """
    g = GraphBuilder("speech_head", data=DATA, policy=t.policy)
    width, codes = head.hidden_size, model.speech_ids.codebook_size
    rows = g.input("rows", "float32", ("R", width))
    ids = g.input("ids", "int64", ("R",))
    cache = KVCache(g, head)
    with g.scope("embed_tokens"):
        x = g.op("Add", rows, lookup(g, input_table(model, head, t), ids))
    h = decoder_stack(g, x, t, HEAD_STACK, head, cache)
    g.output(h, "hidden", "float32", ("R", width))
    with g.scope("lm_head"):
        logits = g.op(
            "Squeeze", linear(g, g.op("Gather", h, g.ints(-1), axis=0), output_table(model, head, t)), g.ints(0)
        )
    g.output(logits, "logits", "float32", (codes,))
    cache.declare_outputs()
    return g


def input_weights(model: ModelConfig, head: TransformerConfig, t: Tensors) -> tuple[Weight, Weight]:
    """pre_matching and input_matching in one: weight [G * width, hidden], bias [G * width]."""

    def folded(part: int) -> Array:
        names = ("pre_matching.weight", "pre_matching.bias", "input_matching.weight")
        return fold.speech_input(*(t.read(f"{HEAD}.{n}") for n in names))[part]

    rows = model.group_size * head.hidden_size
    return (
        t.derived("fold/pre_matching.weight*input_matching", (rows, model.backbone.hidden_size), lambda: folded(0)),
        t.derived("fold/pre_matching.bias*input_matching", (rows,), lambda: folded(1)),
    )


def input_table(model: ModelConfig, head: TransformerConfig, t: Tensors) -> Weight:
    """[codes, width]: what the id before adds to a row."""
    return t.derived(
        "fold/codebook*input_matching",
        (model.speech_ids.codebook_size, head.hidden_size),
        lambda: fold.speech_input_table(t.read(CODEBOOK), t.read(f"{HEAD}.input_matching.weight")),
    )


def output_table(model: ModelConfig, head: TransformerConfig, t: Tensors) -> Weight:
    """[codes, width]: the row after the final norm -> scores of the codes."""
    return t.derived(
        "fold/codebook*output_matching",
        (model.speech_ids.codebook_size, head.hidden_size),
        lambda: fold.speech_output_table(t.read(CODEBOOK), t.read(f"{HEAD}.output_matching.weight")),
    )
