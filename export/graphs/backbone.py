"""The backbone, prefill and decode in one graph: ids and what replaces or joins their embeddings -> next text id."""

from __future__ import annotations

from edge_sdk.config import ModelConfig
from edge_sdk.export import fold
from edge_sdk.export.graphs.blocks import KVCache, Tensors, decoder_stack
from edge_sdk.export.graphs.builder import GraphBuilder
from edge_sdk.export.graphs.grouping import group_tokens
from edge_sdk.export.graphs.linear import linear, lookup
from edge_sdk.export.weights import BACKBONE, CODEBOOK, GROUP_PROJECTION, TEXT_EMBEDDING, TEXT_HEAD


def build_backbone(model: ModelConfig, t: Tensors, *, tied: bool) -> GraphBuilder:
    """Inputs: ids int64 [S]; audio [N, hidden] rows that replace the embeddings at audio_positions int64 [N];
    speech int64 [M, G] groups whose sum joins the embeddings at speech_positions int64 [M] (both halved); the cache.
    Outputs: hidden [S, hidden] after the final norm; head_input [S, hidden] = hidden + text embedding (what the speech
    head reads); logits [vocab] and token int64 [] of the last position.
    """
    g = GraphBuilder("backbone", policy=t.policy)
    hidden = model.backbone.hidden_size
    ids = g.input("ids", "int64", ("S",))
    audio = g.input("audio", "float32", ("N", hidden))
    audio_at = g.input("audio_positions", "int64", ("N",))
    speech = g.input("speech", "int64", ("M", model.group_size))
    speech_at = g.input("speech_positions", "int64", ("M",))
    cache = KVCache(g, model.backbone)

    embedding = t.weight(TEXT_EMBEDDING)
    with g.scope("embed_tokens"):
        text = lookup(g, embedding, ids)
    x = _mix_speech(g, text, speech, speech_at, model, t)
    with g.scope("audio"):
        x = g.op("ScatterND", x, g.op("Unsqueeze", audio_at, g.ints(1)), audio)
    h = decoder_stack(g, x, t, BACKBONE, model.backbone, cache)
    g.output(h, "hidden", "float32", ("S", hidden))
    g.output(g.op("Add", h, text), "head_input", "float32", ("S", hidden))
    with g.scope("lm_head"):
        last = g.op("Gather", h, g.ints(-1), axis=0)
        logits = g.op("Squeeze", linear(g, last, embedding if tied else t.weight(TEXT_HEAD)), g.ints(0))
        token = g.op("ArgMax", logits, axis=0, keepdims=0)
    g.output(logits, "logits", "float32", (model.text_ids.vocab_size,))
    g.output(token, "token", "int64", ())
    cache.declare_outputs()
    return g


def _mix_speech(g: GraphBuilder, text: str, speech: str, at: str, model: ModelConfig, t: Tensors) -> str:
    """Rows that carry a group: (text embedding + grouped speech) / 2, the group a sum of folded table rows."""
    table = t.derived(
        "fold/codebook*audio_tower.output_matching",
        (model.speech_ids.codebook_size, model.backbone.hidden_size),
        lambda: fold.group_table(t.read(CODEBOOK), t.read(GROUP_PROJECTION), model.group_size),
    )
    with g.scope("group_tokens"):
        mixed = group_tokens(g, table, speech, g.op("Gather", text, at))
        return g.op("ScatterND", text, g.op("Unsqueeze", at, g.ints(1)), mixed)
