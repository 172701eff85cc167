"""One window of the audio encoder: mel -> rows at 5 Hz, ready to take the place of text embeddings.

Windows are independent up to the pooling, which runs over the concatenated rows of a clip; where a window's rows do
not fill whole groups (any group size, odd windows) the surplus leaves as `rest` and enters the next call as `carry`.
"""

from __future__ import annotations

import numpy as np

from edge_sdk.config import ModelConfig
from edge_sdk.export import fold
from edge_sdk.export.graphs.blocks import Array, Tensors, layer_norm
from edge_sdk.export.graphs.builder import MICROSOFT, GraphBuilder, Weight
from edge_sdk.export.graphs.linear import convolution_weight, linear
from edge_sdk.export.weights import AUDIO_PROJECTION, CODEBOOK, ENCODER, GROUP_PROJECTION

LAYER_NORM_EPS = 1e-5


def sinusoids(rows: int, width: int) -> Array:
    """Whisper's position table [rows, width]: first half sine, second half cosine."""
    step = np.log(10000.0) / (width // 2 - 1)
    inverse = np.exp(-step * np.arange(width // 2, dtype=np.float32)).astype(np.float32)
    angle = np.arange(rows, dtype=np.float32)[:, None] * inverse[None, :]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def build_encoder(model: ModelConfig, t: Tensors) -> GraphBuilder:
    """Inputs: mel [n_mels, frames] of one window; carry [C, d_model] rows left over from the window before;
    pairs, groups int64 [1]: pooled rows to use and groups to make of them (the last is filled with zeros).
    Outputs: embeddings [groups, hidden]; rest [R, d_model].
    """
    g = GraphBuilder("encoder", policy=t.policy)
    d = model.encoder.d_model
    mel = g.input("mel", "float32", (model.encoder.n_mels, "frames"))
    carry = g.input("carry", "float32", ("carried", d))
    pairs = g.input("pairs", "int64", (1,))
    groups = g.input("groups", "int64", (1,))

    x = _convolutions(g, mel, model, t)
    for i in range(model.encoder.num_layers):
        with g.scope(f"layers.{i}"):
            x = _layer(g, x, t, f"{ENCODER}.layers.{i}", model.encoder.num_heads)
    x = g.op("Concat", carry, x, axis=0)
    used = g.op("Mul", pairs, g.ints(2))
    g.output(g.op("Slice", x, used, g.ints(2**31), g.ints(0)), "rest", "float32", ("rest", d))
    with g.scope("pool"):
        x = g.op("Slice", x, g.ints(0), used, g.ints(0))
        x = g.op("ReduceMean", g.op("Reshape", x, g.ints(-1, 2, d)), g.ints(1), keepdims=0)
    with g.scope("ln_post"):
        x = layer_norm(g, x, t, f"{ENCODER}.ln_post", LAYER_NORM_EPS)
    x = _group(g, x, groups, model, t)
    g.output(x, "embeddings", "float32", ("groups", model.backbone.hidden_size))
    return g


def _convolutions(g: GraphBuilder, mel: str, model: ModelConfig, t: Tensors) -> str:
    """[n_mels, frames] -> [rows, d_model] with positions added; the window's borders see zeros."""
    x = g.op("Unsqueeze", mel, g.ints(0))
    for name, stride in (("conv1", 1), ("conv2", 2)):
        with g.scope(name):
            weight, bias = (t.weight(f"{ENCODER}.{name}.{kind}") for kind in ("weight", "bias"))
            x = g.op(
                "Conv",
                x,
                convolution_weight(g, weight),
                g.weight(bias),
                pads=[1, 1],
                strides=[stride],
                kernel_shape=[3],
            )
            x = g.op("Gelu", x)
    x = g.op("Transpose", g.op("Squeeze", x, g.ints(0)), perm=[1, 0])
    table = g.weight(Weight.of("encoder.positions", sinusoids(model.encoder.n_window, model.encoder.d_model)))
    rows = g.op("Shape", x, start=0, end=1)
    return g.op("Add", x, g.op("Slice", table, g.ints(0), rows, g.ints(0)))


def _layer(g: GraphBuilder, x: str, t: Tensors, prefix: str, heads: int) -> str:
    with g.scope("self_attn_layer_norm"):
        h = layer_norm(g, x, t, f"{prefix}.self_attn_layer_norm", LAYER_NORM_EPS)
    with g.scope("attn"):
        parts = []
        for name in ("q_proj", "k_proj", "v_proj"):
            with g.scope(name):
                bias = None if name == "k_proj" else t.weight(f"{prefix}.self_attn.{name}.bias")
                y = linear(g, h, t.weight(f"{prefix}.self_attn.{name}.weight"), bias)
                parts.append(g.op("Unsqueeze", y, g.ints(0)))
        a = g.op("Squeeze", g.op("MultiHeadAttention", *parts, domain=MICROSOFT, num_heads=heads), g.ints(0))
        with g.scope("out_proj"):
            a = linear(
                g, a, t.weight(f"{prefix}.self_attn.out_proj.weight"), t.weight(f"{prefix}.self_attn.out_proj.bias")
            )
        x = g.op("Add", x, a)
    with g.scope("final_layer_norm"):
        h = layer_norm(g, x, t, f"{prefix}.final_layer_norm", LAYER_NORM_EPS)
    with g.scope("mlp"):
        h = g.op("Gelu", linear(g, h, t.weight(f"{prefix}.fc1.weight"), t.weight(f"{prefix}.fc1.bias")))
        h = linear(g, h, t.weight(f"{prefix}.fc2.weight"), t.weight(f"{prefix}.fc2.bias"))
        return g.op("Add", x, h)


def _group(g: GraphBuilder, x: str, groups: str, model: ModelConfig, t: Tensors) -> str:
    """[pairs, d_model] -> [groups, hidden]: mean over each group, filler zeros counted, then the folded projection.

    A filler row is zero after the projection, bias included, so the bias enters by the share of real rows.
    """
    d, size, hidden = model.encoder.d_model, model.group_size, model.backbone.hidden_size

    def folded(part: int) -> Array:
        parts = t.read(AUDIO_PROJECTION), t.read(f"{ENCODER}.proj.weight"), t.read(f"{ENCODER}.proj.bias")
        return fold.audio_projection(*parts)[part]

    with g.scope("group"):
        rows = g.op("Shape", x, start=0, end=1)
        filler = g.op("Sub", g.op("Mul", groups, g.ints(size)), rows)
        pads = g.op("Concat", g.ints(0, 0), filler, g.ints(0), axis=0)
        real = g.op("Expand", g.op("Cast", g.ints(1), to=1), g.op("Concat", rows, g.ints(1), axis=0))
        mean, share = (
            g.op("ReduceMean", g.op("Reshape", g.op("Pad", v, pads), g.ints(-1, size, w)), g.ints(1), keepdims=0)
            for v, w in ((x, d), (real, 1))
        )
        weight = t.derived("fold/encoder.proj*audio_tower.continual_output_matching", (hidden, d), lambda: folded(0))
        bias = t.derived("fold/encoder.proj.bias*audio_tower.continual_output_matching", (hidden,), lambda: folded(1))
        y = g.op("Add", linear(g, mean, weight), g.op("Mul", share, g.weight(bias)))
        if model.audio_features_mode == "replace":
            return y
        # "add": the ids of user audio are all the pad id, filler included, so their part is one constant row.
        pad = t.derived(
            "fold/codebook.pad*audio_tower.output_matching",
            (hidden,),
            lambda: fold.matmul(t.read(CODEBOOK)[model.speech_ids.pad][None], t.read(GROUP_PROJECTION).T)[0],
        )
        return g.op("Add", y, g.weight(pad))
